"""A small Docker Engine API client: HTTP over a unix socket, made of synchronous calls that run in threads."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import HTTPError, ReadTimeoutError

from .base import EngineUnavailable, RuntimeUnavailable
from .sockets import AUTO, find_socket, places

__all__ = ["Answer", "Engine", "EngineError", "Stream", "in_path"]

T = TypeVar("T")

_OLDEST = (1, 40)
_NEWEST = (1, 51)
_CONNECT = 5.0
_USUAL = 120.0
"""Seconds that an ordinary call may be silent: a busy engine can take long to create or start a container."""


class EngineError(Exception):
    """The engine answered with an error; whoever asked knows what it means."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("%d: %s" % (status, message))
        self.status = status
        self.message = message


@dataclass
class Answer:
    """An answer below 400."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body; None where it is empty."""
        return json.loads(self.body) if self.body.strip() else None


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Callable[[], str], timeout: Optional[float]) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self.raw: Optional[socket.socket] = None

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_CONNECT)
            sock.connect(self._path())
            sock.settimeout(self.timeout)
        except BaseException:
            sock.close()
            raise
        self.raw = sock
        return sock


class _UnixPool(HTTPConnectionPool):
    def __init__(self, path: Callable[[], str], size: int) -> None:
        super().__init__("localhost", maxsize=size, block=False)
        self._path = path

    def _new_conn(self) -> _UnixConnection:
        self.num_connections += 1
        return _UnixConnection(self._path, self.timeout.connect_timeout)  # type: ignore[arg-type]


class Stream:
    """A streamed answer on a connection of its own, which another thread can cut with `abort`."""

    def __init__(self, connection: _UnixConnection) -> None:
        self._connection = connection
        self._aborted = False
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._response: Optional[urllib3.HTTPResponse] = None

    def open(self, method: str, path: str, headers: Dict[str, str], body: Optional[Iterable[bytes]]) -> None:
        """Send the request and read the head of the answer."""
        # An engine may answer before it has read all and close: then the answer says why.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(
                method, path, body=body, headers=headers, chunked=body is not None, preload_content=False
            )
        response = self._connection.getresponse()
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def read(self, amount: int = -1) -> bytes:
        """Up to `amount` bytes; empty at the end."""
        assert self._response is not None
        return self._response.read(None if amount < 0 else amount)

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives."""
        assert self._response is not None
        return self._response.stream(1 << 16)

    def lines(self) -> Iterator[Any]:
        """The body as JSON values, one a line or simply one after the other."""
        decoder = json.JSONDecoder()
        pending = b""
        for piece in self.pieces():
            pending += piece
            *whole, pending = pending.split(b"\n")
            for line in whole:
                if line.strip():
                    yield decoder.decode(line.decode("utf-8", "replace"))
        if pending.strip():
            yield decoder.decode(pending.decode("utf-8", "replace"))

    @property
    def aborted(self) -> bool:
        """`abort` was called."""
        return self._aborted

    def abort(self) -> None:
        """Cut the connection; a thread that reads or writes on it gets an error at once."""
        self._aborted = True
        sock = self._connection.raw
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # not connected any more, which is what was wanted

    def close(self) -> None:
        """Let go of the connection."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


class Engine:
    """One engine behind one unix socket. The methods that take a `Stream` or answer at once block: use `call`."""

    def __init__(
        self,
        path: str = "/var/run/docker.sock",
        *,
        threads: int = 24,
        candidates: Optional[List[str]] = None,
        found: Optional[Callable[[str], None]] = None,
    ) -> None:
        """`path` may be ``auto``: the first of `candidates` that answers is taken then, told to `found`, and kept."""
        self.path = path[len("unix://") :] if path.startswith("unix://") else path
        self._candidates = places(os.environ, os.getuid()) if candidates is None else candidates
        self._found = found
        self._pool = _UnixPool(self._place, threads)
        self._threads = threads
        self._limiters: Dict[bool, anyio.CapacityLimiter] = {}
        self._lock = threading.Lock()
        self._prefix = ""
        self.version: Dict[str, Any] = {}

    # -- threads

    async def call(self, function: Callable[..., T], *args: Any, slow: bool = False) -> T:
        """Run a blocking `function` in a thread; `slow` ones (stop, transfers) have threads of their own."""
        if slow not in self._limiters:
            self._limiters[slow] = anyio.CapacityLimiter(self._threads)
        return await anyio.to_thread.run_sync(lambda: function(*args), limiter=self._limiters[slow])

    async def call_stream(self, function: Callable[[Stream], T], *, timeout: float) -> T:
        """Run ``function(stream)`` in a thread; when this is cancelled the stream is cut, so that it ends at once.

        `timeout`: seconds that the engine may be silent on it.
        """
        stream = self.stream(timeout)
        done = anyio.Event()
        results: List[T] = []
        faults: List[Exception] = []

        async def cut_on_cancel() -> None:
            try:
                await done.wait()
            finally:
                if not done.is_set():
                    stream.abort()

        async with anyio.create_task_group() as group:
            group.start_soon(cut_on_cancel)
            with anyio.CancelScope(shield=True):
                try:
                    results.append(await self.call(function, stream, slow=True))
                except Exception as error:  # raised below: a task group would wrap it
                    faults.append(error)
                finally:
                    stream.close()
            done.set()
        await anyio.lowlevel.checkpoint_if_cancelled()  # a cut made by a cancel is no fault of the engine
        if faults:
            raise faults[0]
        return results[0]

    def stream(self, timeout: float) -> Stream:
        """A stream that is still to be opened, on a connection of its own."""
        return Stream(_UnixConnection(self._place, timeout))

    # -- calls

    def request(
        self,
        method: str,
        path: str,
        query: Optional[Dict[str, Any]] = None,
        body: Any = None,
        *,
        timeout: float = _USUAL,
        headers: Optional[Dict[str, str]] = None,
    ) -> Answer:
        """One call. A connection that the engine closed meanwhile is replaced once: every call of ours is repeatable.

        `body`: bytes as they are, anything else as JSON.
        Raises `EngineError` from status 400 on, `EngineUnavailable` without an answer.
        """
        url = self._prefixed(path, query)
        return self._send(method, url, body, timeout, headers)

    def open(
        self,
        stream: Stream,
        method: str,
        path: str,
        query: Optional[Dict[str, Any]] = None,
        *,
        body: Optional[Iterable[bytes]] = None,
        headers: Optional[Dict[str, str]] = None,
    ) -> None:
        """Begin a streamed call; raises like `request`."""
        url = self._prefixed(path, query)
        try:
            stream.open(method, url, dict(headers or {}), body)
            if stream.status >= 400:
                raise EngineError(stream.status, _message(stream.read()))
        except (HTTPError, OSError) as error:
            raise self.gone(error) from error

    def negotiate(self) -> Dict[str, Any]:
        """Ask for the engine's versions and settle on one API version; returns the answer of ``/version``."""
        version = self._send("GET", "/version", None, 10.0, None).json()
        offered, oldest = _number(version.get("ApiVersion", "")), _number(version.get("MinAPIVersion", "0.0"))
        if offered < _OLDEST:
            raise RuntimeUnavailable(
                "The engine at %s speaks API version %s, but %d.%d is the oldest that works: update it."
                % (self.path, version.get("ApiVersion"), *_OLDEST)
            )
        chosen = max(min(offered, _NEWEST), oldest)
        self.version = version
        self._prefix = "/v%d.%d" % chosen
        return version  # type: ignore[no-any-return]

    def _place(self) -> str:
        """The socket; raises OSError where it is still to be found and no engine answers."""
        if self.path == AUTO:
            place = find_socket(self._candidates)
            if place is None:
                raise FileNotFoundError(errno.ENOENT, "no engine")
            if self._found is not None:
                self._found(place)
            self.path = place
        return self.path

    def gone(self, error: Exception) -> EngineUnavailable:
        """The fault for an engine that did not answer."""
        if self.path == AUTO:
            return EngineUnavailable(
                "No container engine answers at %s; start Docker or Podman (systemctl --user start podman.socket), let "
                "the agent's user use its socket, or set runtime.docker_socket." % ", ".join(self._candidates)
            )
        if isinstance(error, (ReadTimeoutError, socket.timeout)):
            return EngineUnavailable(
                "The container engine at %s did not answer in time; it may be overloaded." % self.path
            )
        cause: Optional[BaseException] = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        reason = (cause.strerror if isinstance(cause, OSError) and cause.strerror else None) or str(error)
        advice = "start it, or set the socket's path"
        if isinstance(cause, PermissionError):
            advice = "let the agent's user use it (group docker), or set the socket's path"
        return EngineUnavailable(
            "The Docker engine at %s does not answer (%s); %s." % (self.path, reason.rstrip("."), advice)
        )

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    def _prefixed(self, path: str, query: Optional[Dict[str, Any]]) -> str:
        if not self._prefix:
            with self._lock:
                if not self._prefix:
                    self.negotiate()
        pairs: List[Tuple[str, str]] = []
        for key, value in (query or {}).items():
            pairs.append((key, value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))))
        return self._prefix + path + ("?" + urllib.parse.urlencode(pairs) if pairs else "")

    def _send(self, method: str, url: str, body: Any, timeout: float, headers: Optional[Dict[str, str]]) -> Answer:
        sent = dict(headers or {})
        data = body
        if body is not None and not isinstance(body, bytes):
            data = json.dumps(body).encode("utf-8")
            sent["Content-Type"] = "application/json"
        patience = urllib3.Timeout(connect=_CONNECT, read=timeout)
        for last in (False, True):
            try:
                response = self._pool.urlopen(
                    method, url, body=data, headers=sent, retries=False, timeout=patience, redirect=False
                )
                break
            except (HTTPError, OSError) as error:
                fresh = isinstance(error, urllib3.exceptions.ProtocolError)
                if last or not fresh or isinstance(error, ReadTimeoutError):
                    raise self.gone(error) from error
        if response.status >= 400:
            raise EngineError(response.status, _message(response.data))
        return Answer(response.status, response.data)


def in_path(text: str) -> str:
    """Quote a name for a URL's path."""
    return urllib.parse.quote(text, safe="")


def _message(body: bytes) -> str:
    try:
        found = json.loads(body)
        return str(found.get("message") or found.get("cause") or found)
    except (ValueError, AttributeError):
        return body[:500].decode("utf-8", "replace").strip()


def _number(text: str) -> Tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
