"""Where the pieces of one attempt lie on the host, and how they are made and opened safely."""

from __future__ import annotations

import errno
import os
import stat
from typing import List, Optional, Sequence

from .plan import Plan
from .transfer.faults import PathRefused
from .transfer.live import Bound
from .transfer.paths import open_dir, open_file, owned_dirs, split
from .transfer.view import host_path

__all__ = ["make_control", "make_places", "open_place", "read_control", "step_dir"]


def step_dir(attempt_dir: str, index: int) -> str:
    """Return the control directory of executor `index`."""
    return os.path.join(attempt_dir, "steps", str(index))


def make_control(attempt_dir: str, index: int) -> str:
    """Make the control directory of executor `index`, writable by whoever the executor is; idempotent."""
    path = step_dir(attempt_dir, index)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise
    os.chmod(path, 0o777)
    return path


def open_place(attempt_dir: str, place: str) -> int:
    """Open a regular file of the attempt for reading. No component may be a link: the task could have put one there.

    Raises OSError or `PathRefused`.
    """
    parts = split(place)
    base = os.open(attempt_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent = open_dir(base, parts[:-1])
    finally:
        os.close(base)
    try:
        return open_file(parent, parts[-1])
    finally:
        os.close(parent)


def read_control(attempt_dir: str, index: int, name: str, limit: int) -> Optional[bytes]:
    """Read at most `limit` + 1 bytes of a file in a control directory; None where there is none.

    Raises `PathRefused` where the task has put something else there than a plain file.
    """
    try:
        handle = open_place(attempt_dir, "steps/%d/%s" % (index, name))
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise PathRefused("cannot be opened (%s)" % os.strerror(exc.errno or 0)) from exc
    try:
        data = b""
        while len(data) <= limit:
            piece = os.read(handle, limit + 1 - len(data))
            if not piece:
                break
            data += piece
        return data
    finally:
        os.close(handle)


def make_places(plan: Plan, attempt_dir: str, bound: Sequence[Bound] = ()) -> None:
    """After stage-in, make what the executors need and staging did not put there. Raises OSError, `PathRefused`.

    `bound`: what is mounted from roots. Inside a mount of our own it needs something to be mounted over.
    """
    base = os.open(attempt_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        staged = {item.place for item in plan.inputs}
        for mount in plan.mounts:
            if mount.host is not None:
                continue
            parts = _beneath(mount.source)
            if _there(attempt_dir, parts):
                if mount.directory and mount.source not in staged and parts[0] == "rw":
                    # Staging made it merely to put inputs into it.
                    _directory(base, parts, mount.mode)
                continue
            if mount.directory:
                _directory(base, parts, mount.mode)
            else:
                _file(base, parts)
        for place in plan.directories:
            _directory(base, _beneath(place), 0o777)
        own = [mount for mount in plan.mounts if mount.host is None]
        for item in bound:
            if any(item.target.startswith(mount.target + "/") for mount in own):
                parts = _beneath(host_path(item.target, own))
                if item.directory:
                    _directory(base, parts, 0o777)
                elif not _there(attempt_dir, parts):
                    _file(base, parts)
    finally:
        os.close(base)


def _beneath(place: str) -> List[str]:
    parts = split(place)
    if not parts or parts[0] not in ("rw", "ro"):
        raise PathRefused("does not lie below rw/ or ro/")
    return parts


def _there(attempt_dir: str, parts: List[str]) -> bool:
    return os.path.lexists(os.path.join(attempt_dir, *parts))


def _file(base: int, parts: List[str]) -> None:
    parent = owned_dirs(base, parts[:-1], 0o755)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(parts[-1], flags, 0o600, dir_fd=parent)
        os.fchmod(handle, 0o666)
        os.close(handle)
    finally:
        os.close(parent)


def _directory(base: int, parts: List[str], mode: int) -> None:
    os.close(owned_dirs(base, parts[:1], 0o755))
    handle = owned_dirs(base, parts, mode if parts[0] == "rw" else 0o755)
    try:
        os.fchmod(handle, mode)
    finally:
        os.close(handle)
