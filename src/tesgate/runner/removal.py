"""Removes a tree that a task has made: whatever its depth, size and modes, and wherever its links lead."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import Optional, Tuple

__all__ = ["remove_tree"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEVELS = 64
"""What lies deeper is moved up before it is removed: neither descriptors nor the stack grow with a task's depth."""


def remove_tree(path: str) -> None:
    """Remove a tree of any depth, size and modes, links never followed; idempotent.

    All that can be removed is; raises OSError for the rest (files of another user).
    """
    try:
        top = _enter(path, None)
    except FileNotFoundError:
        return
    try:
        while True:
            found, left = _empty(top, top, 0)
            if left is not None and not found:
                raise left
            if not found:
                break
    finally:
        os.close(top)
    os.rmdir(path)


def _enter(name: str, parent: Optional[int]) -> int:
    """Open a directory, with all rights on it where it is ours."""
    try:
        here = os.open(name, _DIRECTORY, dir_fd=parent)
    except PermissionError:
        place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod("/proc/self/fd/%d" % place, 0o700)
        finally:
            os.close(place)
        here = os.open(name, _DIRECTORY, dir_fd=parent)
    with contextlib.suppress(OSError):
        os.fchmod(here, 0o700)
    return here


def _empty(here: int, top: int, depth: int) -> Tuple[int, Optional[OSError]]:
    """Go once through a directory: how many entries went, and why (some of) the others did not."""
    gone, fault = 0, None
    with os.scandir(here) as entries:
        for entry in entries:
            try:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=here)
                elif depth >= _LEVELS:
                    os.rename(entry.name, ".deep-" + secrets.token_hex(8), src_dir_fd=here, dst_dir_fd=top)
                else:
                    _remove_directory(entry.name, here, top, depth)
                gone += 1
            except FileNotFoundError:
                gone += 1
            except OSError as exc:
                fault = exc
    return gone, fault


def _remove_directory(name: str, parent: int, top: int, depth: int) -> None:
    inner = _enter(name, parent)
    try:
        while True:
            gone, fault = _empty(inner, top, depth + 1)
            if fault is not None and not gone:
                raise fault
            if not gone:
                break
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=parent)
