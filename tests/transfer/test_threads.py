"""Calls that work and calls that wait run side by side, each kind within its bound."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext

import anyio
import pytest

from tesgate.runner.transfer.threads import WAITING, Stop, run_all

HELD = 0.01
"""Seconds that a call takes, so that others begin meanwhile if they may."""


class Count:
    """How many calls are under way at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


def test_more_calls_wait_at_a_time_than_work() -> None:
    together = threading.Barrier(WAITING - 2, timeout=20)
    working = Count()

    def work(stop: Stop) -> str:
        with working:
            stop.wait(HELD)
        return "work"

    def wait(stop: Stop) -> str:
        together.wait()
        return "wait"

    async def run() -> list[str]:
        return await run_all([work] * 40, concurrency=2, waiting=[wait] * (WAITING - 2) * 3)

    assert anyio.run(run) == ["work"] * 40 + ["wait"] * (WAITING - 2) * 3
    assert working.most <= 2


@pytest.mark.parametrize("waiting", [1, WAITING, 40])
@pytest.mark.parametrize("calls", [0, 1, 40])
def test_no_more_threads_than_are_allowed(calls: int, waiting: int) -> None:
    threads: set[int] = set()
    working, together = Count(), Count()

    def call(number: int) -> Callable[[Stop], int]:
        def one(stop: Stop) -> int:
            threads.add(threading.get_ident())
            with working if number < calls else nullcontext(), together:
                stop.wait(HELD)
            return number

        return one

    async def run() -> list[int]:
        return await run_all(
            [call(number) for number in range(calls)],
            concurrency=4,
            waiting=[call(calls + number) for number in range(waiting)],
        )

    assert anyio.run(run) == list(range(calls + waiting))
    assert working.most <= 4
    assert together.most <= max(4, WAITING)
    assert len(threads) <= max(4, WAITING)


@pytest.mark.parametrize("where", ["calls", "waiting"])
def test_an_error_stops_both(where: str) -> None:
    broken = threading.Event()

    def fail(stop: Stop) -> None:
        broken.set()
        raise KeyError(where)

    def hang(stop: Stop) -> None:
        assert broken.wait(20)
        stop.wait(20)

    async def run() -> None:
        some = {"calls": [hang] * 3, "waiting": [hang] * 30, where: [fail]}
        await run_all(some["calls"], concurrency=4, waiting=some["waiting"])

    with pytest.raises(KeyError, match=where):
        anyio.run(run)
