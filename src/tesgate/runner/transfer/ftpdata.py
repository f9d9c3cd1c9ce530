"""Moves the bytes of one file or listing over a session's data connection, and says how far it came."""

from __future__ import annotations

import contextlib
import ftplib
import os
import re
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
_CUT_SHORT = re.compile(r"truncated", re.IGNORECASE)
"""In what a server says after a listing: pure-ftpd ends all of them at so many entries."""
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
        self.sock, self._watch = session.connect_data()
        try:
            if offset:
                session.sendcmd("REST %d" % offset)
            answer = session.sendcmd(command)
            # Some say 200 before the 150.
            if answer[:1] == "2":
                answer = session.getresp()
            if answer[:1] != "1":
                raise ftplib.error_reply(answer)
            session.broken = True
            self.sock = session.protect_data(self.sock, self._watch)
        except BaseException:
            self.close()
            raise

    def read(self, buffer: memoryview) -> int:
        try:
            return self.sock.recv_into(buffer)
        except BlockingIOError:
            raise socket.timeout("the server sends nothing") from None

    def farewell(self, *, drain: bool) -> None:
        """Say in TLS that nothing more comes; in the clear, closing says so. With `drain`, wait until all is taken.

        To close while something of the server's is unread (TLS tickets) would tear down what is still under way to it.
        """
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.sock.setblocking(False)
                with contextlib.suppress(ssl.SSLError):
                    self.sock.unwrap()
                socket.socket.shutdown(self.sock, socket.SHUT_WR)
                if drain:
                    self._drain()
        self._session.stop.check()

    def _drain(self) -> None:
        deadline = time.monotonic() + _FAREWELL
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        while time.monotonic() < deadline:
            # Beneath the TLS.
            if poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and not socket.socket.recv(self.sock, 1 << 16):
                break

    def close(self) -> None:
        self._watch.close()
        self.sock.close()


def _last_word(session: FtpSession, *, complete: bool) -> str:
    """Read the final reply, and return it. If it does not come though all bytes did, the session is of no more use.

    Raises what the server says, and what becomes of the connection.
    """
    session.patience = session.settings.reply_timeout if complete else session.settings.read_timeout
    try:
        answer = session.getresp()
    except (ftplib.error_temp, ftplib.error_perm) as error:
        session.broken = code_of(error) == 421
        raise
    finally:
        session.patience = session.settings.read_timeout
    if answer[:1] != "2":
        raise ftplib.error_reply(answer)
    session.broken = False
    return answer


def receive(session: FtpSession, path: str, target: int, progress: Progress, shown: str) -> None:
    """Append to a local file from ``progress.offset`` on. `progress` is right however this ends.

    `progress.total` decides whether the file came whole; the server's last word does where it is not known.
    """
    data = _Data(session, "RETR " + path, progress.offset)
    try:
        # For a small file a small one: the kernel has to clear its pages each time.
        left = _BUFFER if progress.total is None else max(progress.total - progress.offset, 0) + 1
        buffer = memoryview(bytearray(min(_BUFFER, max(left, 1 << 14))))
        stop = session.stop
        while True:
            count = data.read(buffer)
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
        try:
            if isinstance(data.sock, ssl.SSLSocket):
                offset = _send_secretly(data.sock, source, offset, progress.total, session)
            else:
                offset = _send_file(data.sock, source, offset, progress.total, session)
        except OSError as error:
            session.stop.check()
            _why_refused(session, error)
        # In the clear a server sends nothing back, and its last word says when it has everything.
        data.farewell(drain=True)
    finally:
        data.close()
    if offset != progress.total:
        raise FtpPassing("the file became shorter while it was sent")
    try:
        _last_word(session, complete=True)
    except (OSError, EOFError):
        session.stop.check()


def _send_file(sock: socket.socket, source: int, offset: int, total: int, session: FtpSession) -> int:
    while offset < total:
        session.stop.check()
        try:
            count = os.sendfile(sock.fileno(), source, offset, min(_SENT, total - offset))
        except BlockingIOError:
            raise socket.timeout("the server takes nothing") from None
        if not count:
            break
        offset += count
    return offset


def _send_secretly(sock: ssl.SSLSocket, source: int, offset: int, total: int, session: FtpSession) -> int:
    buffer = memoryview(bytearray(min(_TLS_BUFFER, max(total - offset, 1))))
    while offset < total:
        session.stop.check()
        count = os.preadv(source, [buffer[: total - offset]], offset)
        if not count:
            break
        sock.sendall(buffer[:count])
        offset += count
    return offset


def _why_refused(session: FtpSession, error: OSError) -> None:
    """Say what the server has to say about a connection that it closed in the middle (a quota, a full disk)."""
    session.patience = min(5.0, session.settings.reply_timeout)
    try:
        session.getresp()
    except (ftplib.error_temp, ftplib.error_perm):
        raise
    except (ftplib.Error, OSError, EOFError):
        raise error from None
    finally:
        session.patience = session.settings.read_timeout
    raise error


def list_lines(session: FtpSession, command: str) -> Iterator[bytes]:
    """Yield the lines of a listing.

    Raises `FtpPassing` where it ends in the middle of a line, `FtpRefused` for one that is longer than any can be, and
    where the server says that it left entries out.
    """
    data = _Data(session, command, 0)
    try:
        rest = b""
        buffer = memoryview(bytearray(1 << 16))
        while count := data.read(buffer):
            session.stop.check()
            lines: List[bytes] = (rest + buffer[:count]).split(b"\n")
            rest = lines.pop()
            if any(len(line) > _LONGEST_LINE for line in (*lines, rest)):
                raise FtpRefused("the server's listing has a line that is too long to be an entry's")
            for line in lines:
                yield line.rstrip(b"\r")
        session.stop.check()
        data.farewell(drain=False)
    finally:
        data.close()
    if _CUT_SHORT.search(_last_word(session, complete=False)):
        raise FtpRefused("the server lists only a part of it; have its limit raised, or pack the directory")
    if rest:
        raise FtpPassing("the server's listing was cut off")
