"""Directories of a scratch that are held open while many files go into them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

from .scratch import Scratch

__all__ = ["Directories"]

_MOST = 16


class _Held:
    """A directory that is open, and how many use it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0
        self.dropped = False


class Directories:
    """Directories of the scratch that are held open while objects go into them: the latest. Safe in many threads."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._lock = threading.Lock()
        self._open: OrderedDict[Tuple[str, ...], _Held] = OrderedDict()

    @contextmanager
    def opened(self, parts: List[str]) -> Iterator[int]:
        """Open one, made with its parents, for as long as this lasts."""
        key = tuple(parts)
        held = self._taken(key, None)
        if held is None:
            with self._scratch.directory(parts) as here:
                handle = os.dup(here)
            held = self._taken(key, handle)
            assert held is not None
        try:
            yield held.handle
        finally:
            with self._lock:
                held.users -= 1
                over = held.dropped and not held.users
            if over:
                os.close(held.handle)

    def _taken(self, key: Tuple[str, ...], handle: Optional[int]) -> Optional[_Held]:
        gone: List[int] = []
        with self._lock:
            held = self._open.get(key)
            if held is None and handle is not None:
                held = self._open[key] = _Held(handle)
                while len(self._open) > _MOST:
                    gone += self._dropped(self._open.popitem(last=False)[1])
            elif handle is not None:
                gone.append(handle)  # another thread was faster
            if held is not None:
                held.users += 1
        for each in gone:
            os.close(each)
        return held

    def _dropped(self, held: _Held) -> List[int]:
        held.dropped = True
        return [] if held.users else [held.handle]

    def close(self) -> None:
        """Once nobody uses them any more."""
        with self._lock:
            kept = [each for held in self._open.values() for each in self._dropped(held)]
            self._open.clear()
        for each in kept:
            os.close(each)
