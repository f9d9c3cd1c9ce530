"""The journal of one attempt: what was begun and what is done, so that a new start knows where to go on."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
import time
from typing import Any, Dict, List, Optional

from . import clock

__all__ = ["Entry", "Journal", "set_aside"]

Entry = Dict[str, Any]

RESERVED = 128 << 10
"""Bytes that a journal may grow by although the disk is full: enough to say how the attempt ended."""
_KEEP_SIZE = 1
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class Journal:
    """JSON lines, appended. Every entry has ``what``, ``at`` (seconds of the wall clock) and ``up`` (`clock.now`).

    Room for what is still to come is set aside: a disk that the task itself has filled must not keep it from ending.

    An appended entry survives the death of the process at once; `sync` makes it (and all before it, and the names
    of the attempt's own files) survive the death of the host too. That is needed where something begins that must
    never begin twice; elsewhere a lost entry only repeats work that may be repeated.
    """

    def __init__(self, path: str) -> None:
        """Open the journal at `path`, made if missing; a last line torn by a crash is cut off. Raises OSError."""
        self.path = path
        self.entries: List[Entry] = []
        self._lock = threading.Lock()
        self._room = 0  # up to this size of the file, the disk has room for certain
        self._fd: Optional[int] = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            self._load(self._fd)
            self._set_aside(os.fstat(self._fd).st_size)
        except BaseException:
            self.close()
            raise

    def _load(self, fd: int) -> None:
        pieces: List[bytes] = []
        while True:
            piece = os.read(fd, 1 << 20)
            if not piece:
                break
            pieces.append(piece)
        whole = b"".join(pieces)
        good = 0
        for line in whole.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                break
            if not isinstance(entry, dict) or not (
                isinstance(entry.get("what"), str) and isinstance(entry.get("at"), (int, float))
            ):
                break
            self.entries.append(entry)
            good += len(line)
        if good != len(whole):
            # Whatever follows a torn line was written after it, hence is no more certain than the line itself.
            os.ftruncate(fd, good)

    def append(self, what: str, *, sync: bool = False, **facts: Any) -> Entry:
        """Write one entry (one ``write``, from any thread); with `sync` it is on the disk when this returns."""
        with self._lock:
            return self._append(what, sync, facts)

    def _append(self, what: str, sync: bool, facts: Dict[str, Any]) -> Entry:
        if self._fd is None:
            raise ValueError("the journal %s is closed" % self.path)
        entry: Entry = {"what": what, "at": time.time(), "up": clock.now()}
        entry.update(facts)
        # Half surrogates (of names that are no UTF-8) become the escapes that JSON has for them: they come back.
        line = _encode(entry).encode("utf-8", "backslashreplace") + b"\n"
        start = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written != len(line):  # a full disk: leave no torn line that would hide later entries
            os.ftruncate(self._fd, start)
            self._set_aside(start)  # the cut has freed what was set aside
            raise OSError(errno.ENOSPC, "the disk of the scratch directory is full", self.path)
        if start + written > self._room - RESERVED // 2:
            self._set_aside(start + written)
        if sync:
            self.sync()
        self.entries.append(entry)
        return entry

    def _set_aside(self, size: int) -> None:
        if self._fd is not None and set_aside(self._fd, RESERVED):
            self._room = size + RESERVED

    def sync(self) -> None:
        """Make all entries so far survive the death of the host."""
        if self._fd is not None:
            os.fsync(self._fd)

    def find(self, what: str, **facts: Any) -> Optional[Entry]:
        """Return the newest entry of this kind whose fields equal `facts`."""
        for entry in reversed(list(self.entries)):
            if entry["what"] == what and all(entry.get(key) == value for key, value in facts.items()):
                return entry
        return None

    def all(self, what: str) -> List[Entry]:
        """Return all entries of this kind, oldest first."""
        return [entry for entry in self.entries if entry["what"] == what]

    def close(self) -> None:
        """Let go of the file; idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def set_aside(fd: int, amount: int) -> bool:
    """Reserve room on the disk behind the end of a file, without making it longer; False: there is none.

    A file system that cannot do that is taken to have it.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        return True
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    failed = call(fd, _KEEP_SIZE, os.fstat(fd).st_size, amount) != 0
    return not (failed and ctypes.get_errno() in (errno.ENOSPC, errno.EDQUOT))
