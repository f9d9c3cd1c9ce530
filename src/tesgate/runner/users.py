"""The users of a range, lent to attempts: no two attempts on one scratch have the same at a time.

A loan is a symbolic link ``users/UID -> external name``: made at once or not at all, and there after any death.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import replace
from typing import Container, Dict, Optional

from .plan import RunAs

__all__ = ["Users"]


class Users:
    """Loans in one directory. Short and synchronous."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def settled(self, name: str, run_as: RunAs) -> RunAs:
        """Return `run_as` with the one user that the attempt `name` has; as it is where none is free, or wanted.

        The same attempt always gets the same. Raises OSError.
        """
        if run_as.last_uid is None or run_as.uid is None:
            return run_as
        uid = self._lent(name)
        if uid is None:
            uid = self._lend(name, run_as.uid, run_as.last_uid)
        if uid is None:
            return run_as
        return replace(run_as, uid=uid, gid=uid if run_as.gid is None else run_as.gid, last_uid=None)

    def release(self, name: str) -> None:
        """Nothing of the attempt is left: another may have its user. Idempotent."""
        uid = self._lent(name)
        if uid is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, str(uid)))

    def sweep(self, living: Container[str]) -> None:
        """End the loans of attempts that are not there any more."""
        for uid, name in self._loans().items():
            if name not in living:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._directory, str(uid)))

    def _loans(self) -> Dict[int, str]:
        try:
            entries = os.listdir(self._directory)
        except FileNotFoundError:
            return {}
        found: Dict[int, str] = {}
        for entry in entries:
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    found[int(entry)] = os.readlink(os.path.join(self._directory, entry))
        return found

    def _lent(self, name: str) -> Optional[int]:
        return next((uid for uid, holder in self._loans().items() if holder == name), None)

    def _lend(self, name: str, first: int, last: int) -> Optional[int]:
        size = last - first + 1
        if size <= 0:
            return None
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        start = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big") % size
        taken = self._loans()
        for step in range(min(size, len(taken) + 1)):
            uid = first + (start + step) % size
            if uid not in taken:
                with contextlib.suppress(FileExistsError):
                    os.symlink(name, os.path.join(self._directory, str(uid)))
                    return uid
        return None
