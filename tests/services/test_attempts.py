"""What agents and runners say and are told, on a real PostgreSQL: held polls, tombstones, delayed duplicates."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from tesgate.errors import Conflict, Gone
from tesgate.model.planning import PlanSettings, build_plan
from tesgate.model.retries import Retries
from tesgate.runner.report import AgentFacts, ExecutorReport, Have, PollRequest, Report, Resources, Snapshot
from tesgate.services.attempts import SHORTEST, AttemptService, Policy
from tesgate.store.attempts import Order
from tesgate.store.database import Database
from tesgate.telemetry import Metrics
from tests.store.rows import ALICE, Rows


class Room:
    """The service on real rows, and one agent that speaks as the wire wants it."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.broken_plans: set[str] = set()
        self.service = AttemptService(
            agents=rows.agents,
            attempts=rows.attempts,
            wakes=rows.wakes,
            policy=Policy(
                lease=timedelta(seconds=30),
                grace=timedelta(seconds=10),
                longest_poll=timedelta(hours=1),
                retries=Retries(3, timedelta(0), 1.0, timedelta(0)),
            ),
            plan_for=self._plan,
            metrics=Metrics(),
        )
        self.session = 0
        self.number = 0
        self.said = 0

    def _plan(self, start: Order):  # type: ignore[no-untyped-def]
        if start.task_id in self.broken_plans:
            raise ValueError("this row cannot be planned")
        return build_plan(
            start.task_id, start.number, start.external_name, start.document or {}, "tok", settings=PlanSettings()
        )

    async def register(self) -> None:
        facts = AgentFacts("agent1", "host", "0", Resources(4, 10**12, 10**12), runtimes=["docker"])
        self.session = (await self.service.register("default", facts)).session
        self.number = 0

    async def poll(self, *have: str, wait: float = 0.3, stopping: bool = False, tombs: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
        self.number += 1
        return await self.service.poll("default", self.request(*have, wait=wait, stopping=stopping, tombs=tombs))

    def request(
        self,
        *have: str,
        wait: float = 0.3,
        stopping: bool = False,
        tombs: tuple[str, ...] = (),
        number: int | None = None,
    ) -> PollRequest:
        return PollRequest(
            agent="agent1",
            session=self.session,
            number=self.number if number is None else number,
            have=[Have(task, 1, stopping) for task in have],
            tombstones=[Have(task, 1) for task in tombs],
            wait=wait,
        )

    def report(self, *, state: str | None = None, running: bool = True, cause: str | None = None) -> Report:
        self.said += 1
        executors = [ExecutorReport("2026-01-01T00:00:00Z", stdout="out")] if running else []
        return Report(self.said, "agent1", Snapshot(executors=executors), state=state, cause=cause)

    async def state(self, task_id: str) -> str:
        return await self.rows.tasks.get_state(ALICE, task_id)


@pytest.fixture
async def room(database: Database) -> Room:
    made = Room(await Rows.made(database))
    await made.register()
    return made


async def assigned(room: Room) -> str:
    task_id = await room.rows.submit()
    assert await room.rows.dispatch()
    return task_id


async def test_a_held_poll_is_answered_when_something_is_assigned(room: Room) -> None:
    answers = []

    async def hold() -> None:
        answers.append(await room.poll(wait=3600))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            await anyio.wait_all_tasks_blocked()
            task_id = await assigned(room)
            room.rows.wakes.agent("agent1")
    assert [plan.task for plan in answers[0].start] == [task_id]
    # Not acknowledged yet: the start is repeated.
    assert [plan.task for plan in (await room.poll()).start] == [task_id]
    assert not (await room.poll(task_id)).start
    assert (await room.rows.row(task_id))["phase"] == "started"


async def test_from_start_to_forget(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll()
    await room.service.report(task_id, 1, room.report())
    assert await room.state(task_id) == "RUNNING"
    assert (await room.service.publish(task_id, 1, room.report())).lease == 30
    assert (await room.service.report(task_id, 1, room.report())).lease == 30
    await room.service.finish(task_id, 1, room.report(state="COMPLETE"))
    assert await room.state(task_id) == "COMPLETE"
    assert [ref.task for ref in (await room.poll(task_id)).forget] == [task_id]
    assert not (await room.poll()).forget
    with pytest.raises(Gone):
        await room.service.finish(task_id, 1, room.report(state="COMPLETE"))


async def test_a_last_word_that_is_repeated_is_heard_again(room: Room) -> None:
    for say, report, ready in (
        (room.service.finish, room.report(state="EXECUTOR_ERROR"), None),
        (room.service.failed, room.report(cause="x"), None),
        (room.service.stopped, room.report(), "cancel"),
    ):
        task_id = await assigned(room)
        if ready:
            await room.rows.tasks.cancel_task(ALICE, task_id)
        await say(task_id, 1, report)
        before = await room.rows.row(task_id)
        await say(task_id, 1, report)
        assert await room.rows.row(task_id) == before
        await room.rows.tasks.cancel_task(ALICE, task_id)
    await room.rows.check_room()


async def test_an_end_that_is_repeated_is_told_again(room: Room) -> None:
    """Whoever was to tell of the first may have been cut off."""
    task_id, report = await assigned(room), room.report(state="COMPLETE")
    await room.service.finish(task_id, 1, report)
    ended: list[str] = []
    room.rows.wakes.follow_tasks(tell=lambda task_id: None, ended=ended.append)
    ticket = room.rows.wakes.agent_ticket("agent1")
    queue = room.rows.wakes.queue_ticket()
    await room.service.finish(task_id, 1, report)
    assert ended == [task_id]
    assert ticket.news.is_set()
    assert queue.is_set()


async def test_what_only_a_report_acknowledged_cannot_be_missing(room: Room) -> None:
    task_id = await assigned(room)
    await room.service.report(task_id, 1, room.report())
    assert [plan.task for plan in (await room.poll()).start] == [task_id]
    assert await room.state(task_id) == "RUNNING"


async def test_what_was_listed_after_its_report_is_lost_when_missing_and_never_started_again(room: Room) -> None:
    task_id = await assigned(room)
    await room.service.report(task_id, 1, room.report())
    await room.poll(task_id)
    assert not (await room.poll()).start
    row = await room.rows.row(task_id)
    assert (row["phase"], row["state"]) == ("waiting", "RUNNING")


async def test_a_poll_that_was_overtaken_while_it_was_handled_loses_nothing(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll(task_id)
    version = (await room.rows.row(task_id))["version"]
    stale = (room.session, room.number)
    await room.poll(task_id)
    assert await room.rows.close(task_id, 1, "lost", version=version, poll=stale) is None
    assert await room.rows.close(task_id, 1, "lost", version=version, poll=(room.session, room.number)) is not None


async def test_a_cancel_before_the_start_arrived_ends_by_a_tombstone(room: Room) -> None:
    task_id = await assigned(room)
    assert await room.rows.tasks.cancel_task(ALICE, task_id) == "CANCELING"
    answer = await room.poll()
    assert not answer.start
    assert [order.task for order in answer.stop] == [task_id]
    answer = await room.poll(tombs=(task_id,))
    assert await room.state(task_id) == "CANCELED"
    assert [ref.task for ref in answer.forget] == [task_id]
    await room.rows.check_room()


async def test_a_start_that_the_agent_cannot_make_is_lost_and_tried_again(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll(tombs=(task_id,))
    assert (await room.rows.row(task_id))["phase"] == "waiting"
    assert [item.number for item in await room.rows.dispatch()] == [2]


async def test_stop_is_said_until_the_agent_says_that_it_stops(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll(task_id)
    await room.rows.tasks.cancel_task(ALICE, task_id)
    assert [order.task for order in (await room.poll(task_id)).stop] == [task_id]
    assert not (await room.poll(task_id, stopping=True)).stop
    assert (await room.service.report(task_id, 1, room.report())).stop
    await room.service.stopped(task_id, 1, room.report())
    assert await room.state(task_id) == "CANCELED"


async def test_what_was_acknowledged_and_is_missing_is_lost(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll(task_id)
    await room.poll()
    row = await room.rows.row(task_id)
    assert (row["phase"], row["state"]) == ("waiting", "INITIALIZING")


async def test_a_delayed_duplicate_of_an_older_poll_loses_nothing(room: Room) -> None:
    old = room.request(number=1)
    task_id = await assigned(room)
    room.number = 1
    await room.poll(task_id)
    answer = await room.service.poll("default", old)
    assert not (answer.start or answer.stop or answer.forget)
    assert (await room.rows.row(task_id))["phase"] == "started"


async def test_an_older_session_is_gone(room: Room) -> None:
    old = room.request(number=9)
    await room.register()
    with pytest.raises(Gone):
        await room.service.poll("default", old)


async def test_a_token_of_another_pool_cannot_take_an_agent_over(room: Room) -> None:
    facts = AgentFacts("agent1", "elsewhere", "0", Resources(4, 10**12, 10**12), runtimes=["docker"])
    with pytest.raises(Gone):
        await room.service.register("other", facts)
    assert not (await room.poll()).forget  # the session is still the newest


async def test_a_row_that_cannot_be_planned_ends_and_stops_nobody_else(room: Room) -> None:
    bad, good = await room.rows.submit(), await room.rows.submit()
    room.broken_plans.add(bad)
    assert len(await room.rows.dispatch()) == 2
    assert [plan.task for plan in (await room.poll(wait=10)).start] == [good]
    assert await room.state(bad) == "SYSTEM_ERROR"
    (attempt,) = (await room.rows.tasks.get_task(ALICE, bad, full=True)).attempts
    assert "cannot be planned" in attempt.system_logs[0]


async def test_publish_waits_for_another_attempts_lease(room: Room) -> None:
    task_id = await assigned(room)
    await room.poll(task_id)
    await room.service.publish(task_id, 1, room.report())
    version = (await room.rows.row(task_id))["version"]
    await room.rows.close(task_id, 1, "lost", holder=room.rows.holder, version=version)
    assert await room.rows.dispatch()
    with pytest.raises(Conflict):
        await room.service.publish(task_id, 2, room.report())
    with pytest.raises(Conflict):
        await room.service.finish(task_id, 2, room.report(state="COMPLETE"))
    with pytest.raises(Gone):
        await room.service.report(task_id, 1, room.report())
    await room.rows.lease_ends(task_id)
    assert (await room.service.publish(task_id, 2, room.report())).lease == 30


async def test_a_failure_is_another_attempt_with_its_cause_in_the_logs(room: Room) -> None:
    task_id = await assigned(room)
    await room.service.failed(task_id, 1, room.report(cause="the engine went away"))
    record = await room.rows.tasks.get_task(ALICE, task_id, full=True)
    assert "the engine went away" in record.attempts[0].system_logs
    assert [item.number for item in await room.rows.dispatch()] == [2]


async def test_polls_of_one_moment_do_not_end_in_one(room: Room) -> None:
    shares = {room.service._spread() for _ in range(50)}
    assert len(shares) > 10 and min(shares) >= SHORTEST and max(shares) <= 1.0
    room.service._spread = lambda: 0.0
    with anyio.fail_after(15):  # it would be held for 20
        assert not (await room.poll(wait=1000.0)).start
