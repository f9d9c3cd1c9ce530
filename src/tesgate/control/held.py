"""How long this replica may believe that what it held is still its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

from tesgate.store.attempts import Holder

__all__ = ["Trust", "boottime"]


def boottime() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Trust:
    """The local trust window: the database is the authority, the local clock may only make us stop earlier."""

    def __init__(self, *, holder: Holder, window: timedelta, clock: Callable[[], float] = boottime) -> None:
        self.holder = holder
        self._window = window.total_seconds()
        self._clock = clock
        self._until = clock() + self._window

    def renew(self, asked_at: float) -> None:
        """A heartbeat that was sent at `asked_at` (on the same clock) was answered."""
        self._until = asked_at + self._window

    def now(self) -> float:
        """The clock that `renew` wants."""
        return self._clock()

    def left(self) -> float:
        """Seconds for which it still holds; below 0: it does not."""
        return self._until - self._clock()

    def holds(self) -> bool:
        """Whether we may still act on what we hold."""
        return self._clock() < self._until
