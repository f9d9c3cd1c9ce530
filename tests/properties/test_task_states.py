"""The life of tasks on the real store: whatever messages come in whatever order, what clients see stays true."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tesgate.errors import TaskNotFound
from tesgate.model.caller import Caller
from tesgate.model.records import ListQuery
from tesgate.model.state import TERMINAL, State, may_follow
from tesgate.store.attempts import Holder
from tesgate.store.database import Database
from tests.beds.postgres import Server
from tests.store.rows import ALICE, LEASE, Rows

T = TypeVar("T")

BOB = Caller("bob")
AGENTS = ["agent1", "agent2"]
EXAMPLES = int(os.environ.get("TESGATE_PROPERTY_EXAMPLES", "12"))
"""More of them: another number than the default, and then also other ones each time."""


@pytest.fixture(scope="module")
def url(postgres_server: Server) -> Generator[str]:
    name = f"properties_{os.getpid()}"
    anyio.run(postgres_server.run, f"CREATE DATABASE {name} TEMPLATE {postgres_server.template} STRATEGY FILE_COPY")
    yield postgres_server.url(name)
    anyio.run(postgres_server.run, f"DROP DATABASE {name} WITH (FORCE)")


def machine_on(database: Database, runner: asyncio.Runner) -> type[RuleBasedStateMachine]:
    """The machine, on a database that is open in the runner's loop."""

    def wait(awaitable: Awaitable[T]) -> T:
        async def done() -> T:
            return await awaitable

        return runner.run(done())

    class Life(RuleBasedStateMachine):
        tasks = Bundle("tasks")

        def __init__(self) -> None:
            super().__init__()
            self.ends: dict[str, Any] = {}
            """What a task that has ended looks like, whole."""
            self.seen: dict[str, str] = {}
            self.finished: dict[str, str] = {}
            """The state that the gateway said it took from a runner."""
            self.cancelled: set[str] = set()
            self.last: dict[tuple[str, int], Any] = {}

        @initialize()
        def begin(self) -> None:
            async def clean() -> Rows:
                for table in ("task_event", "log", "attempt", "task", "agent", "replica"):
                    await database.execute(f"DELETE FROM {table}")
                rows = await Rows.made(database)
                for agent in AGENTS:
                    await rows.agent(agent, cpus=2)
                return rows

            self.rows = wait(clean())

        # what clients, dispatcher, runners and time do

        @rule(target=tasks)
        def submit(self) -> str:
            task_id = wait(self.rows.submit())
            self.seen[task_id] = State.QUEUED
            return task_id

        @rule()
        def dispatch(self) -> None:
            for given in wait(self.rows.dispatch()):
                assert self.seen[given.task_id] not in TERMINAL
                assert given.task_id not in self.cancelled, "a cancelled task was given away"

        @rule(task_id=tasks)
        def cancel(self, task_id: str) -> None:
            state = wait(self.rows.tasks.cancel_task(ALICE, task_id))
            assert state in (State.CANCELING, *TERMINAL)
            if state == State.CANCELING or self.seen[task_id] not in TERMINAL:
                self.cancelled.add(task_id)

        @rule(task_id=tasks, number=st.integers(1, 3), agent=st.sampled_from(AGENTS))
        def acknowledge(self, task_id: str, number: int, agent: str) -> None:
            wait(self.rows.attempts.acknowledge(agent, [(task_id, number)]))

        @rule(task_id=tasks, back=st.integers(0, 1), agent=st.sampled_from([None, *AGENTS]), started=st.booleans())
        def report(self, task_id: str, back: int, agent: str | None, started: bool) -> None:
            number, mine, name = self.runner_of(task_id, back, agent)
            said = wait(self.rows.attempts.report(task_id, number, self.rows.words(name, started=started), LEASE))
            assert (said is not None) == mine
            assert said is None or said.stop == (self.seen[task_id] == State.CANCELING)

        @rule(task_id=tasks, back=st.integers(0, 1), agent=st.sampled_from([None, *AGENTS]))
        def publish(self, task_id: str, back: int, agent: str | None) -> None:
            number, mine, name = self.runner_of(task_id, back, agent)
            other = self.other_lease(task_id, number)
            said = wait(self.rows.attempts.publish(task_id, number, self.rows.words(name), LEASE))
            assert (said is not None) == mine
            if said is not None:
                assert said.leased == (not other and not said.stop)
                assert said.stop == (self.seen[task_id] == State.CANCELING)

        @rule(
            task_id=tasks,
            back=st.integers(0, 1),
            agent=st.sampled_from([None, *AGENTS]),
            state=st.sampled_from([State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR]),
        )
        def finish(self, task_id: str, back: int, agent: str | None, state: State) -> None:
            number, mine, name = self.runner_of(task_id, back, agent)
            other = self.other_lease(task_id, number)
            said = wait(self.rows.attempts.finish(task_id, number, self.rows.words(name), state, []))
            assert (said is not None) == mine
            if said is not None:
                assert said.done == (not said.stop and not other)
                if said.done:
                    assert task_id not in self.finished, "two attempts finished one task"
                    self.finished[task_id] = state

        @rule(task_id=tasks, back=st.integers(0, 1), agent=st.sampled_from([None, *AGENTS]), retry=st.booleans())
        def failed(self, task_id: str, back: int, agent: str | None, retry: bool) -> None:
            number, mine, name = self.runner_of(task_id, back, agent)
            words = self.rows.words(name)
            closed = wait(self.rows.close(task_id, number, "failed", instance=name, words=words, retry=retry))
            assert (closed is not None) == mine
            if closed is not None:
                assert wait(self.rows.attempts.said_before(task_id, number, words))
                again = wait(self.rows.close(task_id, number, "failed", instance=name, words=words))
                assert again is None, "said twice, done twice"

        @rule(task_id=tasks, back=st.integers(0, 1), agent=st.sampled_from([None, *AGENTS]))
        def stopped(self, task_id: str, back: int, agent: str | None) -> None:
            number, mine, name = self.runner_of(task_id, back, agent)
            wanted = self.seen[task_id] == State.CANCELING
            closed = wait(self.rows.close(task_id, number, "stopped", instance=name, words=self.rows.words(name)))
            assert (closed is not None) == (mine and wanted)

        @rule(task_id=tasks, stale=st.booleans())
        def lost(self, task_id: str, stale: bool) -> None:
            """Its driver gives it up: of this epoch, and from the newest row."""
            row = wait(self.rows.row(task_id))
            number, mine, _ = self.runner_of(task_id, 0, None)
            version = row["version"] - 1 if stale else row["version"]
            closed = wait(self.rows.close(task_id, number, "lost", holder=self.rows.holder, version=version))
            assert (closed is not None) == (mine and not stale and row["replica_id"] == self.rows.holder.replica_id)

        @rule(task_id=tasks)
        def lost_by_an_older_epoch(self, task_id: str) -> None:
            holder = Holder(self.rows.holder.replica_id, self.rows.holder.epoch - 1)
            version = wait(self.rows.row(task_id))["version"]
            number, _, _ = self.runner_of(task_id, 0, None)
            assert wait(self.rows.close(task_id, number, "lost", holder=holder, version=version)) is None

        @rule(task_id=tasks)
        def a_lease_runs_out(self, task_id: str) -> None:
            if wait(self.rows.row(task_id))["publisher"] is not None:
                wait(self.rows.lease_ends(task_id))
            wait(self.rows.tasks.end_pending())

        @rule(agent=st.sampled_from(AGENTS))
        def an_agent_starts_again(self, agent: str) -> None:
            wait(self.rows.agent(agent, cpus=2))

        # what is true at every moment

        @invariant()
        def what_clients_see(self) -> None:
            if not hasattr(self, "rows"):
                return
            for task_id, before in self.seen.items():
                now = wait(self.rows.tasks.get_state(ALICE, task_id))
                assert now == before or may_follow(State(before), State(now)), (before, now)
                assert before != State.CANCELING or now in (State.CANCELING, State.CANCELED)
                self.seen[task_id] = now
                if now in TERMINAL:
                    record = wait(self.rows.tasks.get_task(ALICE, task_id, full=True))
                    assert self.ends.setdefault(task_id, record) == record, "changed after its end"
                    assert record.attempts, "an end without an entry in logs"
                    assert self.finished.get(task_id, now) == now, "not the end that was taken"

        @invariant()
        def what_the_rows_say(self) -> None:
            if not hasattr(self, "rows"):
                return
            wait(self.rows.check_room())
            wrong = wait(
                database.fetch(
                    """SELECT t.id, t.state, t.phase
                       FROM task t LEFT JOIN attempt a ON a.task_id = t.id AND NOT a.closed
                       GROUP BY t.id
                       HAVING count(a.*) <> CASE WHEN t.phase IN ('assigned', 'started') THEN 1 ELSE 0 END
                           OR (t.phase = 'ended') <> (t.ended_at IS NOT NULL)
                           OR (t.phase = 'ended' AND t.publish_until > now())"""
                )
            )
            assert not wrong, wrong

        @invariant()
        def strangers_see_nothing(self) -> None:
            if not hasattr(self, "rows"):
                return
            assert wait(self.rows.tasks.list_tasks(BOB, ListQuery(limit=10))) == []
            for task_id in list(self.seen)[-1:]:
                for call in (
                    self.rows.tasks.get_state(BOB, task_id),
                    self.rows.tasks.get_task(BOB, task_id, full=True),
                    self.rows.tasks.cancel_task(BOB, task_id),
                ):
                    with pytest.raises(TaskNotFound):
                        wait(call)

        # the reference: who speaks for what

        def runner_of(self, task_id: str, back: int, agent: str | None) -> tuple[int, bool, str]:
            """Number of the newest attempt less `back`, whether that is open and `agent` its own, and who speaks."""
            found = wait(
                database.fetch(
                    "SELECT number, agent_id, closed FROM attempt WHERE task_id = $1 ORDER BY number", task_id
                )
            )
            number = max(1, len(found) - back)
            attempt = found[number - 1] if found else None
            own = attempt["agent_id"] if attempt is not None else None
            name = agent or own or AGENTS[0]
            return number, attempt is not None and not attempt["closed"] and own == name, name

        def other_lease(self, task_id: str, number: int) -> bool:
            """Whether another attempt may publish now."""
            query = "SELECT publisher FROM task WHERE id = $1 AND publish_until > now()"
            publisher = wait(database.fetchval(query, task_id))
            return publisher is not None and publisher != number

    return Life


def test_what_clients_see_stays_true(url: str) -> None:
    with asyncio.Runner() as runner:
        database = Database(url, min_size=1, max_size=4, application_name="tests")
        runner.run(database.__aenter__())
        try:
            run_state_machine_as_test(
                machine_on(database, runner),
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=30,
                    deadline=None,
                    derandomize=EXAMPLES == 12,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(database.__aexit__(None, None, None))
