"""Each row of the protocol's table as the statement that it is: its guard and its effect, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import anyio
import asyncpg
import pytest

from tesgate.errors import IdempotencyConflict, TaskNotFound
from tesgate.model.caller import Caller
from tesgate.model.records import ListQuery
from tesgate.model.state import TERMINAL, State, may_follow
from tesgate.model.wishes import Seen
from tesgate.store.attempts import Said
from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable
from tests.store.rows import ALICE, DOCUMENT, LEASE, Rows

BOB = Caller("bob")
ADMIN = Caller("root", admin=True)


@pytest.fixture
async def rows(database: Database) -> Rows:
    return await Rows.made(database)


async def state(rows: Rows, task_id: str) -> str:
    return await rows.tasks.get_state(ALICE, task_id)


async def test_submit_is_idempotent_by_key_and_body(rows: Rows) -> None:
    first = await rows.tasks.insert_task(ALICE, rows.new(idempotency_key="k", body_hash="one"))
    again = await rows.tasks.insert_task(ALICE, rows.new(idempotency_key="k", body_hash="one"))
    assert (again.id, again.existed) == (first.id, True)
    with pytest.raises(IdempotencyConflict):
        await rows.tasks.insert_task(ALICE, rows.new(idempotency_key="k", body_hash="two"))
    other = await rows.tasks.insert_task(BOB, rows.new(BOB, idempotency_key="k", body_hash="two"))
    assert not other.existed


async def test_an_insert_that_is_sent_again_makes_one_task(rows: Rows) -> None:
    new = rows.new()
    assert (await rows.tasks.insert_task(ALICE, new)).id == (await rows.tasks.insert_task(ALICE, new)).id
    assert len(await rows.tasks.list_tasks(ALICE, ListQuery(limit=10))) == 1


async def test_another_callers_task_does_not_exist(rows: Rows) -> None:
    task_id = await rows.submit()
    for attempt in (rows.tasks.get_state(BOB, task_id), rows.tasks.get_task(BOB, task_id, full=True)):
        with pytest.raises(TaskNotFound):
            await attempt
    with pytest.raises(TaskNotFound):
        await rows.tasks.cancel_task(BOB, task_id)
    assert await rows.tasks.list_tasks(BOB, ListQuery(limit=10)) == []
    assert await rows.tasks.get_state(ADMIN, task_id) == "QUEUED"


async def test_assign_takes_room_once(rows: Rows) -> None:
    await rows.agent(cpus=2)
    tasks = [await rows.submit() for _ in range(3)]
    given = await rows.dispatch()
    assert [item.task_id for item in given] == tasks[:2]
    assert await rows.dispatch() == []
    await rows.check_room()
    await rows.close(tasks[0], 1, "failed", instance="agent1", retry=False)
    assert [item.task_id for item in await rows.dispatch()] == [tasks[2]]


async def test_assign_of_an_older_epoch_does_nothing(rows: Rows) -> None:
    await rows.agent()
    await rows.submit()
    old = rows.holder
    await rows.replicas.enter("r1", host="here", roles=["control"])
    rows.holder = old
    assert await rows.dispatch() == []
    assert await rows.replicas.beat(old) is None


async def test_owners_take_turns(rows: Rows) -> None:
    for _ in range(3):
        await rows.submit(ALICE)
    await rows.submit(BOB)
    assert [(await rows.row(item.task_id))["owner"] for item in await rows.tasks.waiting(10)][:2] == ["alice", "bob"]


async def test_one_place_after_the_other_goes_to_one_owner_after_the_other(rows: Rows) -> None:
    carol = Caller("carol")
    for caller in (ALICE, ALICE, ALICE, BOB, carol, carol):
        await rows.submit(caller)
    served, order, depth = "", "", []
    while candidates := (head := await rows.tasks.head(1, served=served)).candidates:
        served = candidates[0].owner
        order += served[0]
        depth.append(head.more)
        await rows.tasks.cancel_task(Caller(served), candidates[0].task_id)
    assert order == "abcaca"
    assert all(depth)  # a whole head may have more behind it


async def test_the_head_holds_documents_once_and_never_all_of_one_owner(rows: Rows) -> None:
    paths = [{"url": "file:///data/x", "path": "/x"}]
    first = await rows.submit(document={**DOCUMENT, "inputs": paths})
    for _ in range(4):
        await rows.submit(BOB)
    await rows.agent()
    head = await rows.tasks.head(4)
    assert [candidate.owner for candidate in head.candidates] == ["alice", "bob", "bob", "bob"]
    assert head.candidates[0].paths == (("/data/x", False),)
    assert [(room.pool, room.agent_id) for room in head.rooms] == [("default", "agent1")]
    known = {first: Seen((("/known", True),))}
    assert (await rows.tasks.head(4, known=known)).candidates[0].paths == (("/known", True),)
    assert not (await rows.tasks.head(10)).more


async def test_cancel_of_what_waits_ends_at_once_with_a_log_entry(rows: Rows) -> None:
    task_id = await rows.submit()
    assert await rows.tasks.cancel_task(ALICE, task_id) == "CANCELED"
    assert await rows.tasks.cancel_task(ALICE, task_id) == "CANCELED"
    (attempt,) = (await rows.tasks.get_task(ALICE, task_id, full=True)).attempts
    assert attempt.start_time is None
    assert attempt.executors == ()


async def test_from_canceling_only_canceled_follows(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    assert await rows.tasks.cancel_task(ALICE, task_id) == "CANCELING"
    said = await rows.attempts.finish(task_id, 1, rows.words(), "COMPLETE", [])
    assert said is not None
    assert (said.stop, said.done) == (True, False)
    published = await rows.attempts.publish(task_id, 1, rows.words(), LEASE)
    assert published is not None
    assert (published.stop, published.leased) == (True, False)
    assert await rows.close(task_id, 1, "stopped", instance="agent1")
    assert await state(rows, task_id) == "CANCELED"
    await rows.check_room()


async def test_stopped_needs_a_cancel(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    assert await rows.close(task_id, 1, "stopped", instance="agent1") is None
    assert await state(rows, task_id) == "RUNNING"


async def test_an_older_report_changes_nothing_but_is_answered(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    newest = rows.words(started=True, version=100)
    await rows.attempts.report(task_id, 1, newest, LEASE)
    assert await rows.attempts.report(task_id, 1, rows.words(version=50), LEASE) is not None
    (attempt,) = (await rows.tasks.get_task(ALICE, task_id, full=True)).attempts
    assert len(attempt.executors) == 1


async def test_a_report_of_another_instance_or_attempt_is_gone(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    assert await rows.attempts.report(task_id, 1, rows.words("other"), LEASE) is None
    assert await rows.attempts.report(task_id, 2, rows.words(), LEASE) is None
    assert await rows.attempts.finish(task_id, 1, rows.words("other"), "COMPLETE", []) is None


async def test_a_retry_keeps_the_state_and_ends_in_system_error(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    await rows.close(task_id, 1, "failed", instance="agent1", max_attempts=2)
    assert await state(rows, task_id) == "RUNNING"
    assert [item.number for item in await rows.dispatch()] == [2]
    assert await state(rows, task_id) == "RUNNING"
    assert await rows.attempts.report(task_id, 1, rows.words(), LEASE) is None
    await rows.close(task_id, 2, "failed", instance="agent1", max_attempts=2)
    assert await state(rows, task_id) == "SYSTEM_ERROR"
    record = await rows.tasks.get_task(ALICE, task_id, full=True)
    assert [attempt.system_logs[-1] for attempt in record.attempts] == ["because", "because"]
    await rows.check_room()


async def test_no_terminal_state_while_another_attempts_lease_lives(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    await rows.attempts.publish(task_id, 1, rows.words(), LEASE)
    version = (await rows.row(task_id))["version"]
    assert await rows.close(task_id, 1, "lost", holder=rows.holder, version=version)
    (second,) = await rows.dispatch()
    assert second.number == 2
    # The further attempt may start, but it neither publishes nor ends the task.
    said = await rows.attempts.publish(task_id, 2, rows.words(), LEASE)
    assert said is not None
    assert not said.leased
    said = await rows.attempts.finish(task_id, 2, rows.words(), "COMPLETE", [])
    assert said is not None
    assert not said.done
    await rows.close(task_id, 2, "failed", instance="agent1", retry=False)
    assert await state(rows, task_id) == "RUNNING"
    assert await rows.tasks.end_pending() == []
    await rows.lease_ends(task_id)
    assert await rows.tasks.end_pending() == [task_id]
    assert await state(rows, task_id) == "SYSTEM_ERROR"


async def test_a_cancelled_retry_waits_for_the_lease_too(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    await rows.attempts.publish(task_id, 1, rows.words(), LEASE)
    await rows.close(task_id, 1, "lost", holder=rows.holder, version=(await rows.row(task_id))["version"])
    assert await rows.tasks.cancel_task(ALICE, task_id) == "CANCELING"
    assert await rows.dispatch() == []
    await rows.lease_ends(task_id)
    assert await rows.tasks.end_pending() == [task_id]
    assert await state(rows, task_id) == "CANCELED"


async def test_own_failure_lets_go_of_the_lease(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    await rows.attempts.publish(task_id, 1, rows.words(), LEASE)
    closed = await rows.close(task_id, 1, "failed", instance="agent1", retry=False)
    assert closed is not None
    assert closed.state == "SYSTEM_ERROR"


async def test_lost_is_guarded_by_epoch_and_version(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    version = (await rows.row(task_id))["version"]
    await rows.attempts.finish(task_id, 1, rows.words(), "COMPLETE", [])
    assert await rows.close(task_id, 1, "lost", holder=rows.holder, version=version) is None
    assert await state(rows, task_id) == "COMPLETE"
    other = await rows.running()
    before = await rows.row(other)
    assert await rows.close(other, 1, "lost", holder=rows.holder, version=before["version"] - 1) is None
    newer = await rows.replicas.enter("r1", host="here", roles=["control"])
    assert await rows.replicas.adopt(newer, timedelta(seconds=60)) == {other: True}
    assert await rows.close(other, 1, "lost", holder=rows.holder, version=(await rows.row(other))["version"]) is None
    assert await rows.attempts.suspect(rows.holder, other, 1) is None  # the old epoch has no say any more
    assert (await rows.row(other))["crashes"] == 0
    assert [await rows.attempts.suspect(newer, other, 1) for _ in range(2)] == [1, 2]
    for _ in range(2):  # sent again
        await rows.attempts.acquit(newer, other, 1, 2)
        assert (await rows.row(other))["crashes"] == 1


async def test_nothing_is_suspected_of_one_that_left(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    await rows.replicas.leave(rows.holder)
    other = await rows.replicas.enter("r2", host="there", roles=["control"])
    assert await rows.replicas.adopt(other, timedelta(seconds=60)) == {task_id: False}
    row = await rows.row(task_id)
    assert (row["replica_id"], row["crashes"]) == ("r2", 0)


async def test_nobody_adopts_from_the_living(rows: Rows) -> None:
    await rows.agent()
    await rows.running()
    other = await rows.replicas.enter("r2", host="there", roles=["control"])
    assert await rows.replicas.adopt(other, timedelta(seconds=60)) == {}
    assert await rows.replicas.beat(other) == 1


async def test_a_session_and_a_poll_are_only_heard_if_they_are_the_newest(rows: Rows) -> None:
    first = await rows.agent()
    second = await rows.agent()
    assert second == first + 1
    assert await rows.agents.hear("agent1", first, 1, draining=False, pool="default") is None
    assert await rows.agents.hear("agent1", second, 2, draining=False, pool="default") is True
    assert await rows.agents.hear("agent1", second, 1, draining=False, pool="default") is False
    assert await rows.agents.hear("agent1", second, 2, draining=False, pool="default") is False
    assert await rows.agents.hear("agent1", second, 3, draining=False, pool="other") is None


async def test_agents_that_poll_in_one_moment_are_heard_in_one_statement(rows: Rows) -> None:
    names = [f"agent{number}" for number in range(30)]
    sessions = {name: await rows.agent(name) for name in names}
    heard: list[bool | None] = []

    async def hear(name: str, number: int) -> None:
        heard.append(await rows.agents.hear(name, sessions[name], number, draining=False, pool="default"))

    async with anyio.create_task_group() as group:
        for name in reversed(names):
            group.start_soon(hear, name, 1)
        # A copy of one of them that comes at the same time is heard after it.
        group.start_soon(hear, names[7], 1)
    assert heard.count(True) == 30 and heard.count(False) == 1
    assert rows.agents._heard.calls == 31 and rows.agents._heard.batches <= 3


async def test_registering_counts_the_room_anew(rows: Rows) -> None:
    await rows.agent()
    await rows.running()
    await rows.database.execute("UPDATE agent SET used_cpu_milli = 0")
    await rows.agent()
    await rows.check_room()


async def test_a_lost_agents_attempts_are_stranded(rows: Rows) -> None:
    session = await rows.agent()
    task_id = await rows.running()
    for _ in range(3):
        await rows.agents.count_silence()
    assert not await rows.agents.close("agent1", session, 4)
    assert await rows.agents.close("agent1", session, 3)
    (stranded,) = await rows.agents.stranded()
    assert stranded.task_id == task_id
    await rows.close(task_id, 1, "lost", holder=rows.holder, version=stranded.version)
    assert await rows.agents.stranded() == []
    await rows.check_room()


async def test_only_one_holds_a_singleton(rows: Rows) -> None:
    other = await rows.replicas.enter("r2", host="there", roles=["control"])
    span = timedelta(seconds=30)
    assert await rows.replicas.hold_singleton(rows.holder, "x", span)
    assert await rows.replicas.hold_singleton(rows.holder, "x", span)
    assert not await rows.replicas.hold_singleton(other, "x", span)
    await rows.replicas.leave(rows.holder)
    assert await rows.replicas.hold_singleton(other, "x", span)


async def test_lists_filter_page_and_keep_the_newest_first(rows: Rows) -> None:
    made = [await rows.submit(name=f"n{i % 2}%", tags={"i": str(i), "all": ""}) for i in range(5)]
    everything = await rows.tasks.list_tasks(ALICE, ListQuery(limit=10))
    assert [task.id for task in everything] == made[::-1]
    page = await rows.tasks.list_tasks(ALICE, ListQuery(limit=2, after=made[3]))
    assert [task.id for task in page] == [made[2], made[1]]

    async def ids(**conditions: object) -> list[str]:
        query = ListQuery(limit=10, **conditions)  # type: ignore[arg-type]
        return [task.id for task in await rows.tasks.list_tasks(ALICE, query)]

    assert await ids(name_prefix="n1%") == [made[3], made[1]]
    assert await ids(name_prefix="n_") == []
    assert await ids(tags=(("i", "3"),)) == [made[3]]
    assert await ids(tags=(("all", None), ("i", "2"))) == [made[2]]
    assert await ids(tags=(("absent", None),)) == []
    await rows.tasks.cancel_task(ALICE, made[0])
    assert await ids(states=["CANCELED"]) == [made[0]]


async def test_the_head_goes_on_behind_what_was_seen(rows: Rows) -> None:
    first, *others = [await rows.submit(ALICE) for _ in range(6)]
    bob = await rows.submit(BOB)
    await rows.database.execute("UPDATE task SET not_before = now() + interval '1 h' WHERE id = $1", others[0])
    head = await rows.tasks.head(3, behind={"alice": first, "carol": first})
    assert [candidate.task_id for candidate in head.candidates] == [others[1], bob, others[2]]
    assert [candidate.last for candidate in head.candidates] == [False, True, False]
    rest = await rows.tasks.head(3, behind={"alice": others[2], "bob": bob})
    assert [(candidate.task_id, candidate.last) for candidate in rest.candidates] == [
        (others[3], False),
        (others[4], True),
    ]


async def test_the_queues_age_is_that_of_the_oldest_of_all_owners(rows: Rows) -> None:
    assert await rows.tasks.queue_age() == 0
    for number, caller in enumerate((BOB, ALICE, ALICE, BOB)):
        task_id = await rows.submit(caller)
        sql = "UPDATE task SET created_at = now() - $2 * interval '1 min' WHERE id = $1"
        await rows.database.execute(sql, task_id, 10 - number)
        if number == 1:
            await rows.tasks.cancel_task(ALICE, task_id)
    assert 599 < await rows.tasks.queue_age() < 640


async def test_reasons_wait_for_no_lock_and_locks_go_by_ids(rows: Rows) -> None:
    first, second = await rows.submit(), await rows.submit()
    async with rows.database.transaction() as connection:
        await connection.execute("SELECT FROM task WHERE id = $1 FOR NO KEY UPDATE", first)
        async with asyncio.timeout(2):
            await rows.tasks.note_reasons({second: "why", first: "why"})
    assert [(await rows.row(task_id))["wait_reason"] for task_id in (first, second)] == [None, "why"]


async def test_who_leaves_locks_in_the_order_of_ids(rows: Rows) -> None:
    await rows.agent()
    first, second = await rows.running(), await rows.running()
    # The table has them in the other order.
    await rows.database.execute("UPDATE task SET tags = '{}' WHERE id = $1", first)
    async with rows.database.transaction() as connection:
        await connection.execute("SELECT FROM task WHERE id = $1 FOR NO KEY UPDATE", first)
        leaving = asyncio.create_task(rows.replicas.leave(rows.holder))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with asyncio.timeout(3):
            while not await rows.database.fetchval(waits):
                await asyncio.sleep(0.01)
        await connection.execute("SELECT FROM task WHERE id = $1 FOR NO KEY UPDATE NOWAIT", second)
    await leaving
    assert [(await rows.row(task_id))["replica_id"] for task_id in (first, second)] == [None, None]


async def test_a_row_that_is_locked_holds_up_no_message_of_others(database_url: str) -> None:
    async with Database(database_url, max_size=8, lock_timeout=0.2) as database:
        rows = await Rows.made(database)
        await rows.agent("agent1", cpus=8)
        locked, *others = [await rows.running() for _ in range(5)]
        async with database.transaction() as connection:
            await connection.execute("SELECT FROM task WHERE id = $1 FOR NO KEY UPDATE", locked)
            answers = await asyncio.gather(
                *(rows.attempts.finish(task_id, 1, rows.words(), "COMPLETE", []) for task_id in (locked, *others)),
                return_exceptions=True,
            )
        assert isinstance(answers[0], DatabaseUnavailable)
        assert answers[1:] == [Said(stop=False, done=True)] * 4


async def test_what_was_committed_is_told_although_the_rest_failed(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    await rows.agent()
    task_id = await rows.running()
    real, said = rows.database.fetch, []

    async def fetch(*args: Any, **more: Any) -> Any:
        assert more["within"] is not None
        said.append(args)
        if len(said) == 2:
            raise DatabaseUnavailable("away")
        return await real(*args, **more)

    monkeypatch.setattr(rows.database, "fetch", fetch)
    finish = rows.attempts.finish
    answers = await asyncio.gather(
        *(finish(task_id, 1, rows.words(), "COMPLETE", []) for _ in range(2)), return_exceptions=True
    )
    assert answers[0] == Said(stop=False, done=True)
    assert isinstance(answers[1], DatabaseUnavailable)


async def test_messages_of_one_moment_go_together_and_fail_alone(rows: Rows) -> None:
    await rows.agent("agent1", cpus=8)
    good, bad, other, gone = [await rows.running() for _ in range(4)]

    async def finish(task_id: str, state: str, agent: str = "agent1") -> Said | Exception | None:
        try:
            return await rows.attempts.finish(task_id, 1, rows.words(agent), state, [])
        except Exception as error:
            return error

    answers = await asyncio.gather(
        finish(good, "COMPLETE"),
        finish(bad, "NONSENSE"),
        finish(other, "EXECUTOR_ERROR"),
        finish(gone, "COMPLETE", "x"),
    )
    done = Said(stop=False, leased=False, done=True)
    assert (answers[0], answers[2], answers[3]) == (done, done, None)
    assert isinstance(answers[1], asyncpg.CheckViolationError)
    assert [await state(rows, task) for task in (good, bad, other)] == ["COMPLETE", "RUNNING", "EXECUTOR_ERROR"]
    await rows.check_room()


async def test_two_messages_of_one_attempt_in_one_moment(rows: Rows) -> None:
    await rows.agent()
    task_id = await rows.running()
    for order in (1, -1):
        words = [rows.words(started=True), rows.words(started=True)][::order]
        said = await asyncio.gather(*(rows.attempts.report(task_id, 1, word, LEASE) for word in words))
        assert said == [Said(stop=False), Said(stop=False)]
        newest = max(word.version for word in words)
        assert await rows.database.fetchval("SELECT report_version FROM attempt") == newest


@pytest.mark.parametrize(
    ("seed", "at_once"), [*((seed, 1) for seed in range(12)), *((seed, 8) for seed in range(12, 18))]
)
async def test_any_order_of_messages_keeps_the_promises(rows: Rows, seed: int, at_once: int) -> None:
    """A random walk over all rows: states only move forward, ends are final, room adds up, leases are waited for.

    `at_once`: so many messages come in one moment, and some of them go in one statement.
    """
    dice = random.Random(seed)
    await rows.agent("agent1", cpus=3)
    await rows.agent("agent2", cpus=2)
    seen: dict[str, str] = {}

    async def check() -> None:
        for row in await rows.database.fetch("SELECT id, state, attempt, publish_until > now() AS leased FROM task"):
            before, after = seen.get(row["id"], "QUEUED"), row["state"]
            steps = {State(before)}
            for _ in range(at_once):
                steps |= {state for state in State for step in steps if may_follow(step, state)}
            assert after in steps, (row["id"], before, after)
            assert not (after in TERMINAL and row["leased"]), row
            seen[row["id"]] = after
        await rows.check_room()

    async def step() -> None:
        task_id = dice.choice(list(seen) or [""])
        number = dice.choice([1, 1, 2, 3])
        agent = dice.choice(["agent1", "agent2"])
        match dice.randrange(11):
            case 0 | 1:
                seen[await rows.submit()] = "QUEUED"
            case 2 | 3:
                await rows.dispatch()
            case 4:
                await rows.attempts.acknowledge(agent, [(task_id, number)])
            case 5:
                await rows.attempts.report(task_id, number, rows.words(agent, started=dice.random() < 0.7), LEASE)
            case 6:
                await rows.attempts.publish(task_id, number, rows.words(agent), LEASE)
            case 7:
                final = dice.choice(["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR"])
                await rows.attempts.finish(task_id, number, rows.words(agent), final, [])
            case 8:
                kind = dice.choice(["failed", "stopped"])
                await rows.close(task_id, number, kind, instance=agent)
            case 9:
                row = await rows.row(task_id)
                if row is not None:
                    version = row["version"] - dice.choice([0, 0, 1])
                    await rows.close(task_id, number, "lost", holder=rows.holder, version=version)
            case 10:
                if seen and dice.random() < 0.5:
                    await rows.tasks.cancel_task(ALICE, task_id)
                else:
                    await rows.lease_ends(task_id)
                    await rows.tasks.end_pending()

    for _ in range(160 // at_once):
        await asyncio.gather(*(step() for _ in range(at_once)))
        await check()
    # With nothing but goodwill everything ends.
    for _ in range(60):
        for task_id, last in list(seen.items()):
            if last in TERMINAL:
                continue
            await rows.lease_ends(task_id)
            row = await rows.row(task_id)
            for agent in ("agent1", "agent2"):
                await rows.close(task_id, row["attempt"], "stopped", instance=agent)
                await rows.attempts.finish(task_id, row["attempt"], rows.words(agent), "COMPLETE", [])
        await rows.tasks.end_pending()
        await rows.dispatch()
        await check()
        if set(seen.values()) <= TERMINAL:
            break
    assert set(seen.values()) <= TERMINAL
    assert await rows.database.fetchval("SELECT sum(used_cpu_milli) FROM agent") == 0
