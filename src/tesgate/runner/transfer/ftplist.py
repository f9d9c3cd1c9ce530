"""Reads directory listings: MLSD (RFC 3659), and LIST in the forms of Unix and of DOS. No I/O."""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import Iterable, Iterator, NamedTuple, Optional, Tuple

from .ftpfaults import FtpRefused

__all__ = ["Listed", "read_list", "read_mlsd"]

# Each is asked of one word of a line, never of a line: what a server writes must not cost more than its length.
_MODE = re.compile(r"([bcdlpsD-])[rwxsStTlL-]{9}\S*")
_SIZE = re.compile(r"[0-9]{1,18}")
_MONTH = re.compile(r"\S{1,12}")
_DAY = re.compile(r"[0-9]{1,2}\.?")
_YEAR = re.compile(r"[0-9]{1,2}:[0-9]{2}|[0-9]{4}")
_ISO_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ISO_TIME = re.compile(r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}\S*)?")
_DATES = ((_MONTH, _DAY, _YEAR), (_DAY, _MONTH, _YEAR), (_ISO_DAY, _ISO_TIME))
_MOST_WORDS = 40
"""Before a name: names of users and groups may be of several."""
_DOS_DAY = re.compile(r"[0-9]{2,4}[-/][0-9]{2}[-/][0-9]{2,4}")
_DOS_TIME = re.compile(r"[0-9]{1,2}:[0-9]{2}(?:[AaPp][Mm])?")
_DOS_SIZE = re.compile(r"<[A-Z]+>|[0-9]{1,18}")


class Listed(NamedTuple):
    """One entry; `name` has surrogates for what is no UTF-8. A tuple: millions are held."""

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
        unix = _unix(text)
        if unix is not None:
            letter, size, name = unix
            if letter == "l":
                yield Listed(name.partition(" -> ")[0], "link")
            elif name in (".", ".."):
                yield Listed(name, "self")
            elif letter == "d":
                yield Listed(name, "directory")
            else:
                yield Listed(name, "file" if letter == "-" else "other", int(size))
            continue
        dos = _dos(text)
        if dos is None:
            raise FtpRefused("the server's listing cannot be understood")
        size, name = dos
        if name in (".", ".."):
            yield Listed(name, "self")
        elif size.isdigit():
            yield Listed(name, "file", int(size))
        else:
            yield Listed(name, "directory" if size == "<DIR>" else "link")


def _unix(text: str) -> Optional[Tuple[str, str, str]]:
    """Take a line of ``ls -l`` apart: the kind's letter, the size, the name (which may begin with a space)."""
    words = list(islice(re.finditer(r"\S+", text), _MOST_WORDS))
    mode = _MODE.fullmatch(words[0].group())
    if mode is None or words[0].start():
        return None
    for at in range(2, len(words)):
        if not _SIZE.fullmatch(words[at].group()):
            continue
        for date in _DATES:
            found = words[at + 1 : at + 1 + len(date)]
            if len(found) == len(date) and all(form.fullmatch(word.group()) for form, word in zip(date, found)):
                name = text[found[-1].end() + 1 :]
                if name:
                    return mode.group(1), words[at].group(), name
    return None


def _dos(text: str) -> Optional[Tuple[str, str]]:
    """Take a line of DOS apart: the size, or what stands in its place, and the name."""
    words = text.split(None, 3)
    if len(words) == 4 and words[2].upper() in ("AM", "PM"):
        words = [*words[:2], *words[3].split(None, 1)]
    if len(words) < 4 or text[:1].isspace():
        return None
    day, clock, size, name = words
    forms = ((_DOS_DAY, day), (_DOS_TIME, clock), (_DOS_SIZE, size))
    return (size, name) if all(form.fullmatch(word) for form, word in forms) else None
