"""Runs one executor of an attempt to its end, and never twice, whatever dies in between."""

from __future__ import annotations

import fcntl
import logging
import os
from dataclasses import dataclass, replace
from typing import Awaitable, Callable, Dict, List, Optional, Sequence

import anyio
import anyio.to_thread

from . import crash
from .journal import Journal
from .places import make_control, read_control, step_dir
from .plan import Limits, Plan, RunAs
from .runtime.base import (
    CONTROL_TARGET,
    EXEC_TARGET,
    Bind,
    ImageFacts,
    RegistryUnreachable,
    Runtime,
    RuntimeFault,
    RuntimeUnavailable,
    StepSpec,
    StepStatus,
    default_home,
)
from .transfer.faults import PathRefused
from .transfer.live import Bound
from .verdict import RESULT_BYTES, Ending, Garbled, parse_result
from .watch import Watch

__all__ = ["Launch", "Step", "enforced", "user_of"]

ENGINE_PATIENCE = 60.0
"""Seconds for which an engine may be away (its upgrade, its restart) before an attempt gives up on it."""
REGISTRY_PAUSES = (1.0, 4.0)
FIRST_LOOK, LAST_LOOK = 5.0, 30.0
"""How often the engine itself is asked whether the container is still there; its events wake us before."""
OVERDUE = 30.0
"""Seconds past limit and grace after which exec is taken not to enforce its limit any more."""
EXITED_PATIENCE = 1.5
GONE_PATIENCE = 2.0
"""Seconds between exec's result and the end of its lock; an honest exec needs a few microseconds."""


@dataclass
class Launch:
    """How an executor came to run."""

    digest: Optional[str]
    notes: List[str]


def user_of(run_as: RunAs) -> Optional[str]:
    """Return ``uid:gid`` for the container, or None for the image's own user."""
    if run_as.policy == "fixed" and run_as.uid is not None:
        return "%d:%d" % (run_as.uid, run_as.uid if run_as.gid is None else run_as.gid)
    if run_as.policy == "agent" or (run_as.policy != "image" and os.getuid() != 0):
        return "%d:%d" % (os.getuid(), os.getgid())
    return None


def enforced(plan: Plan) -> Limits:
    """The limits that the runtime is to hold."""
    limits, off = plan.limits, plan.limits_off
    return replace(
        limits,
        cpu_cores=None if "cpu" in off else limits.cpu_cores,
        ram_bytes=None if "memory" in off else limits.ram_bytes,
        disk_bytes=None if "disk" in off else limits.disk_bytes,
        pids=None if "pids" in off else limits.pids,
    )


class Step:
    """Executor `index` of a plan in an attempt's directory. Cancelling any method leaves the container as it is."""

    def __init__(
        self,
        *,
        plan: Plan,
        index: int,
        attempt_dir: str,
        journal: Journal,
        runtime: Runtime,
        watch: Watch,
        exec_path: str,
        labels: Dict[str, str],
        bound: Callable[[], Awaitable[Sequence[Bound]]],
        log: logging.LoggerAdapter,  # type: ignore[type-arg]  # 3.9 cannot subscript it at run time
    ) -> None:
        self.plan, self.index, self.executor = plan, index, plan.executors[index]
        self.name = "%s-%d" % (plan.external_name, index)
        self._dir, self._journal, self._runtime, self._watch = attempt_dir, journal, runtime, watch
        self._exec_path, self._labels, self._log = exec_path, labels, log
        self._bound = bound
        self._adopted = False

    # -- start -------------------------------------------------------------------------------------------------

    async def launch(self, timeout: Optional[float], by_task: bool) -> Launch:
        """Have the executor started, exactly once in this attempt.

        `timeout` in seconds is for exec to enforce; `by_task` says that it is the whole task's limit.

        Raises RuntimeFault (transient ones after some patience), StagingError and OSError.
        """
        starting = self._journal.find("starting", executor=self.index)
        if starting is not None and (self._journal.find("launched", executor=self.index) or self._marked()):
            # It began, so it is not started again, whatever became of it: `ending` finds out.
            self._adopted = True
            return Launch(starting.get("digest"), [])
        image = await self._prepare()
        control = make_control(self._dir, self.index)
        spec = self._spec(control, timeout, await self._bound())
        if starting is None:
            # An image that came from no registry has no digest of its own; its id says as exactly what ran.
            digest = image.digest or image.id or None
            self._journal.append("starting", executor=self.index, digest=digest, limit=timeout, by_task=by_task)
            await anyio.to_thread.run_sync(self._settle)
        else:
            self._adopted = True
        crash.point("before-launch", self.index + 1)
        notes = await self._patiently(spec)
        crash.point("after-launch", self.index + 1)
        self._journal.append("launched", executor=self.index)
        return Launch(image.digest or image.id or None, list(image.notes) + notes)

    def _settle(self) -> None:
        """From here on a lost host must not make us begin again: entry, plan and their names go to the disk."""
        self._journal.sync()
        for path in (os.path.join(self._dir, "plan.json"), self._dir, os.path.dirname(self._dir)):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    async def _prepare(self) -> ImageFacts:
        deadline = anyio.current_time() + ENGINE_PATIENCE
        pauses = list(REGISTRY_PAUSES)
        pause = 0.25
        while True:
            try:
                return await self._runtime.prepare(self.executor.image, self.plan.pull_policy)
            except RegistryUnreachable:
                if not pauses:
                    raise
                pause = pauses.pop(0)
            except RuntimeUnavailable as exc:
                if anyio.current_time() + pause > deadline:
                    raise
                self._log.warning("the engine cannot prepare the image of executor %d now: %s", self.index, exc)
                pause = min(5.0, pause * 2)
            await anyio.sleep(pause)

    async def _patiently(self, spec: StepSpec) -> List[str]:
        """Start, through an engine's short absence. Not to be cancelled half-way: a request may still land."""
        deadline = anyio.current_time() + ENGINE_PATIENCE
        pause = 0.25
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    if self.plan.collect:
                        await self._runtime.restore(spec, self.plan.collect, spec.root)
                    return await self._runtime.start(spec)
            except RuntimeUnavailable as exc:
                if anyio.current_time() + pause > deadline:
                    raise
                self._log.warning("the engine cannot start executor %d now: %s", self.index, exc)
            await anyio.sleep(pause)
            pause = min(5.0, pause * 2)

    def _spec(self, control: str, timeout: Optional[float], bound: Sequence[Bound]) -> StepSpec:
        executor, plan = self.executor, self.plan
        argv = [EXEC_TARGET, "run", "--control", CONTROL_TARGET]
        for option, value in (
            ("--stdin", executor.stdin),
            ("--stdout", executor.stdout),
            ("--stderr", executor.stderr),
            ("--workdir", executor.workdir),
        ):
            if value is not None:
                argv += [option, value]
        argv += ["--tail", str(plan.tail_bytes), "--grace-ms", str(int(plan.grace * 1000))]
        if timeout is not None:
            argv += ["--timeout-ms", str(max(1, int(timeout * 1000)))]
        for item in bound:
            argv += ["--bound", "%s:%s" % (item.identity, item.target)]
        user = user_of(plan.run_as)
        env = dict(executor.env)
        home = default_home(user is not None, plan.home)
        if home is not None:
            env.setdefault("HOME", home)
        binds = [Bind(self._exec_path, EXEC_TARGET, read_only=True), Bind(control, CONTROL_TARGET)]
        binds.extend(
            Bind(os.path.join(self._dir, mount.source), mount.target, read_only=mount.read_only)
            for mount in plan.mounts
            if mount.host is None
        )
        binds.extend(Bind(item.path, item.target, read_only=item.read_only) for item in bound)
        return StepSpec(
            name=self.name,
            image=executor.image,
            argv=[*argv, "--", *executor.command],
            root=os.path.join(self._dir, "rw"),
            control=control,
            env=env,
            user=user,
            binds=binds,
            limits=enforced(plan),
            network=plan.network,
            labels=self._labels,
            grace=plan.grace,
            shm_bytes=plan.shm_bytes,
        )

    # -- end ---------------------------------------------------------------------------------------------------

    def _marked(self) -> bool:
        """Whether exec has left its marker: the command began."""
        return os.path.lexists(os.path.join(step_dir(self._dir, self.index), "started"))

    def result(self) -> Optional[Ending]:
        """Read the result file, if there is one."""
        try:
            data = read_control(self._dir, self.index, "result", RESULT_BYTES)
            return None if data is None else Ending(result=parse_result(data))
        except Garbled as exc:
            return Ending(garbled=str(exc))
        except PathRefused as exc:
            return Ending(garbled="it " + exc.why)

    async def ending(self, limit: Optional[float]) -> Ending:
        """Wait for the end; `limit` (seconds from now) is a backstop for an exec that does not enforce its own."""
        overdue_at = None if limit is None else anyio.current_time() + limit + self.plan.grace + OVERDUE
        look_every = FIRST_LOOK
        look_at = anyio.current_time() + (0.0 if self._adopted else look_every)
        away_since: Optional[float] = None
        with self._watch.on(step_dir(self._dir, self.index), self.name) as wake:
            while True:
                ending = self.result()
                if ending is not None:
                    await self._until_gone()
                    return await self._with_memory(ending)
                now = anyio.current_time()
                if overdue_at is not None and now > overdue_at:
                    return await self._stop_overdue()
                if wake.ended or now >= look_at:
                    wake.ended = False
                    look_at, look_every = now + look_every, min(LAST_LOOK, look_every * 2)
                    try:
                        found = await self._without_result()
                        away_since = None
                    except RuntimeUnavailable as exc:
                        away_since = now if away_since is None else away_since
                        found = self._while_away(now - away_since, exc)
                        look_at = now + 1.0
                    if found is not None:
                        return found
                await wake.wait()
                crash.point("during-executor", self.index + 1)

    async def _until_gone(self) -> None:
        """Make sure that nothing of the executor lives once its result is there.

        exec lets go of its lock when all is over. A task that writes a result of its own would run on while its outputs
        are stored and the next executor works: it is killed, and its result is its own doing.
        """
        deadline, pause = anyio.current_time() + GONE_PATIENCE, 0.001
        while self._exec_lives():
            if anyio.current_time() > deadline:
                self._log.warning("executor %d has a result and runs on: it is killed", self.index)
                try:
                    await self._runtime.stop(self.name, 0.0)
                except RuntimeFault as exc:
                    self._log.warning("executor %d could not be stopped: %s", self.index, exc)
                return
            await anyio.sleep(pause)
            pause = min(0.1, pause * 2)

    def _exec_lives(self) -> bool:
        """Whether exec holds the lock on its control directory, which a task cannot replace."""
        try:
            handle = os.open(step_dir(self._dir, self.index), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return (
                True  # no descriptor left, a disk that does not answer: nothing is known, so nothing is taken as over
            )
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
        return False

    async def _without_result(self) -> Optional[Ending]:
        """Ask the engine; None: it runs on."""
        status = await self._runtime.inspect(self.name)
        if status.running:
            return None
        ending = self.result()  # it may have come while we asked
        if ending is not None:
            await self._until_gone()
            return await self._with_memory(ending)
        return Ending(engine_oom=status.oom_killed, cause=_cause(status))

    def _while_away(self, seconds: float, exc: RuntimeFault) -> Optional[Ending]:
        """The engine is away: exec's lock tells whether the command still runs (it can outlive its engine)."""
        if self._locked():
            return None
        if seconds < ENGINE_PATIENCE and not self._marked():
            return None
        ending = self.result()
        return ending or Ending(cause="it ended while the engine could not be reached (%s)" % exc.sentence.rstrip("."))

    def _locked(self) -> bool:
        """Whether exec lives, by the lock on its marker.

        Only a marker with content is tried: before that exec might be about to take the lock, and must not find ours.
        """
        try:
            handle = os.open(
                os.path.join(step_dir(self._dir, self.index), "started"),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            )
        except OSError:
            return False
        try:
            if os.fstat(handle).st_size == 0:
                return True
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    async def _with_memory(self, ending: Ending) -> Ending:
        """Where a command was killed by signal 9, ask the engine whether memory was the reason."""
        result = ending.result
        if result is None or result.oom_killed or enforced(self.plan).ram_bytes is None:
            return ending
        if not (result.killed or result.signal == 9 or result.exit_code == 137):
            return ending
        deadline = anyio.current_time() + EXITED_PATIENCE
        while True:
            try:
                status = await self._runtime.inspect(self.name)
            except RuntimeFault as exc:
                self._log.info("the engine does not say why executor %d was killed: %s", self.index, exc)
                return ending
            if status.oom_killed or not status.running or anyio.current_time() > deadline:
                return Ending(result=result, engine_oom=status.oom_killed, cause=_cause(status))
            await anyio.sleep(0.1)

    async def _stop_overdue(self) -> Ending:
        self._log.warning("executor %d is long past its limit and is stopped", self.index)
        try:
            await self._runtime.stop(self.name, 1.0)
        except RuntimeFault as exc:
            self._log.warning("executor %d could not be stopped: %s", self.index, exc)
        return self.result() or Ending(overdue=True)


def _cause(status: StepStatus) -> str:
    if not status.found:
        return "its container is gone (removed by somebody else, or lost with the host)"
    said = " (%s)" % status.error if status.error else ""
    if status.exit_code is None:
        return "its container does not run%s" % said
    return "its container ended with %d before the command did, such as when host or engine stop%s" % (
        status.exit_code,
        said,
    )
