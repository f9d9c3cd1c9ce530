"""The steps of one attempt in their order, from stage-in to what is to be said at the end."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, Optional, Tuple

import anyio
import anyio.to_thread

from . import clock, crash
from .gateway import GatewayClient, GatewayFault
from .kept import Kept
from .logs import LogFollower, decode_tail
from .places import make_places, read_control
from .plan import Plan
from .record import Final, Record
from .removal import remove_tree
from .reporter import Reporter
from .runtime.base import Runtime, RuntimeFault
from .stageout import StageOut
from .step import Step, enforced, user_of
from .transfer.faults import PathRefused, StagingError, os_fault
from .transfer.stage import Stager, host_path
from .verdict import COMPLETE, EXECUTOR_ERROR, FAILED, SYSTEM_ERROR, Ending, Result, judge
from .watch import Watch

__all__ = ["Tools", "Work"]

_TAIL_FILE_BYTES = 16 << 20

TIMED_OUT = 124
"""Exit code of what was over its time, as coreutils' timeout has it."""


@dataclass
class Tools:
    """What all attempts of an agent share."""

    client: GatewayClient
    runtime: Runtime
    watch: Watch
    exec_path: str
    stager: Callable[[Plan], Stager]
    host: str
    kept: Kept
    removals: anyio.CapacityLimiter
    """Containers are removed beside the work, few at a time."""


class Failed(Exception):
    """The system's fault: another attempt may do better."""


class Work:
    """Does what the journal says is not done yet. Cancel it at any moment; it can be made anew and goes on."""

    def __init__(
        self,
        *,
        plan: Plan,
        attempt_dir: str,
        record: Record,
        reporter: Reporter,
        logs: LogFollower,
        tools: Tools,
        log: logging.LoggerAdapter,  # type: ignore[type-arg]  # 3.9 cannot subscript it at run time
    ) -> None:
        self._plan, self._dir, self._record = plan, attempt_dir, record
        self._journal = record.journal
        self._reporter, self._logs, self._tools, self._log = reporter, logs, tools, log
        self._endings: Dict[int, Ending] = {}
        self._stager = tools.stager(plan)
        logs.open_live = self._stager.open_live
        self._out = StageOut(
            plan=plan,
            attempt_dir=attempt_dir,
            record=record,
            reporter=reporter,
            client=tools.client,
            stager=self._stager,
            log=log,
        )

    async def run(self) -> Final:
        """Return the last word, journalled. Raises `Gone` where the gateway will not hear it."""
        said = self._record.find_final()
        if said is not None:
            return await self._kept(said)
        try:
            final = await self._all()
        except Failed as exc:
            final = Final("failed", cause=str(exc))
        except (StagingError, RuntimeFault) as exc:
            final = self._fault(exc.sentence, exc.transient)
        except PathRefused as exc:
            final = self._fault("A path of this task %s." % exc.why, False)
        except OSError as exc:
            fault = os_fault(exc, "The scratch directory of this attempt failed")
            final = self._fault(fault.sentence, True)
        except GatewayFault:
            raise
        except Exception as exc:  # a fault of this program must cost one attempt, not the agent and all the others
            self._log.exception("a fault of the agent itself")
            final = Final("failed", cause="The agent met a fault of its own (%s: %s)." % (type(exc).__name__, exc))
        if final.state not in (COMPLETE, EXECUTOR_ERROR):
            await self._out.discard()
        return await self._kept(self._record.final(final))

    async def _kept(self, final: Final) -> Final:
        """After `failed` the gateway begins a further attempt: this one must know its end even if the host dies."""
        if final.message == "failed":
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._journal.sync)  # not here: a slow disk would stop all attempts
        return final

    def _fault(self, sentence: str, transient: bool) -> Final:
        if transient:
            return Final("failed", cause=sentence)
        self._record.note(sentence)
        return Final("finish", state=SYSTEM_ERROR, published=self._record.was_leased)

    async def _all(self) -> Final:
        if self._plan.run_as.last_uid is not None:
            raise Failed(
                "Every user of the range %s-%s is taken on this agent: make runtime.run_as as wide as tasks can run "
                "here at once." % (self._plan.run_as.uid, self._plan.run_as.last_uid)
            )
        state = await self._staged()
        if state is None:
            state = await self._executors()
        if self._journal.find("outcome") is None:
            self._record.outcome(state)
        return await self._stage_out(state)

    # -- stage-in ----------------------------------------------------------------------------------------------

    async def _staged(self) -> Optional[str]:
        """Stage everything in; a state where the task's time is already up."""
        if self._journal.find("staged") is not None:
            return None
        plan, left = self._plan, self._record.left()
        with anyio.move_on_after(left) as limit:
            self._stager.check(plan.inputs, plan.outputs)
            if plan.inputs:
                if self._journal.find("staging") is not None:
                    await anyio.to_thread.run_sync(self._clear)  # a runner before us died in the middle of it
                self._journal.append("staging")
                crash.point("during-stage-in")
                self._record.notes(await self._stager.stage_in(plan.inputs, self._dir))
            bound = await self._stager.make_mounts(plan.mounts)
            await anyio.to_thread.run_sync(make_places, plan, self._dir, bound)
            self._record.notes(plan.notes)
        if limit.cancelled_caught:
            self._record.note(
                "the task ran longer than its limit of %g s while inputs were staged" % (plan.timeout or 0)
            )
            self._record.never_begun(0, TIMED_OUT)
            return EXECUTOR_ERROR
        self._journal.append("staged")
        return None

    def _clear(self) -> None:
        for part in ("rw", "ro"):
            path = os.path.join(self._dir, part)
            remove_tree(path)
            os.mkdir(path, 0o755)
            os.chmod(path, 0o755)

    # -- executors ---------------------------------------------------------------------------------------------

    async def _executors(self) -> str:
        for index in range(len(self._plan.executors)):
            ended = self._journal.find("ended", executor=index)
            kind = str(ended["kind"]) if ended is not None else await self._executor(index)
            self._end_logs(index)
            if kind == EXECUTOR_ERROR:
                return EXECUTOR_ERROR
            if index + 1 < len(self._plan.executors):
                crash.point("between-executors", index + 1)
        return COMPLETE

    async def _executor(self, index: int) -> str:
        executor = self._plan.executors[index]
        starting = self._journal.find("starting", executor=index)
        limit, by_task = self._limit(index)
        if starting is None and limit is not None and limit <= 0:
            self._record.note(
                "the task ran longer than its limit of %g s before executor %d began" % (self._plan.timeout or 0, index)
            )
            self._record.never_begun(index, TIMED_OUT)
            return EXECUTOR_ERROR
        step = self.step(index)
        launch = await step.launch(limit, by_task)
        self._record.notes(launch.notes)
        self._record.started(index)
        self._reporter.changed(urgent=index == 0)
        for stream in ("stdout", "stderr"):
            self._logs.follow(index, stream, self._place(index, stream))
        starting = self._journal.find("starting", executor=index) or {}
        limit, by_task = starting.get("limit"), bool(starting.get("by_task"))
        spent = clock.since(starting)
        ending = await step.ending(None if limit is None else max(0.0, limit - spent))
        verdict = judge(
            index,
            executor,
            ending,
            ram_bytes=enforced(self._plan).ram_bytes,
            task_limit=self._plan.timeout if by_task else None,
        )
        crash.point("after-result", index + 1)
        if verdict.kind == FAILED:
            raise Failed(verdict.sentence or "executor %d has no result" % index)
        if self._plan.collect:
            root = os.path.join(self._dir, "rw")
            self._record.notes(await self._tools.runtime.collect(step.name, self._plan.collect, root))
        if verdict.sentence is not None:
            self._record.note(verdict.sentence)
        self.show_end(index, verdict.kind, verdict.exit_code, ending)
        self._reporter.changed()
        return verdict.kind

    def step(self, index: int) -> Step:
        """Return executor `index` as something that can be launched and waited for."""
        plan = self._plan
        labels = {
            **plan.labels,
            "tesgate.deployment": plan.deployment,
            "tesgate.task": plan.task,
            "tesgate.attempt": str(plan.attempt),
            "tesgate.executor": str(index),
        }
        return Step(
            plan=plan,
            index=index,
            attempt_dir=self._dir,
            journal=self._journal,
            runtime=self._tools.runtime,
            watch=self._tools.watch,
            exec_path=self._tools.exec_path,
            labels=labels,
            bound=partial(self._stager.find_mounts, plan.mounts),
            log=self._log,
        )

    def _limit(self, index: int) -> Tuple[Optional[float], bool]:
        """The nearer of the executor's limit and what the task has left, and whether it is the task's."""
        own, left = self._plan.executors[index].timeout, self._record.left()
        if left is not None and (own is None or left < own):
            return left, True
        return own, False

    def show_end(self, index: int, kind: str, exit_code: Optional[int], ending: Ending) -> None:
        """Journal the end of an executor with its tails."""
        tails: Dict[str, str] = {}
        for stream in ("stdout", "stderr"):
            tails[stream] = decode_tail(self._tail(index, stream, ending.result), self._plan.tail_bytes)
        self._endings[index] = ending
        self._record.ended(index, kind, exit_code, ending.result, tails)

    def show_stopped(self, index: int) -> None:
        """Show what is known of an executor that was stopped because the task was cancelled."""
        ending = self.step(index).result() or Ending()
        result, exit_code = ending.result, None
        if result is not None:
            exit_code = result.exit_code if result.signal is None else 128 + result.signal
        if index < len(self._record.snapshot.executors):
            self.show_end(index, "stopped", exit_code, ending)
        self._end_logs(index)

    def resume_logs(self) -> None:
        """Have the streams of ended executors sent that the journal does not know to be sent."""
        for index in range(len(self._plan.executors)):
            if self._journal.find("ended", executor=index):
                self._end_logs(index)

    def _tail(self, index: int, stream: str, result: Optional[Result]) -> bytes:
        if result is not None and _bytes(result, stream) == 0:
            return b""  # the usual case of stderr: no need to look
        try:
            return read_control(self._dir, index, stream + ".tail", _TAIL_FILE_BYTES) or b""
        except (OSError, PathRefused):
            return b""

    def _place(self, index: int, stream: str) -> str:
        path = getattr(self._plan.executors[index], stream)
        return "steps/%d/%s" % (index, stream) if path is None else host_path(path, self._plan.mounts)

    def _end_logs(self, index: int) -> None:
        """Say how long each stream of an ended executor is; the rest of it is sent beside everything else."""
        ending = self._endings.get(index) or self.step(index).result()
        result = None if ending is None else ending.result
        for stream in ("stdout", "stderr"):
            tail = self._tail(index, stream, result)
            size = len(tail) if result is None else _bytes(result, stream)
            self._logs.end(index, stream, self._place(index, stream), size, tail)

    # -- stage-out ---------------------------------------------------------------------------------------------

    async def _stage_out(self, state: str) -> Final:
        outputs = self._record.find_published()
        if outputs is None:
            outputs = []
            if self._plan.outputs:
                self._reporter.changed()
                try:
                    await self._own()
                    outputs = await self._out.store()
                except (StagingError, RuntimeFault) as exc:
                    if state == COMPLETE:
                        raise
                    self._record.note(exc.sentence)  # the command's own error stays the verdict
                    self._journal.append("unpublished")
                    await self._out.discard()
            self._record.published(outputs)
            crash.point("after-publish")
        return Final("finish", state=state, outputs=self._out.listed(outputs), published=self._record.was_leased)

    async def _own(self) -> None:
        """Where the agent is not root and the commands were somebody else, take their files over."""
        if os.getuid() == 0 or user_of(self._plan.run_as) == "%d:%d" % (os.getuid(), os.getgid()):
            return
        paths = [os.path.join(self._dir, "rw")]
        await self._tools.runtime.own(self._plan.executors[0].image, paths, os.getuid(), os.getgid())

    async def discard(self) -> bool:
        """Remove what stage-out left under temporary names; idempotent. False: a storage is away, ask again."""
        return await self._out.discard()


def _bytes(result: Result, stream: str) -> int:
    return result.stdout_bytes if stream == "stdout" else result.stderr_bytes
