"""Heartbeats: what is held is kept, let go of, picked up again, adopted; and what counts as a crash."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from tesgate.control.keeper import Superseded
from tesgate.control.supervisor import Supervisor, repeat
from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable
from tests.control.loops import SECOND, FakeAgent, Replica, until
from tests.store.rows import ALICE, Rows


@pytest.fixture
async def rows(database: Database) -> Rows:
    return Rows(database)


async def running(rows: Rows, replica: Replica, agent: FakeAgent) -> str:
    """A task that runs on `agent` and is followed by `replica`."""
    task_id = await rows.submit()
    async with replica.dispatching():
        await agent.take(replica, task_id)
    return task_id


async def registered(replica: Replica, name: str = "agent1") -> FakeAgent:
    agent = FakeAgent(name)
    await agent.register(replica)
    return agent


async def test_another_epoch_ends_the_process(rows: Rows) -> None:
    a = await Replica.made(rows.database, "a")
    assert not await a.keeper.once()
    again = await Replica.made(rows.database, "a")
    supervisor = Supervisor()
    supervisor.add("keeper", lambda: repeat("keeper", a.keeper.once, SECOND / 50))
    supervisor.add("drivers", a.drivers.run)
    with anyio.fail_after(60):
        with pytest.raises(BaseExceptionGroup) as caught:
            await supervisor.run()
    assert caught.group_contains(Superseded)
    assert not await again.keeper.once()


async def test_past_the_trust_window_all_is_dropped_and_picked_up_again(rows: Rows) -> None:
    a = await Replica.made(rows.database, "a")
    agent = await registered(a)
    ids = [await rows.submit() for _ in range(3)]
    async with a.following():
        a.drivers.assigned(
            await a.attempts.assign(a.holder, await picks(rows), backend="pool", keeps=False, prefix="tg-")
        )
        a.clock.now += 7.9
        await a.keeper.watch_trust()
        assert (a.trust.holds(), len(a.drivers)) == (True, 3)
        a.clock.now += 0.2
        assert not await a.dispatcher.once(), "who cannot trust its holdings gives nothing away"
        await a.keeper.watch_trust()
        await a.drivers.compare()
        assert (a.trust.holds(), len(a.drivers)) == (False, 0), "the rows may still name us, and nothing is ours"
        await a.keeper.once()
        assert (a.trust.holds(), len(a.drivers)) == (True, 3)
        for task_id in ids:
            await agent.take(a, task_id)
            await a.service.finish(task_id, 1, agent.report("COMPLETE"))
        await until("all to be let go", lambda: not len(a.drivers))
    for task_id in ids:
        row = await rows.row(task_id)
        assert (row["state"], row["crashes"], row["attempt"]) == ("COMPLETE", 0, 1)


async def picks(rows: Rows) -> Any:
    from tesgate.model.placement import place

    rooms = [agent.room for agent in await rows.agents.list_open()]
    return place(await rows.tasks.waiting(100), rooms, reserve_after=30).picks


async def test_a_heartbeat_that_comes_too_late_drops_all_first(rows: Rows) -> None:
    """The process was stopped: the heartbeat may run before the loop that watches the trust."""
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    async with a.following():
        await a.drivers.compare()
        assert len(a.drivers) == 1
        a.clock.now += 60
        await a.falls_silent()
        async with b.following():
            await b.keeper.once()
            assert len(b.drivers) == 1
            await a.keeper.once()
            assert len(a.drivers) == 0, "it is another's now"
            await b.service.finish(task_id, 1, agent.report("COMPLETE"))
    assert (await rows.row(task_id))["replica_id"] == "b"


async def test_a_heartbeat_that_was_asked_long_ago_renews_no_trust(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust counts from before the question: the answer may have been under way for long."""
    a = await Replica.made(rows.database, "a")
    real = a.replicas.beat

    async def slow(*args: Any) -> Any:
        answer = await real(*args)
        a.clock.now += 9
        return answer

    monkeypatch.setattr(a.replicas, "beat", slow)
    await a.keeper.once()
    assert not a.trust.holds()


async def test_attempts_of_a_silent_replica_are_adopted(rows: Rows) -> None:
    a, b, c = [await Replica.made(rows.database, name) for name in "abc"]
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    async with b.following():
        await a.falls_silent(14)
        await b.keeper.once()
        assert (await rows.row(task_id))["replica_id"] == "a"
        await a.falls_silent(16)
        await b.keeper.once()
        await c.keeper.once()
        await until("the suspicion to be over", lambda: not b.drivers._suspects)
        row = await rows.row(task_id)
        assert (row["replica_id"], row["crashes"], row["phase"], row["state"]) == ("b", 0, "started", "RUNNING")
        assert len(b.drivers) == 1
        await b.service.finish(task_id, 1, agent.report("COMPLETE"))
        await until("it to be let go", lambda: not len(b.drivers))
    await rows.check_room()


async def test_a_cancel_is_carried_out_by_whoever_adopts(rows: Rows) -> None:
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    assert await a.tasks.cancel_task(ALICE, task_id) == "CANCELING"
    await a.falls_silent()
    async with b.following():
        held = anyio.Event()
        async with anyio.create_task_group() as group:

            async def hold() -> None:
                answer = await agent.poll(b, wait=3600)
                assert [order.task for order in answer.stop] == [task_id]
                held.set()

            group.start_soon(hold)
            await b.keeper.once()
            with anyio.fail_after(60):
                await held.wait()
        await b.service.stopped(task_id, 1, agent.report())
    assert (await rows.row(task_id))["state"] == "CANCELED"


async def test_who_does_not_control_adopts_nothing(rows: Rows) -> None:
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    task_id = await running(rows, a, await registered(a))
    await a.falls_silent()
    b.keeper._adopts = False
    await b.keeper.once()
    assert (await rows.row(task_id))["replica_id"] == "a"


async def test_who_only_stood_by_when_its_process_died_is_never_blamed(rows: Rows) -> None:
    """Killed and restarted, killed and adopted by another, handed over: a row is counted while it is acted on alone."""
    a, b = await Replica.made(rows.database, "a"), await Replica.made(rows.database, "b")
    task_id = await running(rows, a, await registered(a))

    async def crashes_after(next_one: Replica) -> int:
        counted: list[int] = []
        real = next_one.attempts.suspect

        async def suspect(*args: Any) -> int | None:
            counted.append(await real(*args) or 0)
            return counted[-1]

        next_one.attempts.suspect = suspect  # type: ignore[method-assign]
        async with next_one.following():
            await next_one.keeper.once()
            assert len(next_one.drivers) == 1
            await until("the suspicion to be over", lambda: not next_one.drivers._suspects)
        next_one.attempts.suspect = real  # type: ignore[method-assign]
        row = await rows.row(task_id)
        assert (row["replica_id"], row["replica_epoch"]) == (next_one.name, next_one.holder.epoch)
        assert row["crashes"] == 0
        return sum(counted)

    await a.replicas.leave(a.holder)
    assert await crashes_after(b) == 0, "handed over to another"
    await b.replicas.leave(b.holder)
    await b.enter()
    assert await crashes_after(b) == 0, "restarted in order"
    for _ in range(6):
        await b.enter()
        assert await crashes_after(b) == 1, "killed and restarted"
    await b.falls_silent()
    await a.enter()
    assert await crashes_after(a) == 1, "killed, adopted by another"


async def test_a_database_that_was_away_is_no_crash(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await Replica.made(rows.database, "a")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    real, failed = a.attempts.held, []

    async def held(*args: Any) -> Any:
        if len(args) > 1 and len(failed) < 2:
            failed.append(args)
            raise DatabaseUnavailable("away")
        return await real(*args)

    async with a.following():
        await a.drivers.compare()
        monkeypatch.setattr(a.attempts, "held", held)
        a.drivers.tell(task_id)
        await until("two faults", lambda: len(failed) == 2)
        await a.service.finish(task_id, 1, agent.report("COMPLETE"))
        await until("it to be let go", lambda: not len(a.drivers))
    assert (await rows.row(task_id))["crashes"] == 0


async def test_who_cannot_be_acquitted_is_suspected_no_longer(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await Replica.made(rows.database, "a")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    await a.enter()
    tried = 0

    async def acquit(*args: Any) -> None:
        nonlocal tried
        tried += 1
        raise DatabaseUnavailable("away")

    monkeypatch.setattr(a.attempts, "acquit", acquit)
    async with a.following():
        await a.keeper.once()
        await until("the suspicion to be over", lambda: tried and not a.drivers._suspects)
        await a.service.finish(task_id, 1, agent.report("COMPLETE"))
        await until("it to be let go", lambda: not len(a.drivers))
    assert tried == 1


async def crash_of(rows: Rows, replica: Replica, task_id: str, times: int) -> None:
    """The process dies while it acts on the row and is started again, without a minute of life between."""
    for _ in range(times):
        await replica.enter()
        await replica.keeper.once()
        await replica.attempts.suspect(replica.holder, task_id, 1)


async def test_a_minute_of_life_resets_the_counter(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    a = await Replica.made(rows.database, "a")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    await crash_of(rows, a, task_id, 4)
    passed = 0.0
    real = anyio.current_time
    monkeypatch.setattr("tesgate.control.drivers.anyio.current_time", lambda: real() + passed)
    async with a.following():
        await a.keeper.once()
        await a.drivers.compare()
        await until("its acquittal", lambda: not a.drivers._suspects)
        passed = 59.0
        await a.drivers.compare()
        assert (await rows.row(task_id))["crashes"] == 4
        passed = 61.0
        await a.drivers.compare()
        assert (await rows.row(task_id))["crashes"] == 0
        # The row's version rose; a later write of its driver still goes through.
        await a.tasks.cancel_task(ALICE, task_id)
        assert [order.task for order in (await agent.poll(a)).stop] == [task_id]
    assert (await rows.row(task_id))["state"] == "CANCELING"


async def test_at_the_limit_it_is_given_up(rows: Rows) -> None:
    a = await Replica.made(rows.database, "a")
    agent = await registered(a)
    task_id = await running(rows, a, agent)
    await crash_of(rows, a, task_id, 4)
    async with a.following():
        await a.drivers.compare()
        await anyio.wait_all_tasks_blocked()
    assert (await rows.row(task_id))["state"] == "RUNNING"
    await crash_of(rows, a, task_id, 1)
    await a.enter()
    async with a.following():
        await a.keeper.once()
        await until("the end", lambda: is_over(rows, task_id))
    assert (await rows.row(task_id))["state"] == "SYSTEM_ERROR"
    record = await rows.tasks.get_task(ALICE, task_id, full=True)
    assert record.attempts[-1].system_logs[-1] == "whoever followed this task died of it 5 times; it is given up"
    answer = await agent.poll(a)
    assert [ref.task for ref in answer.forget] == [task_id]
    await rows.check_room()


async def is_over(rows: Rows, task_id: str) -> bool:
    return bool((await rows.row(task_id))["phase"] == "ended")


async def test_who_hears_a_stranger_during_its_heartbeat_does_not_think_it_is_alone(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that enters while the heartbeat's answer is under way has announced itself."""
    a = await Replica.made(rows.database, "a")
    sent: list[tuple[str, str]] = []
    a.wakes.connect(send=lambda channel, payload: sent.append((channel, payload)))
    a.wakes.agent("agent1")
    assert sent, "who has not asked yet whether it is alone is not"
    await a.keeper.once()
    sent.clear()
    a.wakes.agent("agent1")
    assert not sent
    real = a.replicas.beat

    async def beat(*args: Any) -> Any:
        others = await real(*args)
        a.wakes.heard("tesgate_queue", "")
        return others

    monkeypatch.setattr(a.replicas, "beat", beat)
    await a.keeper.once()
    a.wakes.agent("agent1")
    assert sent == [("tesgate_agent", "agent1")]
