"""The contract of `Backend` on a scripted fake and on the pool, and the control loops that go by it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tesgate.backends.base import AttemptRef, Backend, BackendError, Launch, Listed, Lost, Observation, Running
from tesgate.backends.pool import PoolBackend
from tesgate.control.dispatcher import Dispatcher
from tesgate.control.drivers import Drivers
from tesgate.control.held import Trust
from tesgate.control.keeper import Keeper, Superseded
from tesgate.control.supervisor import repeat
from tesgate.control.watchers import watch_backend
from tesgate.model.retries import Retries
from tesgate.store.attempts import AttemptStore, Holder
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes
from tests.backends.fake import FakeBackend
from tests.store.rows import ALICE, LEASE, Rows

RETRIES = Retries(max_attempts=3, first=timedelta(0), factor=1, longest=timedelta(0))
CRASH_LIMIT = 3
SOON = timedelta(milliseconds=50)


@pytest.fixture
async def rows(database: Database) -> Rows:
    made = await Rows.made(database)
    await made.agent(cpus=16)
    return made


async def eventually(what: str, ask: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """The first answer that is true."""
    found: Any = None
    with anyio.move_on_after(seconds):
        while not (found := await ask()):
            await anyio.sleep(0.01)
    assert found, f"waited for {what}"
    return found


async def give(rows: Rows, *, backend: str = "fake") -> str:
    """A task whose attempt is assigned to `backend`; nobody has launched it yet."""
    task_id = await rows.submit()
    await assign(rows, rows.holder, backend)
    return task_id


async def assign(rows: Rows, holder: Holder, backend: str) -> None:
    from tesgate.model.placement import place

    rooms = [agent.room for agent in await rows.agents.list_open()]
    picks = place(await rows.tasks.waiting(100), rooms, reserve_after=30).picks
    await rows.attempts.assign(holder, picks, backend=backend, keeps=backend == "fake", prefix="tg-")


# -- the contract itself ---------------------------------------------------------------------------------------


@dataclass
class Subject:
    """A backend with one attempt on it."""

    backend: Backend
    ref: AttemptRef
    lose: Callable[[], Awaitable[None]]


@pytest.fixture(params=["fake", "pool"])
async def subject(request: pytest.FixtureRequest, rows: Rows) -> AsyncGenerator[Subject]:
    task_id = await give(rows, backend=request.param)
    (held,) = await rows.attempts.held(rows.holder, task_id)
    ref = AttemptRef(task_id, 1, held.external_name, None, held.agent_id)
    if request.param == "fake":
        fake = FakeBackend()

        async def lose_it() -> None:
            fake.lose(task_id)

        yield Subject(fake, ref, lose_it)
    else:

        async def lose_agent() -> None:
            (silence,) = await rows.agents.count_silence()
            assert await rows.agents.close(silence.agent_id, silence.session, 1)

        yield Subject(PoolBackend(agents=rows.agents, wakes=rows.wakes, interval=SOON), ref, lose_agent)


async def next_of(watch: AsyncIterator[Observation], kind: type[Observation]) -> Observation:
    with anyio.fail_after(60):
        async for observation in watch:
            if isinstance(observation, kind):
                return observation
    raise AssertionError("the watch has ended")


async def test_launch_is_idempotent(subject: Subject) -> None:
    first = await subject.backend.launch(Launch(subject.ref))
    second = await subject.backend.launch(Launch(subject.ref))
    assert first == second
    if isinstance(subject.backend, FakeBackend):
        assert [thing.made for thing in subject.backend.things.values()] == [1]
    assert await subject.backend.inspect(subject.ref) == Running(subject.ref.task_id, 1)


async def test_inspect_says_lost(subject: Subject) -> None:
    await subject.backend.launch(Launch(subject.ref))
    await subject.lose()
    seen = await subject.backend.inspect(subject.ref)
    assert isinstance(seen, Lost) and (seen.task_id, seen.number) == (subject.ref.task_id, 1) and seen.sentence


async def test_watch_lists_and_then_says_what_changes(subject: Subject) -> None:
    await subject.backend.launch(Launch(subject.ref))
    watch = subject.backend.watch()
    await next_of(watch, Listed)
    await subject.lose()
    lost = await next_of(watch, Lost)
    assert isinstance(lost, Lost) and (lost.task_id, lost.number) == (subject.ref.task_id, 1)
    await watch.aclose()  # type: ignore[attr-defined]


async def test_cancel_and_release_are_idempotent_and_gone_is_success(subject: Subject) -> None:
    for _ in range(2):
        await subject.backend.cancel(subject.ref, timedelta(seconds=1))
    await subject.backend.launch(Launch(subject.ref))
    for _ in range(2):
        await subject.backend.cancel(subject.ref, timedelta(seconds=1))
    for _ in range(2):
        await subject.backend.release(subject.ref)


async def test_wake_ups_of_the_pool(rows: Rows) -> None:
    """On the pool all three are wake-ups of the agent's held poll."""
    pool = PoolBackend(agents=rows.agents, wakes=rows.wakes, interval=SOON)
    ref = AttemptRef("t", 1, "tg-t-1", None, "agent1")
    for call in (pool.launch(Launch(ref)), pool.cancel(ref, SOON), pool.release(ref)):
        ticket = rows.wakes.agent_ticket("agent1")
        await call
        assert ticket.urgent.is_set()
    assert pool.check({}) == []


# -- the loops -------------------------------------------------------------------------------------------------


class Replica:
    """Drivers, keeper, watcher and dispatcher of one gateway, with wakes of its own."""

    def __init__(
        self, rows: Rows, backend: Backend, holder: Holder, *, clock: Callable[[], float] | None = None
    ) -> None:
        self.wakes = Wakes()
        more = {} if clock is None else {"clock": clock}
        self.trust = Trust(holder=holder, window=timedelta(seconds=8), **more)
        self.tasks = TaskStore(database=rows.database, wakes=self.wakes)
        self.attempts = AttemptStore(database=rows.database)
        self.drivers = Drivers(
            attempts=self.attempts,
            backends={backend.name: backend},
            trust=self.trust,
            wakes=self.wakes,
            retries=RETRIES,
            grace=timedelta(seconds=1),
            crash_limit=CRASH_LIMIT,
        )
        self.wakes.follow_tasks(tell=self.drivers.tell, ended=self.drivers.ended)
        self.keeper = Keeper(
            replicas=rows.replicas,
            trust=self.trust,
            drivers=self.drivers,
            wakes=self.wakes,
            adopt_after=timedelta(seconds=15),
        )
        self.dispatcher = Dispatcher(
            tasks=self.tasks,
            attempts=self.attempts,
            agents=rows.agents,
            trust=self.trust,
            assigned=self.drivers.assigned,
            prefix="tg-",
            known_roots=[],
            pool="default",
        )
        self.backend = backend
        self.beats = True

    @asynccontextmanager
    async def running(self, *, dispatch: bool = False) -> AsyncIterator[Replica]:
        """Until the end of the block, which is a ``kill -9`` for all that the rows know."""

        async def beat() -> bool:
            return await self.keeper.once() if self.beats else False

        loops: list[tuple[str, Callable[[], Awaitable[bool | None]]]] = [
            ("compare", self.drivers.compare),
            ("keeper", beat),
            ("trust", self.keeper.watch_trust),
            ("watch", lambda: watch_backend(self.backend, self.drivers)),
        ]
        if dispatch:
            loops.append(("dispatcher", self.dispatcher.once))
        async with anyio.create_task_group() as group:
            group.start_soon(self.drivers.run)
            for name, once in loops:
                group.start_soon(repeat, name, once, SOON)
            yield self
            group.cancel_scope.cancel()


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend()


async def launched(rows: Rows, task_id: str) -> bool:
    """The handle stands in the row."""
    query = "SELECT handle FROM attempt a JOIN task t ON t.id = a.task_id AND t.attempt = a.number WHERE t.id = $1"
    return await rows.database.fetchval(query, task_id) is not None


async def ended(rows: Rows, task_id: str) -> str | None:
    row = await rows.row(task_id)
    return row["state"] if row["phase"] == "ended" else None


async def released(rows: Rows, task_id: str) -> bool:
    return bool((await rows.row(task_id))["released"])


async def finish(rows: Rows, task_id: str, number: int = 1, replica: Replica | None = None) -> None:
    """Its runner says that it has finished."""
    said = await rows.attempts.finish(task_id, number, rows.words(started=True), "COMPLETE", [])
    assert said is not None and said.done
    if replica is not None:
        replica.wakes.ended(task_id)


async def test_a_launch_is_stored_and_released_after_the_end(rows: Rows, fake: FakeBackend) -> None:
    async with Replica(rows, fake, rows.holder).running() as replica:
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        assert fake.count("release") == 0
        await finish(rows, task_id, replica=replica)
        await eventually("the release", lambda: released(rows, task_id))
        assert (fake.count("launch"), fake.count("release"), fake.count("cancel")) == (1, 1, 0)
        assert not fake.things
        await eventually("the driver's end", lambda: nobody(replica))


async def nobody(replica: Replica) -> bool:
    return len(replica.drivers) == 0


async def test_crash_between_launch_and_storing_the_handle_adopts(rows: Rows, fake: FakeBackend) -> None:
    """The launch lands and its answer is lost: the replica dies there, and the next one launches again."""
    task_id = await give(rows)
    fake.late_faults["launch"].append(anyio.get_cancelled_exc_class()())
    async with Replica(rows, fake, rows.holder).running():
        await eventually("the launch", lambda: counted(fake, "launch", 1))
    assert not await launched(rows, task_id)
    holder = await rows.replicas.enter("r1", host="here", roles=["control"])
    async with Replica(rows, fake, holder).running() as replica:
        await eventually("the handle", lambda: launched(rows, task_id))
        (thing,) = fake.things.values()
        assert thing.made == 1 and fake.count("launch") == 2
        await finish(rows, task_id, replica=replica)
        await eventually("the release", lambda: released(rows, task_id))


async def counted(fake: FakeBackend, method: str, times: int) -> bool:
    return fake.count(method) >= times


async def test_release_is_made_up_after_a_crash(rows: Rows, fake: FakeBackend) -> None:
    """The terminal state was stored, the release was not: who comes next releases."""
    task_id = await give(rows)
    async with Replica(rows, fake, rows.holder).running():
        await eventually("the launch", lambda: launched(rows, task_id))
    await finish(rows, task_id)
    assert fake.things
    holder = await rows.replicas.enter("r1", host="here", roles=["control"])
    async with Replica(rows, fake, holder).running():
        await eventually("the release", lambda: released(rows, task_id))
    assert not fake.things


async def test_lost_is_tried_again_and_given_up(rows: Rows, fake: FakeBackend) -> None:
    async with Replica(rows, fake, rows.holder).running():
        task_id = await give(rows)
        for number in (1, 2, 3):
            await eventually("the launch", lambda: launched(rows, task_id))
            fake.lose(task_id)

            async def over(number: int = number) -> bool:
                row = await rows.row(task_id)
                return row["phase"] == ("ended" if number == 3 else "waiting")

            await eventually(f"attempt {number} to be closed", over)
            await assign(rows, rows.holder, "fake")
        assert await ended(rows, task_id) == "SYSTEM_ERROR"
        task = await rows.tasks.get_task(ALICE, task_id, full=True)
        assert [attempt.system_logs for attempt in task.attempts] == [("it was preempted",)] * 3
        assert (await rows.row(task_id))["crashes"] == 0
        await eventually("the release", lambda: released(rows, task_id))
        await rows.check_room()


async def test_a_loss_is_not_forgotten_when_a_report_comes_between(rows: Rows, fake: FakeBackend) -> None:
    """The backend says it once; the row's version rises while the owner writes it down."""
    async with Replica(rows, fake, rows.holder).running() as replica:
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        close = replica.attempts.close
        interrupted = anyio.Event()

        async def after_a_report(*arguments: Any, **more: Any) -> Any:
            if not interrupted.is_set():
                interrupted.set()
                await rows.attempts.report(task_id, 1, rows.words(started=True), LEASE)
            return await close(*arguments, **more)

        replica.attempts.close = after_a_report  # type: ignore[method-assign]
        fake.lose(task_id)

        async def waits() -> bool:
            return (await rows.row(task_id))["phase"] == "waiting"

        await eventually("the loss to be written", waits)
        assert interrupted.is_set()


async def test_lost_while_nobody_followed(rows: Rows, fake: FakeBackend) -> None:
    """It disappears between two gateways: no watch will ever mention it, so who adopts it inspects."""
    task_id = await give(rows)
    async with Replica(rows, fake, rows.holder).running():
        await eventually("the launch", lambda: launched(rows, task_id))
    await rows.attempts.report(task_id, 1, rows.words(started=True), LEASE)
    fake.things.clear()
    holder = await rows.replicas.enter("r1", host="here", roles=["control"])
    async with Replica(rows, fake, holder).running():

        async def waits() -> bool:
            return (await rows.row(task_id))["phase"] == "waiting"

        await eventually("the loss", waits)


async def test_cancel(rows: Rows, fake: FakeBackend) -> None:
    async with Replica(rows, fake, rows.holder).running() as replica:
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        assert await replica.tasks.cancel_task(ALICE, task_id) == "CANCELING"
        assert await eventually("the end", lambda: ended(rows, task_id)) == "CANCELED"
        await eventually("the release", lambda: released(rows, task_id))
        assert fake.count("cancel") >= 1 and not fake.things
        await rows.check_room()


async def test_cancel_by_its_runner(rows: Rows, fake: FakeBackend) -> None:
    """The backend only passes the wish on; the runner says when it has stopped."""
    fake.dies_when_cancelled = False
    async with Replica(rows, fake, rows.holder).running() as replica:
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        await replica.tasks.cancel_task(ALICE, task_id)
        await eventually("the cancel", lambda: counted(fake, "cancel", 1))
        assert await ended(rows, task_id) is None
        closed = await rows.close(task_id, 1, "stopped", instance="agent1")
        assert closed is not None and closed.state == "CANCELED"
        await eventually("the release", lambda: released(rows, task_id))


async def test_cancel_of_what_was_never_launched(rows: Rows, fake: FakeBackend) -> None:
    """Assigned, cancelled before the launch, and the replica died: there is nobody who could say "stopped"."""
    task_id = await give(rows)
    assert await rows.tasks.cancel_task(ALICE, task_id) == "CANCELING"
    async with Replica(rows, fake, rows.holder).running():
        assert await eventually("the end", lambda: ended(rows, task_id)) == "CANCELED"
    assert fake.count("launch") == 0


async def test_a_backend_that_does_not_answer_is_backed_off_from(rows: Rows, fake: FakeBackend) -> None:
    fake.faults["launch"] = [BackendError("it does not answer"), BackendError("it still does not")]
    fake.faults["watch"] = [BackendError("no watch")]
    async with Replica(rows, fake, rows.holder).running():
        task_id = await give(rows)
        began = anyio.current_time()
        await eventually("the launch", lambda: launched(rows, task_id))
        assert anyio.current_time() - began > 0.5
        assert fake.count("launch") == 3
        row = await rows.row(task_id)
        assert (row["crashes"], row["attempt"]) == (0, 1)


async def test_a_driver_that_raises_is_counted_and_given_up(rows: Rows, fake: FakeBackend) -> None:
    async with Replica(rows, fake, rows.holder).running() as replica:
        good, bad = await give(rows), await rows.submit()
        await eventually("the launch", lambda: launched(rows, good))
        fake.always["launch"] = ZeroDivisionError("a row that nobody can drive")
        await assign(rows, rows.holder, "fake")
        assert await eventually("the end", lambda: ended(rows, bad)) == "SYSTEM_ERROR"
        assert fake.count("launch", bad) == CRASH_LIMIT
        task = await rows.tasks.get_task(ALICE, bad, full=True)
        assert len(task.attempts) == 1 and "a row that nobody can drive" in " ".join(task.attempts[0].system_logs)
        await finish(rows, good, replica=replica)
        await eventually("the release of the other", lambda: released(rows, good))
        await rows.check_room()


async def test_a_driver_that_raised_goes_on(rows: Rows, fake: FakeBackend) -> None:
    fake.faults["launch"] = [ZeroDivisionError("once")]
    async with Replica(rows, fake, rows.holder).running():
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        assert (await rows.row(task_id))["crashes"] == 1


async def test_a_task_that_kills_its_gateways_is_given_up(rows: Rows, fake: FakeBackend) -> None:
    task_id = await give(rows)
    fake.always["launch"] = BackendError("not now")
    for _ in range(CRASH_LIMIT):
        holder = await rows.replicas.enter("r1", host="here", roles=["control"])
        adopted = await rows.replicas.adopt(holder, timedelta(seconds=15))
        assert adopted == {task_id: True}
        await rows.attempts.suspect(holder, task_id, 1)  # and dies while it acts on it
    async with Replica(rows, fake, holder).running():
        assert await eventually("the end", lambda: ended(rows, task_id)) == "SYSTEM_ERROR"
    assert fake.count("launch") == 0


async def test_another_replica_adopts(rows: Rows, fake: FakeBackend) -> None:
    """The first one is silent; what it still does has no effect, because the epoch is another."""
    first = Replica(rows, fake, rows.holder)
    async with first.running():
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        first.beats = False
        other = await rows.replicas.enter("r2", host="there", roles=["control"])
        await rows.database.execute("UPDATE replica SET seen_at = now() - interval '1 min' WHERE id = 'r1'")
        async with Replica(rows, fake, other).running() as second:

            async def held() -> bool:
                row = await rows.row(task_id)
                return (row["replica_id"], row["replica_epoch"]) == ("r2", other.epoch) and len(second.drivers) == 1

            await eventually("the adoption", held)
            version = (await rows.row(task_id))["version"]
            assert await rows.close(task_id, 1, "lost", holder=rows.holder, version=version) is None
            assert await rows.attempts.store_handle(rows.holder, task_id, 1, version, {}) is None
            await eventually("the first one's driver to end", lambda: nobody(first))
            await finish(rows, task_id, replica=second)
            await eventually("the release", lambda: released(rows, task_id))
            assert not fake.things


async def test_a_superseded_replica_ends(rows: Rows, fake: FakeBackend) -> None:
    replica = Replica(rows, fake, rows.holder)
    await rows.replicas.enter("r1", host="here", roles=["control"])
    with pytest.raises(Superseded):
        await replica.keeper.once()


async def test_past_the_trust_window_all_is_dropped_and_taken_up_again(rows: Rows, fake: FakeBackend) -> None:
    now = 1000.0
    replica = Replica(rows, fake, rows.holder, clock=lambda: now)
    async with replica.running():
        task_id = await give(rows)
        await eventually("the launch", lambda: launched(rows, task_id))
        replica.beats = False
        now += 9
        await eventually("all to be dropped", lambda: nobody(replica))
        await replica.drivers.compare()
        assert await nobody(replica) and not replica.trust.holds()
        assert await replica.dispatcher.once() is False
        replica.beats = True

        async def followed() -> bool:
            return len(replica.drivers) == 1 and replica.trust.holds()

        await eventually("it to be followed again", followed)
        assert fake.count("launch") == 1  # its handle is known
        await finish(rows, task_id, replica=replica)
        await eventually("the release", lambda: released(rows, task_id))


# -- the pool with its dispatcher ------------------------------------------------------------------------------


@pytest.fixture
def pool(rows: Rows) -> PoolBackend:
    return PoolBackend(agents=rows.agents, wakes=rows.wakes, interval=SOON)


async def state_of(rows: Rows, task_id: str, *states: str) -> bool:
    return await rows.tasks.get_state(ALICE, task_id) in states


async def test_dispatch_to_the_pool_and_its_end(rows: Rows, pool: PoolBackend) -> None:
    async with Replica(rows, pool, rows.holder).running(dispatch=True) as replica:
        task_id = await rows.submit()
        await eventually("an agent", lambda: state_of(rows, task_id, "INITIALIZING"))
        assert len(replica.drivers) == 1
        await finish(rows, task_id, replica=replica)
        await eventually("the driver's end", lambda: nobody(replica))
        assert await released(rows, task_id)
        await rows.check_room()


async def test_a_lost_agent_gives_its_tasks_back(rows: Rows, pool: PoolBackend) -> None:
    """Three agents in turn are lost under one task: it ends in SYSTEM_ERROR with all three in its logs."""
    async with Replica(rows, pool, rows.holder).running(dispatch=True):
        task_id = await rows.submit()
        for number in (1, 2, 3):
            await eventually("an assignment", lambda number=number: assigned(rows, task_id, number))
            await rows.agent(f"spare{number}")
            await rows.database.execute(
                "UPDATE agent g SET silent_ticks = 99 FROM attempt a "
                "WHERE g.id = a.agent_id AND a.task_id = $1 AND a.number = $2",
                task_id,
                number,
            )
            for agent in await rows.agents.list_open():
                if agent.silent_ticks == 99:
                    assert await rows.agents.close(agent.room.agent_id, agent.session, 12)
        assert await eventually("the end", lambda: ended(rows, task_id)) == "SYSTEM_ERROR"
        task = await rows.tasks.get_task(ALICE, task_id, full=True)
        assert len(task.attempts) == 3
        assert all("has not been heard of" in " ".join(attempt.system_logs) for attempt in task.attempts)
        await rows.check_room()


async def assigned(rows: Rows, task_id: str, number: int) -> bool:
    row = await rows.row(task_id)
    return (row["phase"], row["attempt"]) == ("assigned", number)


async def test_two_replicas_dispatch_each_task_once(rows: Rows, pool: PoolBackend) -> None:
    other = await rows.replicas.enter("r2", host="there", roles=["control"])
    first, second = (Replica(rows, pool, holder) for holder in (rows.holder, other))
    async with first.running(dispatch=True), second.running(dispatch=True):
        ids = [await rows.submit() for _ in range(30)]

        async def all_given() -> bool:
            found = await rows.database.fetchval("SELECT count(*) FROM task WHERE phase = 'assigned'")
            return bool(found == 16)

        await eventually("all room to be taken", all_given)
        await rows.check_room()
        for task_id in sorted(ids)[:16]:
            await finish(rows, task_id)
        await eventually("the rest", lambda: ended_or_given(rows, 14))
        assert await rows.database.fetchval("SELECT max(number) FROM attempt") == 1


async def ended_or_given(rows: Rows, given: int) -> bool:
    return bool(await rows.database.fetchval("SELECT count(*) FROM task WHERE phase = 'assigned'") == given)
