"""Files of one directory that are stored one by one but held together: a task may leave a hundred thousand of them."""

from __future__ import annotations

import errno
import os
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING, Iterator, Tuple

from .paths import open_file
from .urls import join

if TYPE_CHECKING:
    from .base import Entry

__all__ = ["FULL", "Folder", "State", "state_of"]

FULL = 256
"""Files of one folder; a directory with more has several."""
_BITS = (1 << 64) - 1

State = Tuple[int, int, int]
"""Inode, size and time of the last change of a file's content, each in 64 bits."""


def state_of(info: os.stat_result) -> State:
    """What would be otherwise if it were another file, or had other bytes."""
    # Not when the inode changed: another output of the same file may link it and set its mode.
    return info.st_ino & _BITS, info.st_size & _BITS, info.st_mtime_ns & _BITS


class Folder:
    """Some regular files of one directory, in the order of their names, with what its listing said of them.

    Each costs the bytes of its name and 25 more, where an entry of its own costs two kilobytes.
    """

    def __init__(self, entry: Entry, device: int) -> None:
        """`entry`: of the directory. `device`: on which its files lie."""
        self.entry = entry
        self.device = device
        self._names = bytearray()
        self._states = array("Q")

    def __len__(self) -> int:
        return len(self._states) // 3

    def add(self, name: str, info: os.stat_result) -> None:
        """Take in one more."""
        self._names += os.fsencode(name) + b"\0"
        self._states.extend(state_of(info))

    def __iter__(self) -> Iterator[Tuple[str, State]]:
        for index, name in enumerate(bytes(self._names).split(b"\0")[:-1]):
            inode, size, changed = self._states[3 * index : 3 * index + 3]
            yield os.fsdecode(name), (inode, size, changed)

    def path_of(self, name: str) -> str:
        """The container path of one."""
        return self.entry.path.rstrip("/") + "/" + name

    def url_of(self, name: str) -> str:
        """Where one goes."""
        return join(self.entry.url, [name])

    @contextmanager
    def opened(self, parent: int, name: str, *, ours: bool) -> Iterator[int]:
        """Open one, in its open directory. `ours`: see `open_dir`. Raises `PathRefused`, OSError."""
        handle = open_file(parent, name, ours=ours)
        try:
            if os.fstat(handle).st_dev != self.device:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
            yield handle
        finally:
            os.close(handle)
