"""A proxy in front of a real S3 server that breaks requests on purpose, each in a way of its own."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

__all__ = ["Fault", "Proxy", "Seen", "proxy_of"]

XML = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>broken on purpose</Message>%s</Error>'


@dataclass
class Fault:
    """What happens to requests of `method` whose path matches `path`, `times` times, after the first `skip`."""

    kind: str
    """``slow``: 503 SlowDown; ``error``: 500; ``expired``: 403; ``elsewhere``: 307; ``reset``: before the answer;
    ``early``: 503 while the body is coming; ``lost``: done, but nobody is told; ``cut``: after `at` bytes of the
    body; ``stall``: the same without an end (of a PUT: done, and never answered); ``drip``: byte by byte from there;
    ``short``, ``long``: another length; ``flip``: one byte is another (of a PUT: on its way in); ``revoked``: 403, the
    key is not known; ``region``: 400, signed for another one; ``sealed``: stored, with the ETag and the header of an
    object that is encrypted by KMS."""
    method: str = "GET"
    path: str = ""
    times: int = 1
    skip: int = 0
    at: int = 1000
    retry_after: str = ""
    words: str = ""
    """What else the answer of ``region`` holds."""


@dataclass
class Seen:
    """One request, as it came."""

    method: str
    path: str
    range: str
    match: str
    fault: str = ""


@dataclass
class Proxy:
    """Where it listens, what it has seen, and what it is to do."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    """Somebody waits in a stall."""
    release: threading.Event = field(default_factory=threading.Event)
    before: Callable[[Seen], None] = lambda seen: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        """Begin another test; whoever is still held by the one before is let go."""
        with self.lock:
            self.release.set()
            self.held, self.release = threading.Event(), threading.Event()
            self.seen, self.faults, self.before = [], [], lambda seen: None

    def requests(self, method: str, path: str = "") -> list[Seen]:
        with self.lock:
            return [each for each in self.seen if each.method == method and re.search(path, each.path)]

    def _choose(self, seen: Seen) -> Fault | None:
        with self.lock:
            self.seen.append(seen)
            for fault in self.faults:
                if fault.method == seen.method and re.search(fault.path, seen.path) and fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    seen.fault = fault.kind
                    return fault
        return None


@contextlib.contextmanager
def proxy_of(upstream: str) -> Iterator[Proxy]:
    """One proxy for one test."""
    proxy = Proxy()
    host, port = urlsplit(upstream).hostname, urlsplit(upstream).port

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *words: object) -> None:
            del words

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                self._serve()

        do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815  # the names that http.server asks for

        def _serve(self) -> None:
            path = self.path.partition("?")[0]
            seen = Seen(self.command, path, self.headers.get("range", ""), self.headers.get("if-match", ""))
            proxy.before(seen)
            fault = proxy._choose(seen)
            kind = fault.kind if fault is not None else ""
            length = int(self.headers.get("content-length") or 0)
            if fault is not None and kind == "early":
                self.rfile.read(min(length, 64 << 10))
                self._refuse(503, "SlowDown", fault, close=True)
                return
            body = self.rfile.read(length)
            if fault is not None and kind == "reset":
                self._reset()
            elif fault is not None and kind in ("slow", "error", "expired", "elsewhere", "revoked", "region"):
                status, code = {
                    "slow": (503, "SlowDown"),
                    "error": (500, "InternalError"),
                    "expired": (403, "AccessDenied"),
                    "elsewhere": (307, "TemporaryRedirect"),
                    "revoked": (403, "InvalidAccessKeyId"),
                    "region": (400, "AuthorizationQueryParametersError"),
                }[kind]
                self._refuse(status, code, fault)
            else:
                if kind == "flip" and self.command == "PUT":
                    body = body[:-1] + bytes([body[-1] ^ 1])
                self._forward(body, fault)

        def _refuse(self, status: int, code: str, fault: Fault, close: bool = False) -> None:
            region = fault.words if fault.kind == "region" else ""
            data = (XML % (code, region)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if fault.retry_after:
                self.send_header("Retry-After", fault.retry_after)
            if close:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            self.wfile.write(data)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def _forward(self, body: bytes, fault: Fault | None) -> None:
            assert host is not None
            connection = http.client.HTTPConnection(host, port, timeout=60)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "content-length"):
                        connection.putheader(name, value)
                if self.command in ("PUT", "POST"):
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body if self.command in ("PUT", "POST") else None)
                answer = connection.getresponse()
                data = answer.read()
                self._answer(answer, data, fault)
            finally:
                connection.close()

        def _answer(self, answer: http.client.HTTPResponse, data: bytes, fault: Fault | None) -> None:
            kind = fault.kind if fault is not None else ""
            if kind == "lost":
                self._reset()
                return
            if kind == "stall" and self.command == "PUT":
                # An answer without a body would be whole with its head.
                release = proxy.release
                proxy.held.set()
                release.wait(60)
                self.close_connection = True
                return
            bare = self.command == "HEAD"
            length = len(data) + {"short": -7, "long": 7}.get(kind, 0)
            if kind == "short":
                data = data[:length]
            if kind == "flip" and data and self.command == "GET":
                data = data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if kind == "sealed" and name.lower() == "etag":
                    value = f'"{hashlib.md5(value.encode()).hexdigest()}"'
                if name.lower() not in ("connection", "content-length", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            if kind == "sealed":
                self.send_header("x-amz-server-side-encryption", "aws:kms")
            self.send_header("Content-Length", (answer.getheader("Content-Length") or "0") if bare else str(length))
            self.end_headers()
            if bare:
                return
            at = fault.at if fault is not None else 0
            if kind in ("cut", "stall", "drip"):
                self.wfile.write(data[:at])
                self.wfile.flush()
                release = proxy.release
                if kind == "stall":
                    proxy.held.set()
                    release.wait(60)
                for index in range(at, len(data)) if kind == "drip" else ():
                    proxy.held.set()
                    self.wfile.write(data[index : index + 1])
                    if release.wait(0.05):
                        break
                self.close_connection = True
            else:
                self.wfile.write(data)
                if kind == "long":
                    self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, request: object, client_address: object) -> None:
            del request, client_address

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.release.set()
            server.shutdown()
            thread.join(10)
