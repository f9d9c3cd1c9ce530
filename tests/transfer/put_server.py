"""A real threaded HTTP server that takes files by PUT, and whose every answer a test can spoil."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Storing:
    """What the server holds and does. Lists are used up, one entry a request; then it stores what it gets."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """By path and query, as they stood in the request; only what came whole."""
        self.digests: dict[str, str] = {}
        """In place of `files`, where `digest` says so."""
        self.digest = False
        self.statuses: list[int] = []
        """Answered after the body was read."""
        self.early: list[int] = []
        """Answered before any of the body is read; then the connection is closed."""
        self.cuts = 0
        """So many requests are cut off in the middle of their body."""
        self.body = b""
        self.headers: dict[str, str] = {}
        self.redirects: dict[str, tuple[int, str]] = {}
        self.requests: list[dict[str, str]] = []
        self.during: Callable[[], None] | None = None
        """Called once a quarter of a body has come."""
        self.url = ""
        self.port = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_PUT(self) -> None:
        be: Storing = self.server.behaviour  # type: ignore[attr-defined]
        be.requests.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        if be.early:
            self._answer(be.early.pop(0), be)
            self.close_connection = True
            return
        length = int(self.headers["Content-Length"])
        hashed, kept, left = hashlib.sha256(), bytearray(), length
        called = False
        while left:
            data = self.rfile.read1(min(left, 1 << 16))  # type: ignore[attr-defined]
            if not data:
                return  # cut off: nothing is stored
            left -= len(data)
            if be.digest:
                hashed.update(data)
            else:
                kept += data
            if be.cuts and left < length / 2:
                be.cuts -= 1
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if be.during is not None and not called and left <= length * 3 / 4:
                called = True
                be.during()
        if (target := be.redirects.get(self.path)) is not None:
            self._answer(target[0], be, {"Location": target[1]})
            return
        status = be.statuses.pop(0) if be.statuses else 201
        if status < 300:
            be.files[self.path] = bytes(kept)
            be.digests[self.path] = hashed.hexdigest()
        self._answer(status, be)

    def _answer(self, status: int, be: Storing, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**be.headers, **(more or {})}.items():
            self.send_header(key, value)
        body = be.body if status >= 300 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour = Storing()
        self.behaviour.port = self.server_address[1]
        self.behaviour.url = f"http://127.0.0.1:{self.behaviour.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # clients of these tests hang up as they please


@contextlib.contextmanager
def put_server() -> Iterator[Storing]:
    """A running server."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield running.behaviour
        finally:
            running.shutdown()
            thread.join(10)
