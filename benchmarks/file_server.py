"""Serves the files of a directory over plain HTTP by sendfile, so that the server is not what a download waits for.

Usage: python benchmarks/file_server.py DIRECTORY    prints its port; ends when its standard input does
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from pathlib import Path

__all__ = ["serve"]


def serve(directory: Path) -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(128)
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listening, directory), daemon=True).start()
    sys.stdin.read()


def _accept(listening: socket.socket, directory: Path) -> None:
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, directory), daemon=True).start()


def _answer(connection: socket.socket, directory: Path) -> None:
    pending = b""
    with connection:
        while True:
            while b"\r\n\r\n" not in pending:
                piece = connection.recv(65536)
                if not piece:
                    return
                pending += piece
            head, _, pending = pending.partition(b"\r\n\r\n")
            name = re.match(rb"GET /([A-Za-z0-9/._-]+) ", head)
            if name is None or b".." in name[1]:
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            file = os.open(directory / name[1].decode(), os.O_RDONLY)
            try:
                size = os.fstat(file).st_size
                # No second packet for what a small file needs.
                answer = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: %d\r\n\r\n' % size
                connection.sendall(answer, socket.MSG_MORE if size else 0)
                offset = 0
                while offset < size:
                    offset += os.sendfile(connection.fileno(), file, offset, size - offset)
            except (BrokenPipeError, ConnectionResetError):
                return
            finally:
                os.close(file)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
