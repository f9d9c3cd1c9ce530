"""Moves the bytes of one file or listing over a session's data connection, and says how far it came."""

from __future__ import annotations

import contextlib
import errno
import ftplib
import os
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Iterator, List, Optional

from .faults import os_fault
from .ftpfaults import FtpPassing, FtpRefused, code_of
from .ftpsession import FtpSession

__all__ = ["Progress", "list_lines", "receive", "send"]

_BUFFER = 1 << 20
_SENT = 4 << 20
"""Bytes that the kernel is given in one call."""
_TLS_BUFFER = 256 << 10
_FAREWELL = 10.0
"""How long a server may take to close a connection over which everything came (seconds)."""
_LONGEST_LINE = 4608
"""Bytes of one line of a listing: the longest path that Linux knows (of a link), and what stands before it."""


@dataclass
class Progress:
    """How much of one file is on the other side."""

    offset: int = 0
    total: Optional[int] = None
    stamp: Optional[str] = None
    """When the file was changed last, as the server writes it."""
    begun: bool = False
    """Something was sent or asked for already: a further try may go on with it."""


class _Data:
    """One data connection, from the command's preliminary reply to the last word."""

    def __init__(self, session: FtpSession, command: str, offset: int) -> None:
        self._session = session
        self.raw, self._guard = session.connect_data()
        self.sock = self.raw
        self._twin: Optional[socket.socket] = None
        try:
            self.raw.settimeout(session.settings.read_timeout)
            if offset:
                session.sendcmd("REST %d" % offset)
            answer = session.sendcmd(command)
            # Some say 200 before the 150.
            if answer[:1] == "2":
                answer = session.getresp()
            if answer[:1] != "1":
                raise ftplib.error_reply(answer)
            session.broken = True
            self._twin = self.raw.dup()
            self.sock = session.protect_data(self.raw)
        except BaseException:
            self.close()
            raise

    @property
    def is_plain(self) -> bool:
        return not isinstance(self.sock, ssl.SSLSocket)

    def farewell(self, *, drain: bool) -> None:
        """Say that nothing more comes. With `drain`, wait until the server has taken everything.

        To close while something of the server's is unread (TLS tickets) would tear down what is still under way to it.
        """
        assert self._twin is not None
        with contextlib.suppress(OSError, ValueError):
            self.sock.setblocking(False)
            if isinstance(self.sock, ssl.SSLSocket):
                with contextlib.suppress(ssl.SSLError):
                    self.sock.unwrap()
            self._twin.shutdown(socket.SHUT_WR)
            if drain:
                self._twin.setblocking(False)
                deadline = time.monotonic() + _FAREWELL
                poll = select.poll()
                poll.register(self._twin, select.POLLIN)
                while time.monotonic() < deadline:
                    if poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and not self._twin.recv(1 << 16):
                        break
        self._session.stop.check()

    def close(self) -> None:
        self._guard.close()
        if self._twin is not None:
            self._twin.close()
        self.sock.close()
        self.raw.close()


def _last_word(session: FtpSession, *, complete: bool) -> None:
    """Read the final reply. If it does not come though all bytes did, the session is of no more use.

    Raises what the server says, and what becomes of the connection.
    """
    assert session.sock is not None
    if complete:
        session.sock.settimeout(session.settings.reply_timeout)
    try:
        answer = session.getresp()
    except (ftplib.error_temp, ftplib.error_perm) as error:
        session.broken = code_of(error) == 421
        raise
    if answer[:1] != "2":
        raise ftplib.error_reply(answer)
    session.sock.settimeout(session.settings.read_timeout)
    session.broken = False


def receive(session: FtpSession, path: str, target: int, progress: Progress, shown: str) -> None:
    """Append to a local file from ``progress.offset`` on. `progress` is right however this ends.

    `progress.total` decides whether the file came whole; the server's last word does where it is not known.
    """
    data = _Data(session, "RETR " + path, progress.offset)
    try:
        buffer = memoryview(bytearray(_BUFFER))
        stop = session.stop
        while True:
            count = data.sock.recv_into(buffer)
            if not count:
                break
            _write(target, buffer[:count], progress, shown)
            stop.check()
        stop.check()  # a stop looks like the end of the file
        data.farewell(drain=False)
    finally:
        data.close()
    complete = progress.total is not None and progress.offset == progress.total
    try:
        _last_word(session, complete=complete)
    except (ftplib.Error, OSError, EOFError):
        stop.check()
        if not complete:
            raise


def _write(target: int, view: memoryview, progress: Progress, shown: str) -> None:
    try:
        while view:
            count = os.pwrite(target, view, progress.offset)
            progress.offset += count
            view = view[count:]
    except OSError as error:
        raise os_fault(error, "input %s could not be written" % shown) from error


def send(session: FtpSession, path: str, source: int, progress: Progress, *, append: bool = False) -> None:
    """Send a local file from ``progress.offset`` to ``progress.total`` (which must be set).

    Returns also where the server says nothing any more after all bytes went out (the session is then broken).
    """
    assert progress.total is not None
    offset = progress.offset
    command = "APPE " if append else "STOR "
    data = _Data(session, command + path, 0 if append else offset)
    progress.begun = True
    try:
        poll = select.poll()
        poll.register(data.raw if data.is_plain else data.sock, select.POLLOUT)
        try:
            while offset < progress.total:
                session.stop.check()
                if data.is_plain:
                    offset += _send_file(data.sock, source, offset, progress.total, poll, session)
                    continue
                piece = os.pread(source, min(_TLS_BUFFER, progress.total - offset), offset)
                if not piece:
                    break
                data.sock.sendall(piece)
                offset += len(piece)
        except OSError as error:
            session.stop.check()
            _why_refused(session, error)
        # In the clear a server sends nothing back, and its last word says when it has everything.
        data.farewell(drain=not data.is_plain)
    finally:
        data.close()
    if offset != progress.total:
        raise FtpPassing("the file became shorter while it was sent")
    try:
        _last_word(session, complete=True)
    except (OSError, EOFError):
        session.stop.check()


def _send_file(
    sock: socket.socket, source: int, offset: int, total: int, poll: select.poll, session: FtpSession
) -> int:
    while True:
        try:
            count = os.sendfile(sock.fileno(), source, offset, min(_SENT, total - offset))
        except BlockingIOError:
            if not poll.poll(session.settings.read_timeout * 1000):
                raise socket.timeout("the server takes nothing") from None
            continue
        if not count:
            raise OSError(errno.ENODATA, "the file became shorter while it was sent")
        return count


def _why_refused(session: FtpSession, error: OSError) -> None:
    """Say what the server has to say about a connection that it closed in the middle (a quota, a full disk)."""
    assert session.sock is not None
    session.sock.settimeout(min(5.0, session.settings.reply_timeout))
    try:
        session.getresp()
    except (ftplib.error_temp, ftplib.error_perm):
        raise
    except (ftplib.Error, OSError, EOFError):
        raise error from None
    raise error


def list_lines(session: FtpSession, command: str) -> Iterator[bytes]:
    """Yield the lines of a listing.

    Raises `FtpPassing` where it ends in the middle of a line, `FtpRefused` for one that is longer than any can be.
    """
    data = _Data(session, command, 0)
    try:
        rest = b""
        while True:
            chunk = data.sock.recv(1 << 16)
            if not chunk:
                break
            session.stop.check()
            lines: List[bytes] = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if any(len(line) > _LONGEST_LINE for line in (*lines, rest)):
                raise FtpRefused("the server's listing has a line that is too long to be an entry's")
            for line in lines:
                yield line.rstrip(b"\r")
        session.stop.check()
        data.farewell(drain=False)
    finally:
        data.close()
    _last_word(session, complete=False)
    if rest:
        raise FtpPassing("the server's listing was cut off")
