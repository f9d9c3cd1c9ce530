"""One connection to an object store: heads by hand, bodies between socket and file by `recv_into` and `sendfile`."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Callable, Dict, Optional, Union

from .connect import Guard, HttpSettings

__all__ = ["Answer", "Body", "Broken", "Connection", "FilePart", "has_answer", "reason_of"]

_HEAD_LIMIT = 64 << 10
_CHUNK = 256 << 10
_SLICE_MS = 100
_IDLE = 20.0
"""Seconds after which an idle connection is not used again: many servers close after 60, balancers after 30."""
_FRESH = 0.05
"""Seconds for which it is used without a look: a request that meets its end all the same is sent again."""
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([^\r\n]*))?")


class Broken(Exception):
    """The request had no whole answer; another one may have. `why` is half a sentence without the URL."""

    def __init__(self, why: str, *, unused: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.unused = unused
        """It broke on a kept connection before a byte of an answer: the server had closed it meanwhile."""


@dataclass
class FilePart:
    """A body: bytes of an open file."""

    handle: int
    offset: int
    size: int


Body = Union[bytes, FilePart]


class Connection:
    """One socket and what was received beyond the last head."""

    def __init__(self, sock: socket.socket, guard: Guard, settings: HttpSettings) -> None:
        self.sock = sock
        self._guard = guard
        self.secure = isinstance(sock, ssl.SSLSocket)
        self.settings = settings
        self.buffer = bytearray()
        self.used = False
        self.idle_since = 0.0

    def close(self) -> None:
        self._guard.close()
        self.sock.close()

    def is_stale(self) -> bool:
        """Say whether the server closed it (or said something unasked) while it was idle."""
        idle = time.monotonic() - self.idle_since
        if idle > _IDLE or self.buffer:
            return True
        if idle < _FRESH:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    def receive(self, view: memoryview) -> int:
        """As ``recv_into``; 0 is the end. Raises `Broken`."""
        try:
            return self.sock.recv_into(view)
        except socket.timeout:
            raise Broken("the store fell silent") from None
        except (OSError, ValueError) as error:
            raise Broken(reason_of(error)) from None

    def line(self, mark: bytes, limit: int) -> bytes:
        """Read up to and with `mark`. Raises `Broken`."""
        begin = 0
        while True:
            found = self.buffer.find(mark, begin)
            if found >= 0:
                head = bytes(self.buffer[: found + len(mark)])
                del self.buffer[: found + len(mark)]
                return head
            if len(self.buffer) > limit:
                raise Broken("the store's answer has an endless head")
            begin = max(0, len(self.buffer) - len(mark) + 1)
            more = bytearray(16 << 10)
            count = self.receive(memoryview(more))
            if not count:
                raise Broken("the connection was cut", unused=self.used and not self.buffer)
            self.buffer += memoryview(more)[:count]

    # -- sending -----------------------------------------------------------------------------------------------

    def send(self, head: bytes, body: Body, check: Callable[[], None], patience: Callable[[], float]) -> bool:
        """Send a request; False: the server answered before it had all. Raises `Broken`, what `check` raises.

        `patience`: seconds in which the next piece must have gone.
        """
        try:
            self._wait_at_most(patience())
            if isinstance(body, bytes):
                self.sock.sendall(head + body)
                whole = True
            else:
                self.sock.sendall(head)
                whole = self._file_secure(body, check, patience) if self.secure else self._file(body, check)
            self._wait_at_most(self.settings.read_timeout)
            return whole
        except socket.timeout:
            raise Broken("the store took no more bytes") from None
        except (OSError, ValueError) as error:
            raise Broken(reason_of(error), unused=self.used) from None

    def _wait_at_most(self, seconds: float) -> None:
        if self.sock.gettimeout() != seconds:  # setting it is a system call, and lets go of the interpreter
            self.sock.settimeout(seconds)

    def _file(self, body: FilePart, check: Callable[[], None]) -> bool:
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT | select.POLLIN)
        offset, left, since = body.offset, body.size, time.monotonic()
        while left:
            check()
            ready = poll.poll(_SLICE_MS)
            if not ready:
                if time.monotonic() - since > self.settings.read_timeout:
                    raise socket.timeout
                continue
            if ready[0][1] & (select.POLLIN | select.POLLHUP | select.POLLERR):
                return False
            try:
                count = os.sendfile(self.sock.fileno(), body.handle, offset, min(left, 4 * _CHUNK))
            except BlockingIOError:
                continue
            if not count:
                raise Broken("the file became shorter while it was sent")
            offset, left, since = offset + count, left - count, time.monotonic()
        return True

    def _file_secure(self, body: FilePart, check: Callable[[], None], patience: Callable[[], float]) -> bool:
        offset, left = body.offset, body.size
        while left:
            check()
            data = os.pread(body.handle, min(left, _CHUNK), offset)
            if not data:
                raise Broken("the file became shorter while it was sent")
            self.sock.settimeout(patience())
            self.sock.sendall(data)
            offset, left = offset + len(data), left - len(data)
        return True


class Answer:
    """Status, headers (names in lower case) and a body that is still to be read. Close it in any case."""

    def __init__(self, connection: Connection, give_back: Callable[[Connection], None]) -> None:
        self._connection = connection
        self._give_back = give_back
        self.status = 0
        self.reason = ""
        self.headers: Dict[str, str] = {}
        self._left: Optional[int] = 0
        """Bytes of the body (of a chunk); None: until the server closes."""
        self._chunked = self._first_chunk = False
        self._keep = False

    def read_head(self, *, has_body: bool) -> None:
        """Raises `Broken`."""
        connection = self._connection
        while True:
            lines = connection.line(b"\r\n\r\n", _HEAD_LIMIT).split(b"\r\n")
            connection.used = True
            found = _STATUS.fullmatch(lines[0])
            if found is None:
                raise Broken("the answer is not HTTP")
            self.status = int(found.group(2))
            if self.status >= 200:
                break
        self.reason = (found.group(3) or b"").decode("latin-1")[:80]
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if colon:
                self.headers.setdefault(name.decode("latin-1").lower(), value.strip().decode("latin-1"))
        self._keep = found.group(1) == b"1" and "close" not in self.headers.get("connection", "").lower()
        self._frame(has_body)

    def _frame(self, has_body: bool) -> None:
        length = self.headers.get("content-length")
        if not has_body or self.status in (204, 304):
            self._left = 0
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked, self._first_chunk, self._left = True, True, 0
        elif length is None:
            self._left, self._keep = None, False
        elif re.fullmatch(r"[0-9]{1,18}", length):
            self._left = int(length)
        else:
            raise Broken("the answer has a content-length that is no number")

    @property
    def length(self) -> Optional[int]:
        """Of the whole body in bytes, if the server said it."""
        text = self.headers.get("content-length")
        return int(text) if text is not None and not self._chunked else None

    def read_into(self, view: memoryview) -> int:
        """Fill the beginning of `view`; 0 is the end of the body. Raises `Broken` where it ends early."""
        if self._chunked and self._left == 0 and not self._next_chunk():
            return 0
        if self._left == 0:
            return 0
        connection = self._connection
        wanted = len(view) if self._left is None else min(len(view), self._left)
        if connection.buffer:
            count = min(wanted, len(connection.buffer))
            view[:count] = connection.buffer[:count]
            del connection.buffer[:count]
        else:
            count = connection.receive(view[:wanted])
        if not count and self._left is not None:
            raise Broken("the connection was cut")
        if self._left is not None:
            self._left -= count
        return count

    def _next_chunk(self) -> bool:
        connection = self._connection
        if not self._first_chunk:
            connection.line(b"\r\n", 1024)
        self._first_chunk = False
        size = connection.line(b"\r\n", 1024).partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise Broken("the answer has a chunk without a size")
        self._left = int(size, 16)
        if self._left:
            return True
        while connection.line(b"\r\n", _HEAD_LIMIT) != b"\r\n":
            continue
        self._chunked = False
        return False

    def text(self, limit: int = 16 << 10) -> str:
        """The beginning of a short body, for what a fault says of itself; empty where it cannot be read."""
        room = bytearray(limit)
        have = 0
        with contextlib.suppress(Broken):
            while have < limit and (count := self.read_into(memoryview(room)[have:])):
                have += count
        return room[:have].decode("utf-8", "replace")

    def close(self) -> None:
        """Keep the connection if all was read, else end it."""
        if self._keep and self._left == 0 and not self._chunked:
            self._give_back(self._connection)
        else:
            self._connection.close()
        self._keep, self._give_back = False, Connection.close


def has_answer(connection: Connection) -> bool:
    """Whether the server has begun to answer; waits one slice of time for it."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    try:
        return any(events & select.POLLIN for _, events in poll.poll(_SLICE_MS))
    except (OSError, ValueError):
        return False


def reason_of(error: BaseException) -> str:
    """What went wrong with a connection, in words without its address."""
    if isinstance(error, ssl.SSLError):
        return "the TLS connection failed"
    if isinstance(error, (ConnectionError, ssl.SSLEOFError)):
        return "the connection was cut"
    if isinstance(error, OSError) and error.strerror:
        return "the connection failed (%s)" % error.strerror
    return "the connection failed (%s)" % type(error).__name__
