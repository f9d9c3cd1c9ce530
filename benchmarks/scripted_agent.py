"""Agents that speak `/internal/v1` for real, through the runner's own client, and run nothing.

An attempt begins when its start arrives, reports one executor, "runs" for the seconds of the script, asks for the
publish lease (where the script has outputs), finishes, and is kept in `have` until it is forgotten. Stops, refusals
and faults of the gateway are obeyed as the runner obeys them. Nothing is kept on disk, so a scripted agent that dies is
gone: its attempts are lost.

    python -m benchmarks.scripted_agent --url URL --token-file FILE [--agents 2] [--slots 500] [--seconds 4] [--outputs]

prints one line of JSON when its standard input is closed: starts and ends by task, with the wall clock's times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import random
import resource
import secrets
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import anyio
import anyio.abc
import anyio.to_thread

from tesgate.runner.gateway import Backoff, Conflict, GatewayClient, GatewayFault, Gone
from tesgate.runner.plan import Plan
from tesgate.runner.report import (
    AgentFacts,
    AttemptRef,
    ExecutorReport,
    Have,
    OutputFile,
    PollAnswer,
    PollRequest,
    Report,
    Resources,
    Root,
    Snapshot,
)

__all__ = ["Script", "ScriptedAgent"]

RENEW = 10.0
"""Seconds between reports of an attempt that runs on, as the runner has them."""

_log = logging.getLogger("scripted")


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclasses.dataclass(frozen=True)
class Script:
    """What happens to every attempt."""

    seconds: Callable[[Plan], float] = lambda plan: 0.0
    """How long its executor "runs"."""
    outputs: bool = False
    """It asks for the publish lease and says that it stored one file of 1 byte for each output of the plan."""
    exit_code: int = 0
    log: bytes = b""
    """Sent to the workspace as its standard output."""


@dataclasses.dataclass
class _Attempt:
    plan: Plan
    scope: anyio.CancelScope = dataclasses.field(default_factory=anyio.CancelScope)
    stopping: bool = False
    forgotten: anyio.Event = dataclasses.field(default_factory=anyio.Event)
    version: int = 0


class ScriptedAgent:
    """One agent with room for `slots` tasks of one core. `run` works until `end` is called."""

    def __init__(
        self,
        *,
        client: GatewayClient,
        slots: int,
        script: Script,
        host: str = "scripted",
        roots: tuple[Root, ...] = (),
        wait: float = 20.0,
    ) -> None:
        self.instance = secrets.token_hex(16)
        self._client, self._slots, self._script, self._host = client, slots, script, host
        self._roots, self._wait = roots, wait
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        self._refused: set[tuple[str, int]] = set()
        self._scope: anyio.CancelScope | None = None
        self._group: anyio.abc.TaskGroup | None = None
        self._ending = False
        self._polls = 0
        self.polls = 0
        """Polls that were answered."""
        self.begun: list[tuple[str, int, float]] = []
        """Task, attempt and wall clock of every start that was obeyed, in the order of the orders."""
        self.ended: list[tuple[str, int, float]] = []
        """The same for last words that were heard."""

    def __len__(self) -> int:
        return len(self._attempts)

    def end(self) -> None:
        """Have it end now; attempts that it has are lost to the gateway after a while."""
        self._ending = True
        if self._scope is not None:
            self._scope.cancel()
        if self._group is not None:
            self._group.cancel_scope.cancel()

    async def run(self) -> None:
        """Register, poll and obey until told to end."""
        async with anyio.create_task_group() as self._group:
            backoff, session = Backoff(), 0
            unheard = Backoff(first=0.1, early=1.0, late=1.0)
            while not self._ending:
                with anyio.CancelScope() as self._scope:
                    try:
                        session = session or (await self._client.register(self._facts())).session
                        began = anyio.current_time()
                        answer = await self._client.poll(self._request(session))
                        self.polls += 1
                        backoff.reset()
                        if self._obey(answer) or anyio.current_time() - began > 1.0:
                            unheard.reset()
                        else:
                            await self._client.pause(unheard.next())
                    except Gone:
                        session = 0
                    except GatewayFault as fault:
                        _log.info("no gateway for now: %s", fault)
                        await self._client.pause(backoff.next())

    def _facts(self) -> AgentFacts:
        return AgentFacts(
            instance=self.instance,
            host=self._host,
            version="scripted",
            capacity=Resources(float(self._slots), self._slots * 4 * 10**9, self._slots * 10**12),
            runtimes=["docker"],
            roots=list(self._roots),
        )

    def _request(self, session: int) -> PollRequest:
        self._polls += 1
        return PollRequest(
            agent=self.instance,
            session=session,
            number=self._polls,
            have=[Have(task, number, attempt.stopping) for (task, number), attempt in self._attempts.items()],
            tombstones=[Have(task, number) for task, number in self._refused],
            wait=self._wait,
        )

    def _obey(self, answer: PollAnswer) -> bool:
        news = False
        for order in answer.stop:
            attempt = self._attempts.get((order.task, order.attempt))
            if attempt is None:
                self._refused.add((order.task, order.attempt))
                news = True
            elif not attempt.stopping:
                attempt.stopping = True
                attempt.scope.cancel()
                news = True
        for ref in answer.forget:
            self._refused.discard((ref.task, ref.attempt))
            attempt = self._attempts.pop((ref.task, ref.attempt), None)
            if attempt is not None:
                attempt.forgotten.set()
                attempt.scope.cancel()
                news = True
        for plan in answer.start:
            name = (plan.task, plan.attempt)
            if name in self._attempts or name in self._refused:
                continue
            news = True
            self.begun.append((plan.task, plan.attempt, time.time()))
            attempt = self._attempts[name] = _Attempt(plan)
            assert self._group is not None
            self._group.start_soon(self._live, attempt)
        return news

    # -- one attempt -------------------------------------------------------------------------------------------

    async def _live(self, attempt: _Attempt) -> None:
        executor = ExecutorReport(start_time=_now())
        snapshot = Snapshot(step="executor", start_time=executor.start_time, executors=[executor])
        with attempt.scope:
            await self._work(attempt, snapshot, executor)
        if attempt.stopping and not attempt.forgotten.is_set():
            await self._say(attempt, "stopped", Report(0, self.instance, snapshot))

    async def _work(self, attempt: _Attempt, snapshot: Snapshot, executor: ExecutorReport) -> None:
        plan, script = attempt.plan, self._script
        if not await self._say(attempt, "report", Report(0, self.instance, snapshot)):
            return
        until = anyio.current_time() + script.seconds(plan)
        while (left := until - anyio.current_time()) > 0:
            await anyio.sleep(min(left, RENEW))
            if left > RENEW and not await self._say(attempt, "report", Report(0, self.instance, snapshot)):
                return
        executor.end_time, executor.exit_code, executor.stdout = _now(), script.exit_code, script.log.decode()[-2000:]
        if script.log:
            ref = AttemptRef(plan.task, plan.attempt)
            await self._client.put_log(ref, plan.token, 0, "stdout", 0, script.log)
        stored = [OutputFile(output.url, output.path, 1) for output in plan.outputs] if script.outputs else []
        snapshot.step = "stage-out" if stored else "done"
        if stored and not await self._say(attempt, "publish", Report(0, self.instance, snapshot)):
            return
        snapshot.step = "done"
        state = "COMPLETE" if script.exit_code == 0 else "EXECUTOR_ERROR"
        last = Report(0, self.instance, snapshot, state=state, outputs=stored, published=bool(stored))
        await self._say(attempt, "finish", last)

    async def _say(self, attempt: _Attempt, message: str, report: Report) -> bool:
        """Say it until it is heard; False: nothing more is to be done (stopped, or not ours any more)."""
        plan, backoff = attempt.plan, Backoff()
        ref = AttemptRef(plan.task, plan.attempt)
        while True:
            attempt.version += 1
            report.version = attempt.version
            try:
                answer = await self._client.send(ref, plan.token, message, report)
            except Gone:
                self._attempts.pop((ref.task, ref.attempt), None)
                return False
            except Conflict:
                await self._client.pause(1.0)
            except GatewayFault as fault:
                _log.info("%s waits for the gateway: %s", message, fault)
                await self._client.pause(backoff.next())
            else:
                if message in ("finish", "stopped") and not answer.stop:
                    self.ended.append((ref.task, ref.attempt, time.time()))
                if answer.stop and message != "stopped":
                    attempt.stopping = True
                    return False
                return True


async def _until_told(agents: list[ScriptedAgent]) -> None:
    async with anyio.create_task_group() as group:
        for agent in agents:
            group.start_soon(agent.run)
        # Own thread, so that no place of the default limiter is taken for the whole run.
        await anyio.to_thread.run_sync(sys.stdin.buffer.read, limiter=anyio.CapacityLimiter(1))
        for agent in agents:
            agent.end()


def main() -> None:
    """Run agents until standard input is closed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--token-file", required=True)
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--slots", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=4.0, help="each task, drawn from 0.5 to 1.5 times this")
    parser.add_argument("--outputs", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    script = Script(seconds=lambda plan: given.seconds * random.uniform(0.5, 1.5), outputs=given.outputs)
    clients = [GatewayClient(url=given.url, token_file=given.token_file, concurrency=8) for _ in range(given.agents)]
    agents = [
        ScriptedAgent(client=client, slots=given.slots, script=script, host=f"scripted{index}")
        for index, client in enumerate(clients)
    ]
    anyio.run(_until_told, agents, backend_options={"use_uvloop": True})
    for client in clients:
        client.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "begun": [item for agent in agents for item in agent.begun],
        "ended": [item for agent in agents for item in agent.ended],
        "polls": sum(agent.polls for agent in agents),
        "left": sum(len(agent) for agent in agents),
        "cpu": used.ru_utime + used.ru_stime,
        "rss_kib": used.ru_maxrss,
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
