"""An agent that says nothing: counted in good ticks, lost once, and its work begun anew elsewhere; or it comes back."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tesgate.errors import Gone
from tesgate.store.database import Database
from tests.control.loops import FakeAgent, Replica, until
from tests.store.rows import ALICE, Rows


@pytest.fixture
async def rows(database: Database) -> Rows:
    return Rows(database)


async def silence(rows: Rows, agent: str) -> int:
    ticks: int = await rows.database.fetchval("SELECT silent_ticks FROM agent WHERE id = $1", agent)
    return ticks


async def is_open(rows: Rows, agent: str) -> bool:
    return bool(await rows.database.fetchval("SELECT state = 'open' FROM agent WHERE id = $1", agent))


async def test_only_good_ticks_are_counted(rows: Rows) -> None:
    a = await Replica.made(rows.database, ticks=3)
    agent = FakeAgent("agent1")
    await agent.register(a)
    await a.tick()
    assert await silence(rows, "agent1") == 0, "the first tick knows nothing of the time before it"
    await a.tick()
    assert await silence(rows, "agent1") == 1
    await a.tick(60)
    assert await silence(rows, "agent1") == 1, "the process was stopped, or the database was away"
    a.answering = False
    await a.tick()
    assert await silence(rows, "agent1") == 1, "nobody could have spoken to us"
    a.answering = True
    await a.tick()
    assert await silence(rows, "agent1") == 2
    await agent.poll(a)
    assert await silence(rows, "agent1") == 0
    for _ in range(2):
        await a.tick()
        assert await is_open(rows, "agent1")
    await a.tick()
    assert not await is_open(rows, "agent1")


async def test_one_replica_counts(rows: Rows) -> None:
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    await FakeAgent("agent1").register(a)
    for _ in range(3):
        await a.tick()
        await b.tick()
    assert await silence(rows, "agent1") == 2
    # The right goes over when its holder leaves; the first tick of the next one counts nothing.
    await a.replicas.leave(a.holder)
    await b.tick()
    assert await silence(rows, "agent1") == 2
    await b.tick()
    assert await silence(rows, "agent1") == 3


async def test_a_tick_that_is_late_at_the_database_counts_nothing_twice(rows: Rows) -> None:
    """The singleton was held by somebody else in between: what was counted there is not counted again here."""
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    await FakeAgent("agent1").register(a)
    await a.tick()
    await a.tick()
    await rows.database.execute("UPDATE singleton SET until = now() - interval '1 s'")
    await b.tick()
    await b.tick()
    await a.tick()
    await rows.database.execute("UPDATE singleton SET until = now() - interval '1 s'")
    await a.tick()
    assert await silence(rows, "agent1") == 2


async def test_its_attempts_are_lost_by_their_owner_and_go_elsewhere(rows: Rows) -> None:
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    first, second = FakeAgent("agent1"), FakeAgent("agent2")
    await first.register(a)
    async with a.dispatching():
        ids = [await rows.submit() for _ in range(3)]
        for task_id in ids:
            await until("the attempt", lambda task_id=task_id: has_attempts(rows, task_id, 1))  # type: ignore[misc]
        await first.take(a, ids[0])
        await second.register(a)
        await rows.check_room()
        # The other replica counts; it owns nothing of it, and takes nothing from the owner.
        async with b.following():
            for _ in range(3):
                await b.tick()
            await second.poll(b)
            await b.tick()
            for task_id in ids:
                await second.take(b, task_id, 2)
    for task_id in ids:
        row = await rows.row(task_id)
        assert (row["attempt"], row["replica_id"], row["state"], row["crashes"]) == (2, "a", "RUNNING", 0)
        events = [(event["kind"], event["number"]) for event in await rows.tasks.list_events(ALICE, task_id)]
        assert events == [("assign", 1), ("lost", 1), ("assign", 2)], "lost exactly once"
        record = await rows.tasks.get_task(ALICE, task_id, full=True)
        assert "agent1 has not been heard of" in record.attempts[0].system_logs[-1]
    assert not await is_open(rows, "agent1")
    await rows.check_room()


async def has_attempts(rows: Rows, task_id: str, number: int) -> bool:
    return bool((await rows.row(task_id))["attempt"] == number)


async def lose(replica: Replica) -> None:
    for _ in range(4):
        await replica.tick()


async def test_one_that_was_suspected_falsely_comes_back_and_forgets(rows: Rows) -> None:
    a = await Replica.made(rows.database)
    first, second = FakeAgent("agent1"), FakeAgent("agent2")
    await first.register(a)
    async with a.dispatching():
        task_id = await rows.submit()
        await first.take(a, task_id)
        await lose(a)
        await until("the loss", lambda: waits(rows, task_id))
        with pytest.raises(Gone):
            await first.poll(a)
        with pytest.raises(Gone):
            await a.service.finish(task_id, 1, first.report("COMPLETE"))
        await second.register(a)
        await second.take(a, task_id, 2)
        await first.register(a)
        assert first.session == 2
        answer = await first.poll(a)
        assert [(ref.task, ref.attempt) for ref in answer.forget] == [(task_id, 1)]
        assert not answer.start
        await a.service.finish(task_id, 2, second.report("COMPLETE"))
    assert (await rows.row(task_id))["state"] == "COMPLETE"
    await rows.check_room()


async def waits(rows: Rows, task_id: str) -> bool:
    return bool((await rows.row(task_id))["phase"] == "waiting")


async def test_one_that_comes_back_before_its_attempts_were_lost_keeps_them(rows: Rows) -> None:
    a = await Replica.made(rows.database)
    agent = FakeAgent("agent1")
    await agent.register(a)
    async with a.dispatching():
        task_id = await rows.submit()
        await agent.take(a, task_id)
    await lose(a)
    assert not await is_open(rows, "agent1")
    await agent.register(a)
    async with a.dispatching():
        await a.drivers.compare()
        with anyio.fail_after(60):
            assert not (await agent.poll(a)).forget
        await a.service.finish(task_id, 1, agent.report("COMPLETE"))
    assert (await rows.row(task_id))["attempt"] == 1
    await rows.check_room()


async def test_a_stale_owner_loses_nothing(rows: Rows) -> None:
    """The loss is written under the owner's epoch and the version that it read."""
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    agent = FakeAgent("agent1")
    await agent.register(a)
    async with a.dispatching():
        task_id = await rows.submit()
        await agent.take(a, task_id)
    held = await a.attempts.held(a.holder, task_id)
    await a.falls_silent()
    await b.keeper.once()
    for holder, version in ((a.holder, held[0].version), (a.holder, held[0].version + 1), (b.holder, held[0].version)):
        assert await rows.close(task_id, 1, "lost", holder=holder, version=version) is None
    assert (await rows.row(task_id))["phase"] == "started"
    assert await rows.close(task_id, 1, "lost", holder=b.holder, version=held[0].version + 1) is not None


async def test_a_task_with_a_path_that_only_the_lost_agent_had_waits_for_it(rows: Rows) -> None:
    a = await Replica.made(rows.database)
    agent, other = FakeAgent("agent1", roots=["/far"]), FakeAgent("agent2")
    await agent.register(a)
    await other.register(a)
    document = {
        "executors": [{"image": "busybox", "command": ["true"]}],
        "outputs": [{"path": "/out/x", "url": "file:///far/x", "type": "FILE"}],
    }
    task_id = await rows.submit(document=document)
    never = await rows.submit(
        document={**document, "outputs": [{"path": "/out/x", "url": "file:///nowhere/x", "type": "FILE"}]}
    )
    async with a.dispatching():
        await agent.take(a, task_id)
        for _ in range(3):
            await a.tick()
            await other.poll(a)
        await a.tick()
        await until("the loss", lambda: waits(rows, task_id))
        await until("a reason", lambda: waits_for(rows, task_id, "/far"))
        assert (await rows.row(never))["state"] == "SYSTEM_ERROR"
        await agent.register(a)
        await agent.take(a, task_id, 2)
    assert (await rows.row(task_id))["state"] == "RUNNING"


async def test_one_that_comes_back_while_a_round_looks_has_nothing_refused(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not among the open agents that the round has read, nor among the lost ones any more."""
    a = await Replica.made(rows.database)
    agent, other = FakeAgent("agent1", roots=["/far"]), FakeAgent("agent2")
    await agent.register(a)
    await lose(a)
    await other.register(a)
    output = {"path": "/out/x", "url": "file:///far/x", "type": "FILE"}
    task_id = await rows.submit(document={"executors": [{"image": "x", "command": ["true"]}], "outputs": [output]})
    real, returned = a.tasks.head, 0

    async def head(*words: Any, **more: Any) -> Any:
        nonlocal returned
        found = await real(*words, **more)
        if not returned:
            returned = 1
            await agent.register(a)
        return found

    monkeypatch.setattr(a.dispatcher._tasks, "head", head)
    await a.dispatcher.once()
    assert returned
    assert (await rows.row(task_id))["state"] == "QUEUED"
    async with a.dispatching():
        await agent.take(a, task_id)


async def waits_for(rows: Rows, task_id: str, word: str) -> bool:
    row = await rows.row(task_id)
    assert row["state"] != "SYSTEM_ERROR"
    return word in (row["wait_reason"] or "") and "no connected agent" in row["wait_reason"]
