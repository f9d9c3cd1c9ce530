"""A real threaded HTTP server whose every answer a test can spoil."""

from __future__ import annotations

import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable


class Misbehaving:
    """What the server does. Lists are used up, one entry a request; then the server behaves."""

    def __init__(self) -> None:
        self.body = b""
        self.etag: str | None = '"one"'
        self.modified: str | None = None
        self.ranges = True
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        self.lengths: list[int] = []
        self.chunked = False
        self.no_length = False
        self.stall_after: int | None = None
        self.release = threading.Event()
        self.stalled = threading.Event()
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.before: Callable[[Misbehaving, int], None] | None = None
        self.requests: list[dict[str, str]] = []
        self.stream_bytes: int | None = None
        self.url = ""
        self.port = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        be: Misbehaving = self.server.behaviour  # type: ignore[attr-defined]
        be.requests.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        if be.before is not None:
            be.before(be, len(be.requests))
        path = self.path.partition("?")[0]
        if path in be.redirects:
            return self._short(302, {"Location": be.redirects[path]})
        if be.statuses:
            status = be.statuses.pop(0)
            if status != 200:
                return self._short(status, be.headers)
        self._body(be)
        return None

    def _short(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _body(self, be: Misbehaving) -> None:
        body, start = be.body, 0
        asked = self.headers.get("Range")
        current = be.etag or be.modified
        if asked and be.ranges and self.headers.get("If-Range") == current:
            start = int(asked[len("bytes=") :].rstrip("-"))
            if start >= len(body):
                return self._short(416, {"Content-Range": f"bytes */{len(body)}"})
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        data = memoryview(body)[start:]
        if be.etag:
            self.send_header("ETag", be.etag)
        if be.modified:
            self.send_header("Last-Modified", be.modified)
        for key, value in be.headers.items():
            self.send_header(key, value)
        if be.stream_bytes is not None:
            return self._stream(be.stream_bytes)
        if be.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif be.no_length:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(be.lengths.pop(0) if be.lengths else len(data)))
        self.end_headers()
        cut = be.cut_after.pop(0) if be.cut_after else None
        if be.stall_after is not None:
            self.wfile.write(data[: be.stall_after])
            self.wfile.flush()
            be.stalled.set()
            be.release.wait(60)
            self.close_connection = True
            return None
        part = data if cut is None else data[:cut]
        if be.chunked:
            for at in range(0, len(part), 1000):
                piece = part[at : at + 1000]
                self.wfile.write(b"%x\r\n" % len(piece) + bytes(piece) + b"\r\n")
            if cut is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(part)
        if cut is not None:
            self._hang_up()
        return None

    def _stream(self, count: int) -> None:
        self.send_header("Content-Length", str(count))
        self.end_headers()
        block = bytes(1 << 20)
        while count > 0:
            self.wfile.write(block[: min(count, len(block))])
            count -= len(block)

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = Misbehaving()
        self.behaviour.port = self.server_address[1]
        self.behaviour.url = f"http://127.0.0.1:{self.behaviour.port}"
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients of these tests hang up as they please
