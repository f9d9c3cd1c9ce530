"""Writes what is staged into the attempt's scratch directory: modes, owners, parents, never through a link."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

from .faults import PathRefused
from .paths import owned_dirs, split

__all__ = ["Scratch"]

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Scratch:
    """The attempt's directory. Only its owner can reach it, so what lies in it may be open to every user.

    (The container's user is often not ours: 0777 and 0666 below ``rw/`` are what lets it write.)
    """

    def __init__(self, attempt_dir: str, owner: Optional[Tuple[int, int]]) -> None:
        self.path = attempt_dir
        self.owner = owner if os.geteuid() == 0 else None

    @contextmanager
    def base(self) -> Iterator[int]:
        handle = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield handle
        finally:
            os.close(handle)

    def parts(self, place: str) -> List[str]:
        """Split a relative place of the plan; it must lie below ``rw/`` or ``ro/``."""
        parts = split("/" + place)
        if place.startswith("/") or len(parts) < 2 or parts[0] not in ("rw", "ro"):
            raise PathRefused("has the place '%s', which is not below rw/ or ro/" % place)
        return parts

    @contextmanager
    def directory(self, parts: List[str]) -> Iterator[int]:
        """Open a directory below the scratch, made with its parents if need be."""
        with self.base() as base:
            first = owned_dirs(base, parts[:1], 0o755)
            try:
                writable = parts[0] == "rw"
                here = owned_dirs(first, parts[1:], 0o777 if writable else 0o755, self.owner if writable else None)
            finally:
                os.close(first)
            try:
                yield here
            finally:
                os.close(here)

    def clear(self, parent: int, name: str) -> None:
        """Remove a file that an earlier try left; a directory in its place is refused."""
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise PathRefused("would take the place of a directory that another input made") from None
            raise

    @contextmanager
    def new_file(self, parts: List[str], mode: int) -> Iterator[int]:
        """Make a file (replacing what an earlier try left) and give it its mode and owner when it is whole."""
        with self.directory(parts[:-1]) as parent, self.new_file_in(parent, parts[-1], mode) as handle:
            yield handle

    @contextmanager
    def new_file_in(self, parent: int, name: str, mode: int) -> Iterator[int]:
        """`new_file` in a directory that is open already (by `directory`)."""
        try:
            handle = os.open(name, _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            self.clear(parent, name)
            handle = os.open(name, _NEW, 0o600, dir_fd=parent)
        try:
            yield handle
            os.fchmod(handle, mode)
            if self.owner is not None:
                os.fchown(handle, self.owner[0], self.owner[1])
        finally:
            os.close(handle)
