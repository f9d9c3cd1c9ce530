"""One task group that owns every loop and every driver of this replica.

One iteration of a loop may fail: it is logged, backed off from and repeated. A loop that ends ends the process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import anyio
import anyio.abc
import structlog

from tesgate.store.errors import DatabaseUnavailable

__all__ = ["LoopEnded", "Supervisor", "repeat"]

log = structlog.get_logger(__name__)

LONGEST_BACKOFF = 10.0


class LoopEnded(Exception):
    """A loop returned although nobody stopped it; the process must not go on without it."""


class Supervisor:
    """Runs loops until it is cancelled."""

    def __init__(self) -> None:
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = []

    def add(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """`loop` runs for ever; what it raises or its return ends everything."""
        self._loops.append((name, loop))

    async def run(self) -> None:
        """Run all loops. Raises what ended the first of them."""
        async with anyio.create_task_group() as group:
            for name, loop in self._loops:
                group.start_soon(self._guard, name, loop, name=name)

    async def _guard(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        await loop()
        raise LoopEnded(f"the loop {name!r} ended")


async def repeat(
    name: str,
    once: Callable[[], Awaitable[bool | None]],
    interval: timedelta,
    *,
    ticket: Callable[[], anyio.Event] | None = None,
    failed: Callable[[str], None] = lambda name: None,
) -> None:
    """Call `once` for ever: again at once while it answers True, else when the ticket is set or after the interval.

    `failed(name)` is told of every iteration that raised.
    """
    failures = 0
    while True:
        # Taken before the call, so that what happens during it is not missed.
        event = anyio.Event() if ticket is None else ticket()
        try:
            again = await once()
            failures = 0
        except DatabaseUnavailable as error:
            failures += 1
            again = False
            log.warning("database unavailable", loop=name, error=str(error))
            failed(name)
        except Exception:
            failures += 1
            again = False
            log.exception("iteration failed", loop=name, failures=failures)
            failed(name)
        if failures:
            await anyio.sleep(min(LONGEST_BACKOFF, 0.1 * 2 ** min(failures, 10)))
        elif again:
            await anyio.lowlevel.checkpoint()
        else:
            with anyio.move_on_after(interval.total_seconds()):
                await event.wait()
