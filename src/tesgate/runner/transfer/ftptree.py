"""What lies at a path of an FTP server: a file and its size, or a directory and what is in it."""

from __future__ import annotations

import ftplib
from typing import Iterator, Optional

from .ftpdata import list_lines
from .ftpfaults import FtpRefused, code_of
from .ftplist import Listed, read_list, read_mlsd
from .ftpsession import FtpSession

__all__ = ["MAX_ENTRIES", "is_there", "list_directory", "look_up", "size_of"]


MAX_ENTRIES = 2_000_000
"""A listing may have no end."""


def list_directory(session: FtpSession, path: str, *, most: Optional[int] = None) -> Iterator[Listed]:
    """List a directory whose path is absolute, without its own entries.

    It must be read to its end before the session is used again. Raises `FtpRefused` where it is no directory, or holds
    more than `most` entries.
    """
    # Listed from within: as an argument of LIST a name may be taken for options or a pattern.
    if not session.enter(path):
        raise FtpRefused("there is no such directory, or this user may not see it")
    for one in _entries(session, most):
        if one.kind != "self":
            yield one


def _entries(session: FtpSession, most: Optional[int] = None) -> Iterator[Listed]:
    limit = MAX_ENTRIES if most is None else most
    for count, one in enumerate(_unlimited(session)):
        # Those of the directory itself come on top.
        if count >= limit + 2:
            raise FtpRefused("the directory holds more than %d entries; pack it" % MAX_ENTRIES)
        yield one


def _unlimited(session: FtpSession) -> Iterator[Listed]:
    if "MLST" in session.features or "MLSD" in session.features:
        try:
            yield from read_mlsd(list_lines(session, "MLSD"))
            return
        except ftplib.error_perm as error:
            if code_of(error) not in (500, 501, 502, 504):
                raise
            session.features.pop("MLST", None)
            session.features.pop("MLSD", None)
    # Without -a many servers leave out what begins with a dot; others take it for a name and list nothing.
    any_there = False
    try:
        for one in read_list(list_lines(session, "LIST -a")):
            any_there = True
            yield one
    except (ftplib.error_perm, ftplib.error_temp):
        if session.broken or any_there:
            raise
    if not any_there:
        yield from read_list(list_lines(session, "LIST"))


def size_of(session: FtpSession, path: str) -> Optional[int]:
    """Return the size of a file in bytes, by SIZE or by a listing of its directory; None where nobody can tell.

    Raises 550 (`ftplib.error_perm`) where there is no such file.
    """
    size = session.length(path)
    if size is not None:
        return size
    parent, _, name = path.rpartition("/")
    for one in list_directory(session, parent or "/"):
        if one.name == name and one.kind == "file":
            size = one.size
    return size


def is_there(session: FtpSession, path: str) -> bool:
    """Say whether a file is there, as far as the server can tell."""
    try:
        return size_of(session, path) is not None
    except (ftplib.error_perm, FtpRefused):
        return False


def look_up(session: FtpSession, path: str, *, directory: bool) -> Optional[Listed]:
    """Find out what lies at an absolute path; None for nothing. `directory`: it is expected to be one."""
    name = path.rpartition("/")[2]
    if directory and session.enter(path):
        return Listed(name, "directory")
    try:
        size = session.length(path)
    except ftplib.error_perm as error:
        if code_of(error) not in (550, 553, 450):
            raise
        return Listed(name, "directory") if session.enter(path) else None
    if size is not None and not directory:
        return Listed(name, "file", size)
    if session.enter(path):
        return Listed(name, "directory")
    if size is not None:
        return Listed(name, "file", size)
    # A server without SIZE: its listing tells.
    parent = path.rpartition("/")[0]
    if not session.enter(parent or "/"):
        return None
    found: Optional[Listed] = None
    for one in _entries(session):
        if one.name == name:
            found = one
    return Listed(name, "file", found.size) if found is not None and found.kind != "directory" else found
