"""Calls that work and calls that wait run side by side, each kind within its bound."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from tesgate.runner.transfer.threads import WAITING, Stop, run_all


def test_more_calls_wait_at_a_time_than_work() -> None:
    together = threading.Barrier(WAITING - 2, timeout=20)
    lock = threading.Lock()
    working, most = 0, 0

    def work(stop: Stop) -> str:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        with lock:
            working -= 1
        return "work"

    def wait(stop: Stop) -> str:
        together.wait()
        return "wait"

    async def run() -> list[str]:
        return await run_all([work] * 40, concurrency=2, waiting=[wait] * (WAITING - 2) * 3)

    assert anyio.run(run) == ["work"] * 40 + ["wait"] * (WAITING - 2) * 3
    assert most <= 2


@pytest.mark.parametrize("waiting", [1, WAITING, 40])
@pytest.mark.parametrize("calls", [0, 1, 40])
def test_no_more_threads_than_are_allowed(calls: int, waiting: int) -> None:
    lock = threading.Lock()
    threads: set[int] = set()

    def call(number: int) -> Callable[[Stop], int]:
        def one(stop: Stop) -> int:
            with lock:
                threads.add(threading.get_ident())
            return number

        return one

    async def run() -> list[int]:
        return await run_all(
            [call(number) for number in range(calls)],
            concurrency=4,
            waiting=[call(calls + number) for number in range(waiting)],
        )

    assert anyio.run(run) == list(range(calls + waiting))
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
