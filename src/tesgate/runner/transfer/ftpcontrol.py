"""Commands and replies on one control connection: lines, patience, and several commands at a time."""

from __future__ import annotations

import contextlib
import ftplib
import socket
from typing import List, Optional, Sequence, Union

from .ftpfaults import FtpPassing, FtpRefused, code_of
from .ftpsockets import be_patient
from .ftpurl import is_line
from .threads import Stop

__all__ = ["Control", "Reply"]

_MOST_LINES = 1000
"""Of one reply."""
_CHUNK = 8192
_PROBE = 10.0
"""Seconds in which a server must answer two commands that came together."""
_MOST_TOGETHER, _MOST_BYTES = 16, 2048
"""Commands and bytes that are under way at a time: what the smallest buffers of servers hold."""

Reply = Union[str, ftplib.error_perm, ftplib.error_temp]


class Control(ftplib.FTP):
    """Replies are parsed by ftplib; names are octets. Not for two threads at a time."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self.stop = stop
        self.broken = True
        """Nobody may go on with it: a reply is outstanding, or the connection is gone."""
        self.reused = False
        """It was kept for a while: the server may have ended it meanwhile."""
        self.patience = 60.0
        """Longest silence of the server in a reply (seconds)."""
        self._tick = self.patience
        self._bound = self.patience
        """What the connection's own waits are bounded by now (seconds)."""
        self._kernel = False
        self._rest = bytearray()
        self._lines = 0

    def listen(self, sock: socket.socket, tick: float, *, kernel: bool) -> None:
        """Speak over this connection from now on. What was read of another one and not used yet is forgotten.

        `tick`: seconds after which a wait is looked at (see `patience`). `kernel`: it is in the clear.
        """
        self.sock = sock
        self._rest.clear()
        self._tick, self._kernel = tick, kernel
        self._bind_waits(tick)

    def _bind_waits(self, seconds: float) -> None:
        assert self.sock is not None
        if self._kernel:
            be_patient(self.sock, seconds)
        else:
            self.sock.settimeout(seconds)
        self._bound = seconds

    def putline(self, line: str) -> None:
        self._put(self._encoded(line))

    @staticmethod
    def _encoded(line: str) -> bytes:
        if not is_line(line):
            raise FtpRefused("a name holds a line break or a NUL character, which FTP cannot transport")
        return line.encode("utf-8", "surrogateescape") + b"\r\n"

    def _put(self, data: bytes) -> None:
        assert self.sock is not None
        try:
            self.sock.sendall(data)
        except BlockingIOError:
            raise socket.timeout("the server takes nothing") from None

    def getline(self) -> str:
        self._lines += 1
        if self._lines > _MOST_LINES:
            raise ftplib.Error("a reply without end")
        start = 0
        while (end := self._rest.find(b"\n", start)) < 0:
            start = len(self._rest)
            if start > self.maxline:
                raise ftplib.Error("got more than %d bytes" % self.maxline)
            chunk = self._receive()
            if not chunk:
                if not self._rest:
                    raise EOFError
                end = start
                break
            self._rest += chunk
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        if len(line) > self.maxline:
            raise ftplib.Error("got more than %d bytes" % self.maxline)
        return line.decode("utf-8", "surrogateescape").rstrip("\r")

    def _receive(self) -> bytes:
        assert self.sock is not None
        left = self.patience
        try:
            while True:
                span = min(self._tick, left)
                if span != self._bound:
                    self._bind_waits(span)
                try:
                    return self.sock.recv(_CHUNK)
                except (socket.timeout, BlockingIOError):
                    left -= span
                    if left <= 0:
                        raise socket.timeout("the server says nothing") from None
                    self.stop.check()
        finally:
            if self._bound != self._tick:
                self._bind_waits(self._tick)

    def getresp(self) -> str:
        """Get a reply; one that does not come whole breaks the session."""
        before, self.broken = self.broken, True
        self._lines = 0
        try:
            answer = super().getresp()
        except (ftplib.error_temp, ftplib.error_perm) as error:
            self.broken = before or code_of(error) == 421
            raise
        self.broken = before
        return answer

    def putcmd(self, line: str) -> None:
        before, self.broken = self.broken, True
        super().putcmd(line)
        self.broken = before

    # -- several at a time -------------------------------------------------------------------------------------

    def put_together(self, commands: Sequence[str]) -> None:
        """Send commands in one go; for each a `getresp` is due. Only for those that move nothing, and with `bears`."""
        data = b"".join(map(self._encoded, commands))
        before, self.broken = self.broken, True
        self._put(data)
        self.broken = before

    def bears(self, known: Optional[bool]) -> bool:
        """Find out whether the server answers commands that come together, as RFC 959 asks for, by two that do nothing.

        Some forget what came with the first, or take all of it for one. Raises `FtpPassing` for those: the session is
        of no more use.
        """
        if known is not None:
            return known
        patience, self.patience = self.patience, min(self.patience, _PROBE)
        try:
            self.put_together(["NOOP", "NOOP"])
            for _ in range(2):
                with contextlib.suppress(ftplib.error_perm, ftplib.error_temp):
                    self.getresp()
                if self.broken:
                    raise EOFError
        except (ftplib.Error, OSError, EOFError) as error:
            self.stop.check()
            self.broken = True
            raise FtpPassing("the server does not take commands that come together") from error
        finally:
            self.patience = patience
        return True

    def ask_together(self, commands: Sequence[str]) -> List[Reply]:
        """Return the replies to questions, of which some are under way at a time."""
        replies: List[Reply] = []
        waiting: List[str] = []
        size = 0
        for command in commands:
            length = len(self._encoded(command))
            if waiting and (len(waiting) >= _MOST_TOGETHER or size + length > _MOST_BYTES):
                replies += self._ask(waiting)
                waiting, size = [], 0
            waiting.append(command)
            size += length
        return replies + self._ask(waiting)

    def _ask(self, commands: Sequence[str]) -> List[Reply]:
        if commands:
            self.put_together(commands)
        return [self._reply() for _ in commands]

    def _reply(self) -> Reply:
        try:
            return self.getresp()
        except (ftplib.error_perm, ftplib.error_temp) as error:
            if self.broken:
                raise
            return error
