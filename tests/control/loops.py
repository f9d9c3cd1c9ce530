"""Replicas and agents without HTTP: the control loops' real parts on one real database, and a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio

from tesgate.backends.base import Backend
from tesgate.backends.pool import PoolBackend
from tesgate.control.dispatcher import Dispatcher
from tesgate.control.drivers import Drivers
from tesgate.control.held import Trust
from tesgate.control.keeper import Keeper
from tesgate.control.supervisor import Supervisor, repeat
from tesgate.control.watchers import SilenceWatcher, watch_backend
from tesgate.model.planning import PlanSettings, build_plan
from tesgate.model.retries import Retries
from tesgate.runner.plan import Plan
from tesgate.runner.report import (
    AgentFacts,
    ExecutorReport,
    Have,
    PollAnswer,
    PollRequest,
    Report,
    Resources,
    Root,
    Snapshot,
)
from tesgate.services.attempts import AttemptService, Policy
from tesgate.store.agents import AgentStore
from tesgate.store.attempts import AttemptStore, Order
from tesgate.store.database import Database
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes
from tesgate.telemetry import Metrics

__all__ = ["SECOND", "Clock", "FakeAgent", "Replica", "until"]

SECOND = timedelta(seconds=1)
RETRIES = Retries(3, timedelta(0), 1.0, timedelta(0))


async def until(what: str, ask: Callable[[], Any], seconds: float = 60) -> Any:
    """The first answer of `ask` (which may be a coroutine's) that is true."""
    answer: Any = None
    try:
        with anyio.fail_after(seconds):
            while True:
                answer = ask()
                if hasattr(answer, "__await__"):
                    answer = await answer
                if answer:
                    return answer
                await anyio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {seconds:g} s for {what}; last: {answer!r}") from None


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class Replica:
    """One gateway's control loops. `beat`, `silence` and the clock are in the test's hands; the rest runs."""

    def __init__(
        self, database: Database, name: str, *, backend: Backend | None = None, crash_limit: int = 5, ticks: int = 3
    ) -> None:
        self.name = name
        self.clock = Clock()
        self.wakes = Wakes()
        self.tasks = TaskStore(database=database, wakes=self.wakes)
        self.attempts = AttemptStore(database=database)
        self.agents = AgentStore(database=database)
        self.replicas = ReplicaStore(database=database)
        self.answering = True
        self._database = database
        self._backend = backend
        self._crash_limit = crash_limit
        self._ticks = ticks

    @classmethod
    async def made(cls, database: Database, name: str = "a", **more: Any) -> Replica:
        """Entered with its next epoch."""
        made = cls(database, name, **more)
        await made.enter()
        return made

    async def enter(self) -> None:
        """A process of this name starts: nothing is left of what the one before had in memory."""
        self.holder = await self.replicas.enter(self.name, host="here", roles=["api", "control"])
        self.trust = Trust(holder=self.holder, window=8 * SECOND, clock=self.clock)
        self.pool = PoolBackend(agents=self.agents, wakes=self.wakes, interval=SECOND / 50)
        self.drivers = Drivers(
            attempts=self.attempts,
            backends={"pool": self._backend or self.pool},
            trust=self.trust,
            wakes=self.wakes,
            retries=RETRIES,
            grace=SECOND,
            crash_limit=self._crash_limit,
        )
        self.wakes.follow_tasks(tell=self.drivers.tell, ended=self.drivers.ended)
        self.keeper = Keeper(
            replicas=self.replicas,
            trust=self.trust,
            drivers=self.drivers,
            wakes=self.wakes,
            adopt_after=15 * SECOND,
        )
        self.dispatcher = Dispatcher(
            tasks=self.tasks,
            attempts=self.attempts,
            agents=self.agents,
            trust=self.trust,
            assigned=self.drivers.assigned,
            prefix="tg-test-",
            known_roots=[],
            pool="default",
        )
        self.silence = SilenceWatcher(
            agents=self.agents,
            replicas=self.replicas,
            trust=self.trust,
            tick=5 * SECOND,
            lost_after=5 * SECOND * self._ticks,
            answering=lambda: self.answering,
        )
        self.service = AttemptService(
            agents=self.agents,
            attempts=self.attempts,
            wakes=self.wakes,
            policy=Policy(lease=30 * SECOND, grace=10 * SECOND, longest_poll=3600 * SECOND, retries=RETRIES),
            plan_for=_plan,
            metrics=Metrics(),
        )

    @asynccontextmanager
    async def following(self) -> AsyncGenerator[None]:
        """Drivers, compare and the pool's watch run."""
        async with self._running({"drivers": self.drivers.run, "compare": self._compare, "watch": self._watch}):
            yield

    @asynccontextmanager
    async def dispatching(self) -> AsyncGenerator[None]:
        """As `following`, and waiting tasks are given away."""
        loops = {
            "drivers": self.drivers.run,
            "compare": self._compare,
            "watch": self._watch,
            "dispatch": self._dispatch,
        }
        async with self._running(loops):
            yield

    @asynccontextmanager
    async def _running(self, loops: dict[str, Any]) -> AsyncGenerator[None]:
        supervisor = Supervisor()
        for name, loop in loops.items():
            supervisor.add(name, loop)
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            yield
            group.cancel_scope.cancel()

    async def _compare(self) -> None:
        await repeat("compare", self.drivers.compare, 10 * SECOND, ticket=self.drivers.ticket)

    async def _watch(self) -> None:
        await repeat("watch", lambda: watch_backend(self.pool, self.drivers), SECOND / 50)

    async def _dispatch(self) -> None:
        await repeat("dispatch", self.dispatcher.once, SECOND / 20, ticket=self.wakes.queue_ticket)

    async def tick(self, seconds: float = 5.0) -> None:
        """Time passes, and the silence is counted."""
        self.clock.now += seconds
        self.trust.renew(self.clock.now)
        await self.silence.once()

    async def falls_silent(self, seconds: float = 60) -> None:
        """Its last heartbeat lies back so far, by the database's clock."""
        await self._database.execute(
            "UPDATE replica SET seen_at = now() - $2 * interval '1 s' WHERE id = $1", self.name, seconds
        )


class FakeAgent:
    """Speaks as the wire wants it, through the service of one replica."""

    def __init__(self, name: str, *, cpus: float = 4, roots: Sequence[str] = ()) -> None:
        self.name = name
        self.facts = AgentFacts(
            name,
            name,
            "0",
            Resources(cpus, 10**12, 10**12),
            runtimes=["docker"],
            roots=[Root(root, root) for root in roots],
        )
        self.session = 0
        self.number = 0
        self.said = 0
        self.have: set[tuple[str, int]] = set()

    async def register(self, replica: Replica) -> None:
        self.session = (await replica.service.register("default", self.facts)).session

    async def poll(self, replica: Replica, *, wait: float = 0.1) -> PollAnswer:
        """Say what it has; an answer's `forget` is obeyed."""
        self.number += 1
        have = [Have(task, number) for task, number in sorted(self.have)]
        request = PollRequest(self.name, self.session, number=self.number, have=have, wait=wait)
        answer = await replica.service.poll("default", request)
        self.have -= {(ref.task, ref.attempt) for ref in answer.forget}
        return answer

    async def take(self, replica: Replica, task_id: str, number: int = 1) -> None:
        """Wait for the start of an attempt, acknowledge it and say that it runs."""
        with anyio.fail_after(60):
            while (task_id, number) not in {(p.task, p.attempt) for p in (await self.poll(replica, wait=0.3)).start}:
                pass
        self.have.add((task_id, number))
        await self.poll(replica)
        await replica.service.report(task_id, number, self.report())

    def report(self, state: str | None = None) -> Report:
        self.said += 1
        return Report(self.said, self.name, Snapshot(executors=[ExecutorReport("2026-01-01T00:00:00Z")]), state=state)


def _plan(start: Order) -> Plan:
    return build_plan(
        start.task_id, start.number, start.external_name, start.document or {}, "tok", settings=PlanSettings()
    )
