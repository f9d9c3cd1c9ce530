"""A unix socket between a client and an engine: counts requests, can be cut, and can answer by a script instead."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

__all__ = ["Proxy", "ScriptedEngine"]


class Proxy:
    """Passes bytes on to the engine at `target`, and notes each request's first line."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = str(path)
        self._target = target
        self.requests: list[str] = []
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._server: socket.socket | None = None

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def listen(self) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.path)
        server.listen(20)
        self._server = server
        self._go(self._accept, server)

    def cut(self) -> None:
        """Close everything, like an engine that is restarted."""
        Path(self.path).unlink(missing_ok=True)
        if self._server is not None:
            with contextlib.suppress(OSError):
                self._server.shutdown(socket.SHUT_RDWR)
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for one in [*self._open, *([self._server] if self._server else [])]:
            one.close()
        self._open.clear()
        self._threads.clear()
        self._server = None

    def _go(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(self._target)
            self._open += [client, engine]
            self._go(self._pass, client, engine, True)
            self._go(self._pass, engine, client, False)

    def _pass(self, source: socket.socket, target: socket.socket, note: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if note and data.split(b" ", 1)[0] in (b"GET", b"POST", b"PUT", b"DELETE"):
                    self.requests.append(data.split(b"\r\n", 1)[0].decode())
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class ScriptedEngine:
    """Stands in for what this machine does not have, a registry: answers one request a connection from `answer`.

    ``answer(first line, headers) -> (status, body chunks)``; a chunk that is callable is called first.
    """

    def __init__(
        self, path: Path, answer: Callable[[str, dict[str, str]], tuple[int, list[bytes | Callable[[], bytes]]]]
    ):
        self.path = str(path)
        self._answer = answer
        self._server = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._server.bind(self.path)
        self._server.listen(50)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data:
                got = client.recv(1 << 16)
                if not got:
                    return
                data += got
            first, *lines = data.split(b"\r\n\r\n", 1)[0].decode().split("\r\n")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
            if "/version" in first and "/v1." not in first:
                version = {"ApiVersion": "1.43", "MinAPIVersion": "1.24", "Version": "0", "Arch": "amd64"}
                status, chunks = 200, [json.dumps(version).encode()]
            else:
                status, chunks = self._answer(first, headers)
            client.sendall(f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
            for chunk in chunks:
                content = chunk() if callable(chunk) else chunk
                client.sendall(b"%x\r\n%s\r\n" % (len(content), content))
            client.sendall(b"0\r\n\r\n")
