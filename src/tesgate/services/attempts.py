"""What agents and runners say, and what they are told: the gateway's side of the protocol's messages."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

import anyio
import structlog

from tesgate.errors import BadRequest, Conflict, Gone
from tesgate.model.orders import Name, decide
from tesgate.model.retries import Retries
from tesgate.model.room import Need
from tesgate.model.state import Phase, State
from tesgate.runner.plan import Plan
from tesgate.runner.report import (
    AgentFacts,
    Answer,
    AttemptRef,
    PollAnswer,
    PollRequest,
    Registered,
    Report,
    StopOrder,
)
from tesgate.runner.wire import encode
from tesgate.services.timing import Timing
from tesgate.store.agents import AgentStore, NewAgent
from tesgate.store.attempts import AttemptStore, Closed, Order, Said, Words, words_of
from tesgate.store.wakes import Wakes
from tesgate.telemetry import Metrics

__all__ = ["SHORTEST", "AttemptService", "Policy"]

log = structlog.get_logger(__name__)

PACE = 0.00025
"""Seconds for each attempt that an agent has, before its poll is looked into."""
LONGEST_PACE = 0.25
SHORTEST = 0.7
"""Least share of the time that an agent asks for, for which its poll is held."""
LINGER = 0.3
"""Seconds that `forget` waits for company, such as the start of what takes the place; removal takes as long anyway."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The spans that both sides count on."""

    lease: timedelta
    grace: timedelta
    longest_poll: timedelta
    retries: Retries


class AttemptService:
    """Any replica may receive any message; each is applied in one statement."""

    def __init__(
        self,
        *,
        agents: AgentStore,
        attempts: AttemptStore,
        wakes: Wakes,
        policy: Policy,
        plan_for: Callable[[Order], Plan],
        metrics: Metrics,
        timing: Timing | None = None,
        spread: Callable[[], float] = lambda: random.uniform(SHORTEST, 1.0),  # noqa: S311 - no secret
    ) -> None:
        """`spread` draws the share of its time for which a poll is held."""
        self._agents = agents
        self._attempts = attempts
        self._wakes = wakes
        self._policy = policy
        self._plan_for = plan_for
        self._metrics = metrics
        self._timing = timing or Timing(metrics=metrics)
        self._spread = spread

    # agents

    async def register(self, pool: str, facts: AgentFacts) -> Registered:
        """Protocol row *restart*: the agent's session is now the newest. `pool` is what its token belongs to."""
        session = await self._agents.register(
            NewAgent(
                instance=facts.instance,
                pool=pool,
                host=facts.host,
                program_version=facts.version,
                capacity=Need(
                    int(facts.capacity.cpu_cores * 1000),
                    facts.capacity.ram_bytes,
                    facts.capacity.disk_bytes,
                    facts.capacity.gpus,
                ),
                runtimes=tuple(facts.runtimes),
                roots=tuple(encode(root) for root in facts.roots),
                labels=facts.labels,
                zones=tuple(facts.zones),
            )
        )
        if session is None:
            raise Gone(f"instance {facts.instance} belongs to another pool than this token; it needs a new one")
        log.info("agent registered", agent=facts.instance, host=facts.host, session=session, pool=pool)
        self._wakes.queue()
        return Registered(agent=facts.instance, session=session)

    async def poll(self, pool: str, request: PollRequest) -> PollAnswer:
        """Protocol row *poll*; held until there is something to say or the time is over. Raises `Gone`."""
        newest = await self._agents.hear(
            request.agent, request.session, request.number, draining=request.draining, pool=pool
        )
        if newest is None:
            raise Gone(f"session {request.session} of agent {request.agent} is not the newest, or the agent was lost")
        if not newest:
            return PollAnswer()
        have = {(item.task, item.attempt) for item in request.have}
        stopping = {(item.task, item.attempt) for item in request.have if item.stopping}
        tombstones = {(item.task, item.attempt) for item in request.tombstones}
        arrived = True
        # Agents that came in one moment (after a restart of ours) are not to come back in one, every time.
        longest = min(request.wait, self._policy.longest_poll.total_seconds()) * self._spread()
        with anyio.move_on_after(longest):
            # A poll costs as much as the agent has, and a busy one asks again at once: what happens meanwhile gathers.
            await anyio.sleep(min(LONGEST_PACE, len(have) * PACE))
            while True:
                ticket = self._wakes.agent_ticket(request.agent)
                rows = await self._attempts.orders(request.agent, sorted(have | tombstones))
                orders = decide(rows, have=have, stopping=stopping, tombstones=tombstones)
                if arrived:
                    await self._attempts.acknowledge(request.agent, orders.acknowledge)
                    for name in orders.stopped:
                        await self._close(name, "stopped", "", instance=request.agent)
                    for name, version in orders.lost:
                        await self._close(
                            name,
                            "lost",
                            "its agent does not have it any more (was its scratch directory removed?)",
                            version=version,
                            poll=(request.session, request.number),
                        )
                    arrived = False
                    if orders.stopped or orders.lost:
                        continue
                if orders.says_anything():
                    starts = set(orders.start)
                    answer = PollAnswer(
                        start=await self._plans([row for row in rows if (row.task_id, row.number) in starts]),
                        stop=[
                            StopOrder(task, number, self._policy.grace.total_seconds()) for task, number in orders.stop
                        ],
                        forget=[AttemptRef(task, number) for task, number in orders.forget],
                    )
                    if answer.start or answer.stop or answer.forget:
                        return answer
                if self._wakes.closing:
                    return PollAnswer()
                await ticket.news.wait()
                with anyio.move_on_after(LINGER):
                    await ticket.urgent.wait()
        return PollAnswer()

    async def _plans(self, starts: list[Order]) -> list[Plan]:
        """Plans of attempts that are to be started; one that cannot be computed ends its task and stops nobody else."""
        plans: list[Plan] = []
        for start in starts:
            try:
                plans.append(self._plan_for(start))
            except Exception as error:
                log.exception("no plan", task=start.task_id, attempt=start.number)
                await self._close(
                    (start.task_id, start.number), "failed", f"no plan can be made for this task: {error}", retry=False
                )
        return plans

    # runners

    async def report(self, task_id: str, number: int, report: Report) -> Answer:
        """Protocol row *report*. Raises `Gone`."""
        said = await self._attempts.report(task_id, number, _words(report), self._policy.lease)
        return self._answer(said, task_id, number)

    async def publish(self, task_id: str, number: int, report: Report) -> Answer:
        """Protocol row *publish*. Raises `Gone`, `Conflict`."""
        said = await self._attempts.publish(task_id, number, _words(report), self._policy.lease)
        answer = self._answer(said, task_id, number)
        if not answer.stop and not answer.lease:
            raise Conflict(f"another attempt of task {task_id} is publishing")
        return answer

    async def finish(self, task_id: str, number: int, report: Report) -> Answer:
        """Protocol row *finish*. Raises `Gone`, `Conflict`."""
        if report.state not in (State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR):
            raise BadRequest(f"finish needs a terminal state, not {report.state!r}")
        words = _words(report)
        said = await self._attempts.finish(
            task_id, number, words, report.state, [encode(output) for output in report.outputs]
        )
        if said is None and await self._attempts.said_before(task_id, number, words):
            # The first may have been cut off between the commit and its news.
            self._tell_end(task_id, report)
            return Answer()
        answer = self._answer(said, task_id, number)
        if said is not None and said.done:
            log.info("task ended", task=task_id, attempt=number, state=report.state)
            self._metrics.attempts_total.labels("finished", "pool").inc()
            self._metrics.tasks_total.labels(report.state, "pool").inc()
            self._timing.finished(task_id, number, report)
            self._tell_end(task_id, report)
        elif not answer.stop:
            raise Conflict(f"another attempt of task {task_id} is publishing")
        return answer

    def _tell_end(self, task_id: str, report: Report) -> None:
        self._wakes.queue()
        self._wakes.ended(task_id)
        self._wakes.agent_soon(report.instance)

    async def failed(self, task_id: str, number: int, report: Report) -> Answer:
        """Protocol row *failed*: the system's fault; a further attempt, or SYSTEM_ERROR. Raises `Gone`."""
        closed = await self._close(
            (task_id, number),
            "failed",
            report.cause or "the runner gave no cause",
            instance=report.instance,
            report=report,
        )
        if closed is None and not await self._attempts.said_before(task_id, number, _words(report)):
            raise Gone(f"attempt {number} of task {task_id} is over")
        self._wakes.agent_soon(report.instance)
        return Answer()

    async def stopped(self, task_id: str, number: int, report: Report) -> Answer:
        """Protocol row *stopped*: CANCELED. Raises `Gone`."""
        closed = await self._close((task_id, number), "stopped", "", instance=report.instance, report=report)
        if closed is None and not await self._attempts.said_before(task_id, number, _words(report)):
            raise Gone(f"attempt {number} of task {task_id} is over, or nobody cancelled it")
        self._wakes.agent_soon(report.instance)
        return Answer()

    async def knows(self, task_id: str, number: int) -> bool:
        """Whether logs of this attempt are still wanted (also after its end)."""
        return await self._attempts.exists(task_id, number)

    async def _close(
        self,
        name: Name,
        kind: Literal["failed", "stopped", "lost"],
        note: str,
        *,
        instance: str | None = None,
        version: int | None = None,
        report: Report | None = None,
        retry: bool = True,
        poll: tuple[int, int] | None = None,
    ) -> Closed | None:
        task_id, number = name
        closed = await self._attempts.close(
            task_id,
            number,
            kind,
            note=note,
            max_attempts=self._policy.retries.max_attempts,
            backoff=self._policy.retries.after(number),
            retry=retry,
            instance=instance,
            version=version,
            words=None if report is None else _words(report),
            poll=poll,
        )
        if closed is not None:
            log.info("attempt closed", task=task_id, attempt=number, kind=kind, note=note, state=closed.state)
            self._metrics.attempts_total.labels(kind, "pool").inc()
            self._timing.closed(task_id, number)
            if closed.phase == Phase.ENDED:
                self._metrics.tasks_total.labels(closed.state, "pool").inc()
            else:
                self._metrics.retries_total.labels(kind).inc()
            self._wakes.queue()
            self._wakes.task(task_id)
        return closed

    def _answer(self, said: Said | None, task_id: str, number: int) -> Answer:
        if said is None:
            raise Gone(f"attempt {number} of task {task_id} is over, or was never this runner's")
        return Answer(
            stop=said.stop,
            grace=self._policy.grace.total_seconds(),
            lease=self._policy.lease.total_seconds() if said.leased else 0.0,
        )


def _words(report: Report) -> Words:
    snapshot: dict[str, Any] = encode(replace(report.snapshot))
    return words_of(report.instance, report.version, snapshot)
