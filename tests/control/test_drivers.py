"""Drivers: what raises in one of them is counted in its row and stops nobody else; nothing held stays unfollowed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tesgate.backends.base import AttemptRef, BackendError, Handle, Launch, Listed, Observation, Running
from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable
from tests.control.loops import FakeAgent, Replica, until
from tests.store.rows import ALICE, Rows


class Scripted:
    """A backend whose launches do what a test says."""

    name = "pool"
    keeps = False

    def __init__(self) -> None:
        self.launched: list[tuple[str, int]] = []
        self.script: Callable[[AttemptRef], Handle | None] = lambda ref: None

    def check(self, document: Mapping[str, Any]) -> list[str]:
        del document
        return []

    async def launch(self, launch: Launch) -> Handle | None:
        self.launched.append((launch.ref.task_id, launch.ref.number))
        return self.script(launch.ref)

    async def inspect(self, ref: AttemptRef) -> Observation:
        return Running(ref.task_id, ref.number)

    async def watch(self) -> AsyncIterator[Observation]:
        yield Listed()

    async def cancel(self, ref: AttemptRef, grace: timedelta) -> None:
        del ref, grace

    async def release(self, ref: AttemptRef) -> None:
        del ref


@pytest.fixture
async def rows(database: Database) -> Rows:
    return Rows(database)


@pytest.fixture
def backend() -> Scripted:
    return Scripted()


def failing(error: Exception, *, times: int = 10**6, only: str | None = None) -> Callable[[AttemptRef], Handle | None]:
    left = times

    def script(ref: AttemptRef) -> Handle | None:
        nonlocal left
        if left > 0 and only in (None, ref.task_id):
            left -= 1
            raise error
        return None

    return script


async def ended(rows: Rows, task_id: str) -> bool:
    return bool((await rows.row(task_id))["phase"] == "ended")


async def test_a_row_that_crashes_its_driver_ends_and_stops_nobody_else(rows: Rows, backend: Scripted) -> None:
    a = await Replica.made(rows.database, backend=backend, crash_limit=2)
    agent = FakeAgent("agent1")
    await agent.register(a)
    bad, good = await rows.submit(), await rows.submit()
    backend.script = failing(RuntimeError("this row is poison"), only=bad)
    async with a.dispatching():
        await agent.take(a, good)
        await until("the end", lambda: ended(rows, bad))
        await a.service.finish(good, 1, agent.report("COMPLETE"))
        await until("all to be let go of", lambda: not len(a.drivers))
    assert (await rows.row(bad))["state"] == "SYSTEM_ERROR"
    record = await rows.tasks.get_task(ALICE, bad, full=True)
    assert record.attempts[0].system_logs[-1] == "following this attempt failed 2 times: this row is poison"
    assert (await rows.row(good))["state"] == "COMPLETE"
    await rows.check_room()


async def test_a_row_of_a_backend_that_is_not_here_stops_nobody_else(rows: Rows) -> None:
    """As a newer gateway may leave one behind."""
    a = await Replica.made(rows.database, crash_limit=2)
    agent = FakeAgent("agent1")
    await agent.register(a)
    bad, good = await rows.submit(), await rows.submit()
    async with a.dispatching():
        await agent.take(a, bad)
        await agent.take(a, good)
    await rows.database.execute("UPDATE attempt SET backend = 'elsewhere' WHERE task_id = $1", bad)
    await a.enter()
    async with a.following():
        await a.keeper.once()
        await until("the end", lambda: ended(rows, bad))
        await a.service.finish(good, 1, agent.report("COMPLETE"))
    record = await rows.tasks.get_task(ALICE, bad, full=True)
    assert record.attempts[0].system_logs[-1].endswith("this gateway has no backend 'elsewhere'")
    assert (await rows.row(good))["state"] == "COMPLETE"


async def test_a_document_that_cannot_be_read_holds_up_nobody_else(rows: Rows) -> None:
    a = await Replica.made(rows.database)
    agent = FakeAgent("agent1")
    await agent.register(a)
    bad, good = await rows.submit(), await rows.submit()
    await rows.database.execute("""UPDATE task SET document = '{"inputs": 5}' WHERE id = $1""", bad)
    async with a.dispatching():
        await agent.take(a, good)
    assert (await rows.row(good))["state"] == "RUNNING"


async def test_what_passes_is_counted_below_the_limit(rows: Rows, backend: Scripted) -> None:
    a = await Replica.made(rows.database, backend=backend, crash_limit=3)
    agent = FakeAgent("agent1")
    await agent.register(a)
    backend.script = failing(RuntimeError("once"), times=1)
    task_id = await rows.submit()
    async with a.dispatching():
        await until("another launch", lambda: len(backend.launched) == 2)
        assert (await rows.row(task_id))["crashes"] == 1
        await agent.take(a, task_id)
    assert (await rows.row(task_id))["state"] == "RUNNING"


@pytest.mark.parametrize("error", [BackendError("busy"), DatabaseUnavailable("away")], ids=["backend", "database"])
async def test_what_is_nobodys_crash_is_not_counted(rows: Rows, backend: Scripted, error: Exception) -> None:
    a = await Replica.made(rows.database, backend=backend, crash_limit=1)
    await FakeAgent("agent1").register(a)
    backend.script = failing(error, times=2)
    task_id = await rows.submit()
    async with a.dispatching():
        await until("the third launch", lambda: len(backend.launched) == 3)
    row = await rows.row(task_id)
    assert (row["crashes"], row["phase"]) == (0, "assigned")


@pytest.mark.parametrize(
    "error", [DatabaseUnavailable("away"), RuntimeError("a fault of ours")], ids=["database", "fault"]
)
@pytest.mark.parametrize("where", ["count_crash", "held", "close"])
async def test_a_second_fault_while_a_crash_is_noted_ends_no_loop(
    rows: Rows, backend: Scripted, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    a = await Replica.made(rows.database, backend=backend, crash_limit=2)
    agent = FakeAgent("agent1")
    await agent.register(a)
    bad, good = await rows.submit(), await rows.submit()
    backend.script = failing(RuntimeError("poison"), only=bad)
    real, failed = getattr(a.attempts, where), []

    async def once_failing(*args: Any, **more: Any) -> Any:
        if not failed and bad in args:
            failed.append(where)
            raise error
        return await real(*args, **more)

    monkeypatch.setattr(a.attempts, where, once_failing)
    async with a.dispatching():
        await agent.take(a, good)
        await until("the end", lambda: ended(rows, bad), 10)
    assert failed
    assert (await rows.row(bad))["state"] == "SYSTEM_ERROR"
    assert (await rows.row(good))["state"] == "RUNNING"


async def test_all_that_was_let_go_is_followed_again_at_once(
    rows: Rows, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what a driver has not let go of yet, because its statement still hangs."""
    a = await Replica.made(rows.database, backend=backend)
    await FakeAgent("agent1").register(a)
    ids = [await rows.submit() for _ in range(2)]
    hanging = anyio.Event()
    let_go = anyio.Event()

    async def launch(launch: Launch) -> Handle | None:
        backend.launched.append((launch.ref.task_id, launch.ref.number))
        if not let_go.is_set():
            hanging.set()
            with anyio.CancelScope(shield=True):
                await let_go.wait()
        return None

    monkeypatch.setattr(backend, "launch", launch)
    async with a.following():
        a.drivers.assigned(await rows_dispatch(rows, a))
        await hanging.wait()
        a.drivers.drop_all()
        assert len(a.drivers) == 0
        let_go.set()
        await a.drivers.compare()
        assert len(a.drivers) == 2
        await until("both to be launched again", lambda: len(backend.launched) >= 4)
        await anyio.wait_all_tasks_blocked()
        assert len(a.drivers) == 2, "the old drivers took nothing of the new ones with them"
    assert set(backend.launched) == {(task_id, 1) for task_id in ids}


async def rows_dispatch(rows: Rows, replica: Replica) -> Any:
    rows.holder = replica.holder
    return await rows.dispatch()


async def test_look_again_is_not_missed_while_looking(
    rows: Rows, backend: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection of the listener says: look at everything."""
    a = await Replica.made(rows.database, backend=backend)
    calls = 0
    real = a.attempts.held

    async def held(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            a.wakes.heard("tesgate_task", "")
        return await real(*args)

    monkeypatch.setattr(a.attempts, "held", held)
    async with a.following():
        await until("the first look", lambda: calls == 1)
        await anyio.sleep(0.05)
        assert calls == 1
        a.wakes.heard("tesgate_task", "")
        await until("two more", lambda: calls >= 3, 2)
        await anyio.sleep(0.05)
        assert calls == 3, "each wake is one look"


async def test_a_cancelled_waiting_task_is_followed_by_nobody(rows: Rows, backend: Scripted) -> None:
    a = await Replica.made(rows.database, backend=backend)
    task_id = await rows.submit()
    async with a.dispatching():
        assert await a.tasks.cancel_task(ALICE, task_id) == "CANCELED"
        await FakeAgent("agent1").register(a)
        await a.drivers.compare()
    assert not backend.launched
    assert len(a.drivers) == 0


async def test_ends_elsewhere_let_the_driver_go(rows: Rows) -> None:
    """The report came to another replica; its notification wakes the owner, and a lost one costs one comparison."""
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    agent = FakeAgent("agent1")
    await agent.register(b)
    ids = [await rows.submit() for _ in range(2)]
    async with a.dispatching():
        for task_id in ids:
            await until("the assignment", lambda task_id=task_id: owned(rows, task_id))  # type: ignore[misc]
            await agent.take(b, task_id)
        assert len(a.drivers) == 2
        for task_id in ids:
            await b.service.finish(task_id, 1, agent.report("COMPLETE"))
        a.wakes.heard("tesgate_task", ids[0])
        await until("the first to be let go", lambda: len(a.drivers) == 1)
        await a.drivers.compare()
        await until("the other to be let go", lambda: len(a.drivers) == 0)


async def owned(rows: Rows, task_id: str) -> bool:
    return bool((await rows.row(task_id))["replica_id"] == "a")
