"""Reads directory listings: MLSD (RFC 3659), and LIST in the forms of Unix and of DOS. No I/O."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterable, Iterator, Optional

from .ftpfaults import FtpRefused

__all__ = ["Listed", "read_list", "read_mlsd"]

_UNIX = re.compile(
    r"^([bcdlpsD-])[rwxsStTlL-]{9}\S*\s+.*?\s(\d+)\s+"
    r"(?:\S{1,12}\s+\d{1,2}\.?\s+(?:\d{1,2}:\d{2}|\d{4})|\d{1,2}\.?\s+\S{1,12}\s+(?:\d{1,2}:\d{2}|\d{4})"
    r"|\d{4}-\d{2}-\d{2}\s+\d{2}:\d{2}(?::\d{2}\S*)?)\s(.+)$"
)
_DOS = re.compile(r"^\d{2,4}[-/]\d{2}[-/]\d{2,4}\s+\d{1,2}:\d{2}\s*(?:[AaPp][Mm])?\s+(<[A-Z]+>|\d+)\s+(.+)$")


@dataclass(frozen=True)
class Listed:
    """One entry; `name` has surrogates for what is no UTF-8."""

    name: str
    kind: str
    """``file``, ``directory``, ``link`` (to nobody knows what), ``other``; ``self``: the directory's own entries."""
    size: Optional[int] = None


def read_mlsd(lines: Iterable[bytes]) -> Iterator[Listed]:
    """Read an MLSD listing. Raises `FtpRefused` for what is none."""
    for raw in lines:
        facts, space, name = os.fsdecode(raw).partition(" ")
        if not space or not name:
            raise FtpRefused("the server's listing cannot be understood")
        known = {}
        for fact in facts.split(";"):
            key, _, value = fact.partition("=")
            known[key.lower()] = value
        kind = known.get("type", "").lower()
        size = known.get("size", "")
        if kind in ("cdir", "pdir") or name in (".", ".."):
            yield Listed(name, "self")
        elif kind == "dir":
            yield Listed(name, "directory")
        elif kind == "file":
            yield Listed(name, "file", int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None)
        elif "link" in kind:
            yield Listed(name, "link")
        else:
            yield Listed(name, "other")


def read_list(lines: Iterable[bytes]) -> Iterator[Listed]:
    """Read a LIST listing. Raises `FtpRefused` for a line that cannot be understood: nothing may be left out."""
    for raw in lines:
        text = os.fsdecode(raw)
        if not text.strip() or re.match(r"^total \S+$", text):
            continue
        unix = _UNIX.match(text)
        if unix is not None:
            letter, size, name = unix.groups()
            if letter == "l":
                yield Listed(name.partition(" -> ")[0], "link")
            elif name in (".", ".."):
                yield Listed(name, "self")
            elif letter == "d":
                yield Listed(name, "directory")
            else:
                yield Listed(name, "file" if letter == "-" else "other", int(size))
            continue
        dos = _DOS.match(text)
        if dos is None:
            raise FtpRefused("the server's listing cannot be understood")
        size, name = dos.groups()
        if name in (".", ".."):
            yield Listed(name, "self")
        elif size.isdigit():
            yield Listed(name, "file", int(size))
        else:
            yield Listed(name, "directory" if size == "<DIR>" else "link")
