"""Loops: one failing iteration is survived, a loop that ends ends everything, and wakes are not missed."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from tesgate.control.keeper import Superseded
from tesgate.control.supervisor import LoopEnded, Supervisor, repeat
from tesgate.store.errors import DatabaseUnavailable

LONG = timedelta(hours=1)


async def for_ever() -> None:
    await anyio.sleep_forever()


async def test_a_loop_that_ends_ends_everything() -> None:
    ended = anyio.Event()

    async def watched() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async def returns() -> None:
        await anyio.lowlevel.checkpoint()

    supervisor = Supervisor()
    supervisor.add("watched", watched)
    supervisor.add("short", returns)
    with anyio.fail_after(60):
        with pytest.raises(ExceptionGroup) as caught:
            await supervisor.run()
    assert caught.group_contains(LoopEnded, match="'short'")
    assert ended.is_set()


async def test_a_loop_that_raises_ends_everything() -> None:
    async def raises() -> None:
        raise RuntimeError("a fault of ours")

    supervisor = Supervisor()
    supervisor.add("other", for_ever)
    supervisor.add("bad", raises)
    with anyio.fail_after(60):
        with pytest.raises(ExceptionGroup) as caught:
            await supervisor.run()
    assert caught.group_contains(RuntimeError, match="a fault of ours")


async def test_no_loop_catches_superseded() -> None:
    async def once() -> bool:
        raise Superseded("gone")

    supervisor = Supervisor()
    supervisor.add("other", for_ever)
    supervisor.add("keeper", lambda: repeat("keeper", once, LONG))
    with anyio.fail_after(60):
        with pytest.raises(BaseExceptionGroup) as caught:
            await supervisor.run()
    assert caught.group_contains(Superseded)


@pytest.mark.parametrize("fault", [RuntimeError, DatabaseUnavailable], ids=["fault", "database"])
async def test_an_iteration_that_fails_backs_off_and_goes_on(
    fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr("tesgate.control.supervisor.anyio.sleep", sleep)
    calls = 0
    done = anyio.Event()

    async def once() -> bool:
        nonlocal calls
        calls += 1
        if calls in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11):
            raise fault("once")  # another each time: one would gather the frames of all
        if calls == 12:
            done.set()
        return calls < 12

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(repeat, "loop", once, LONG)
            await done.wait()
            group.cancel_scope.cancel()
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0, 0.2], "grows, is bounded, and begins anew"


async def test_a_wake_during_an_iteration_is_not_missed() -> None:
    calls = 0
    event = anyio.Event()
    third = anyio.Event()

    def wake() -> None:
        nonlocal event
        event.set()
        event = anyio.Event()

    async def once() -> bool:
        nonlocal calls
        calls += 1
        if calls == 2:
            wake()
        if calls == 3:
            third.set()
        await anyio.lowlevel.checkpoint()
        return False

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: repeat("loop", once, LONG, ticket=lambda: event))
            await anyio.wait_all_tasks_blocked()
            assert calls == 1
            wake()
            await third.wait()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert calls == 3
