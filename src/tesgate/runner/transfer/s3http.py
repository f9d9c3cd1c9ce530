"""Sends presigned requests to object stores over kept connections, with the bodies of files, and never tells a URL.

An HTTP/1.1 client for this alone (docs/design/adr/0043): headers are read by hand, bodies go between socket and file by
`recv_into` and `sendfile`. No redirects, no proxies, no cookies. What it raises holds no URL: that could be replayed.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import urlsplit

from .connect import Guard, HttpSettings, Unresolved, connect_any
from .s3wire import Answer, Body, Broken, Connection, has_answer, reason_of
from .threads import Stop

__all__ = ["Connections", "NotTrusted"]

_KEPT = 64
"""Idle connections to one server."""
_LEAST_PATIENCE = 0.05
_PLAIN = re.compile(r"[\x21-\x7e]+")


class NotTrusted(Exception):
    """The server's certificate was not accepted."""


_Place = Tuple[str, str, int]


class Connections:
    """Kept-alive connections for the transfers of one `Stop`, which wakes them all. Safe in many threads."""

    def __init__(self, *, settings: HttpSettings, stop: Stop) -> None:
        self.settings = settings
        self.stop = stop
        self._lock = threading.Lock()
        self._idle: Dict[_Place, List[Connection]] = {}
        self._context: Optional[ssl.SSLContext] = None
        self._closed = False

    def close(self) -> None:
        """End all that are idle; idempotent."""
        with self._lock:
            self._closed = True
            idle = [connection for some in self._idle.values() for connection in some]
            self._idle.clear()
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Body = b"",
        check: Optional[Callable[[], None]] = None,
        lease: Optional[Callable[[], float]] = None,
    ) -> Iterator[Answer]:
        """Send one request; its answer, whose body is still to be read.

        `check` is called between pieces of the body, and what it raises ends the connection in the middle of it.
        `lease`: seconds after which none of the body may be sent any more.
        Raises `Broken`, `NotTrusted`, `Stopped`.
        """
        place, head = _head(method, url, headers, body)
        answer = self._exchange(place, head, method, body, check or self.stop.check, self._patience(lease))
        try:
            yield answer
        except Broken:
            self.stop.check()
            raise
        finally:
            answer.close()

    def _patience(self, lease: Optional[Callable[[], float]]) -> Callable[[], float]:
        longest = self.settings.read_timeout
        return lambda: longest if lease is None else min(longest, max(lease(), _LEAST_PATIENCE))

    def _exchange(
        self,
        place: _Place,
        head: bytes,
        method: str,
        body: Body,
        check: Callable[[], None],
        patience: Callable[[], float],
    ) -> Answer:
        fresh = False
        while True:
            self.stop.check()
            connection = self._take(place, fresh)
            try:
                answer = Answer(connection, lambda it: self._keep(place, it))
                try:
                    whole = connection.send(head, body, check, patience)
                except Broken:
                    # Some answer first and then close, as S3 does with SlowDown: what they say is worth more.
                    if not has_answer(connection):
                        raise
                    whole = False
                answer.read_head(has_body=method != "HEAD")
                if not whole:
                    answer.headers["connection"] = "close"
                    answer._keep = False
                return answer
            except Broken as error:
                connection.close()
                self.stop.check()
                if not error.unused or fresh:
                    raise
                fresh = True  # the server had closed it: once more, on a new one
            except BaseException:
                connection.close()
                raise

    def _take(self, place: _Place, fresh: bool) -> Connection:
        while not fresh:
            with self._lock:
                some = self._idle.get(place)
                connection = some.pop() if some else None
            if connection is None:
                break
            if not connection.is_stale():
                return connection
            connection.close()
        return self._open(place)

    def _keep(self, place: _Place, connection: Connection) -> None:
        connection.idle_since = time.monotonic()
        with self._lock:
            some = self._idle.setdefault(place, [])
            if not self._closed and len(some) < _KEPT:
                some.append(connection)
                return
        connection.close()

    def _open(self, place: _Place) -> Connection:
        scheme, host, port = place
        try:
            sock = connect_any(host, port, self.stop, self.settings.connect_timeout)
        except Unresolved as error:
            raise Broken("the name %s could not be resolved" % error.host) from None
        except OSError as error:
            raise Broken("no connection to %s:%d (%s)" % (host, port, error.strerror or type(error).__name__)) from None
        try:
            guard = Guard(sock, self.stop)
        except BaseException:
            sock.close()
            raise
        try:
            if scheme == "https":
                sock.settimeout(self.settings.connect_timeout)
                sock = self._secured().wrap_socket(sock, server_hostname=host)
            sock.settimeout(self.settings.read_timeout)
        except ssl.SSLCertVerificationError:
            guard.close()
            sock.close()
            raise NotTrusted from None
        except (OSError, ValueError) as error:
            guard.close()
            sock.close()
            self.stop.check()
            raise Broken(reason_of(error)) from None
        return Connection(sock, guard, self.settings)

    def _secured(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                # The system's authorities as well as the agent's own: a store is often a public one.
                self._context = ssl.create_default_context()
                if self.settings.ca_file is not None:
                    self._context.load_verify_locations(self.settings.ca_file)
            return self._context


def _head(method: str, url: str, headers: Mapping[str, str], body: Body) -> Tuple[_Place, bytes]:
    if not _PLAIN.fullmatch(url):
        raise Broken("the gateway gave something that is no URL")
    try:
        parsed = urlsplit(url)
        host, port = parsed.hostname, parsed.port
    except ValueError:
        host, port = None, None
    if parsed.scheme not in ("http", "https") or not host or parsed.username is not None:
        raise Broken("the gateway gave a URL that is not one of HTTP")
    target = (parsed.path or "/") + ("?" + parsed.query if parsed.query else "")
    size = len(body) if isinstance(body, bytes) else body.size
    lines = ["%s %s HTTP/1.1" % (method, target)]
    given = {name.lower(): value for name, value in headers.items()}
    given.setdefault("host", parsed.netloc)
    given.setdefault("user-agent", "tesgate")
    given.setdefault("accept-encoding", "identity")
    if method != "GET":
        given["content-length"] = str(size)
    for name, value in given.items():
        if "\r" in value or "\n" in value or not re.fullmatch(r"[!-9;-~]+", name):
            raise Broken("the gateway gave a header that cannot be sent")
        lines.append("%s: %s" % (name, value))
    place = (parsed.scheme, host, port or (443 if parsed.scheme == "https" else 80))
    return place, ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
