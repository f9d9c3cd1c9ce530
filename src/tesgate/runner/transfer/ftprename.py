"""Renames on FTP servers: a file on its way to its name, each step of it, and what is left behind."""

from __future__ import annotations

import ftplib
import json
from dataclasses import dataclass, field
from typing import Callable, Dict, Optional, Union

from .base import Item
from .faults import StagingError
from .ftpfaults import FtpRefused, code_of
from .ftpsession import FtpSession
from .ftptree import is_there, size_of
from .ftpurl import FtpUrl
from .threads import Stop
from .urls import printable

__all__ = ["TRACE", "FtpItem", "NotTaken", "aside_name", "between", "can_tell", "joined"]
__all__ += ["parent_of", "rename_item", "size_or_none"]

TRACE = "ftp-part:"
"""Beginning of the names of temporary files in the journal."""


@dataclass
class FtpItem(Item):
    """One file (or, without `temporary`, one directory)."""

    spot: FtpUrl
    """Its server; the path is that of the output as the task has it."""
    url: str
    """The task's own, by which the login is found."""
    path: str
    """Where it goes: decoded, from the login directory or absolute."""
    temporary: str = ""
    beside: str = ""
    """The directory that holds the temporary file, once it was found."""
    stored: bool = False
    """Its bytes are all there, under the temporary name."""
    renaming: bool = False
    """The server was told to rename, and has not answered."""
    aside: bool = False
    """What was there before has been given `aside_name`."""
    learn: Optional[Callable[[FtpItem, Stop], None]] = field(default=None, repr=False)
    """Fills `habits`."""
    habits: Dict[str, str] = field(default_factory=dict)
    """What whoever removes the temporary file keeps to when the gateway says nothing any more: see `Logins.of`."""

    def begin(self, stop: Stop) -> None:
        """Ask how to speak with the server, so that it can be journalled. Raises `StagingError`, `Stopped`."""
        if self.temporary and self.learn is not None:
            self.learn(self, stop)

    @property
    def trace(self) -> Optional[str]:
        """Server, path, temporary name and habits; no password."""
        if not self.temporary:
            return None
        return TRACE + json.dumps([self.spot.server, self.path, self.temporary, self.habits])


class NotTaken(Exception):
    """A temporary file is there, but not taken under its last name."""

    def __init__(self, answer: Union[ftplib.error_perm, ftplib.error_temp]) -> None:
        super().__init__(str(answer))
        self.answer = answer
        self.code = code_of(answer)


def aside_name(temporary: str) -> str:
    """Name what was there before while another file takes its place; `is_temporary` knows the name."""
    return ".tesgate-old" + temporary[len(".tesgate") :]


def rename_item(session: FtpSession, item: FtpItem, source: str, target: str, covered: Callable[[], None]) -> None:
    """Rename, if an earlier try that was not answered has not done it. Raises `NotTaken` where RNTO is refused."""
    try:
        answer = session.sendcmd("RNFR " + source)
    except ftplib.error_perm:
        if item.renaming and size_or_none(session, source) is None and size_or_none(session, target) == item.size:
            return
        if can_tell(session) and not is_there(session, source):
            raise StagingError(
                "output %s: its temporary file on the server was removed by somebody before it was published."
                % printable(item.entry.path),
                transient=True,
            ) from None
        raise
    if answer[:1] != "3":
        raise ftplib.error_reply(answer)
    # The server may have taken its time.
    between(session, covered)
    item.renaming = True
    try:
        session.voidcmd("RNTO " + target)
    except ftplib.error_perm as error:
        item.renaming = False
        raise NotTaken(error) from error
    except ftplib.error_temp as error:
        item.renaming = False
        # pure-ftpd's answer to whatever the system refuses.
        if code_of(error) == 451:
            raise NotTaken(error) from error
        raise


def between(session: FtpSession, covered: Callable[[], None]) -> None:
    """Look at the lease between the halves of a rename. Where it is lost, nobody goes on with the session.

    Some servers take nothing but the second half after the first.
    """
    try:
        covered()
    except BaseException:
        session.broken = True
        raise


def can_tell(session: FtpSession) -> bool:
    """Whether the server says how long a file is."""
    return "SIZE" in session.features or "MLST" in session.features


def size_or_none(session: FtpSession, path: str) -> Optional[int]:
    """Bytes of the file at the path; None where there is none, or the server does not say."""
    try:
        return size_of(session, path)
    except (ftplib.error_perm, FtpRefused):
        return None


def parent_of(path: str) -> str:
    """The directory of a path; ``/`` has itself."""
    return path.rpartition("/")[0] or "/"


def joined(directory: str, name: str) -> str:
    """The path of a name in a directory."""
    return directory.rstrip("/") + "/" + name
