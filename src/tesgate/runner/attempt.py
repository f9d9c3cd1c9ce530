"""The life of one attempt on an agent: works, says its last word, is stopped or lost, and is forgotten in the end."""

from __future__ import annotations

import logging
import os
from typing import Awaitable, Callable, List, Optional

import anyio
import anyio.to_thread

from . import crash
from .gateway import Backoff, Conflict, GatewayFault, Gone, Unauthorized
from .journal import Journal
from .logs import LogFollower
from .plan import Plan
from .record import Final, Record
from .report import Answer, AttemptRef
from .reporter import UNAUTHORIZED_PAUSE, Reporter
from .runtime.base import RuntimeFault
from .scratch import Scratch
from .verdict import COMPLETE
from .work import Tools, Work

__all__ = ["Attempt"]

LOG_PATIENCE = 60.0
"""Seconds without progress after which logs that nobody takes no longer hold back the removal of an attempt."""
FINISH_LOG_LIMIT = 30.0
"""Seconds that the last word waits for long logs; what is left then is sent after it."""
DISCARD_PATIENCE = 3600.0
"""Seconds for which storages that are away are asked, beside everything else, to let go of temporary files."""
DISCARD_PAUSES = (5.0, 60.0)
SETTLE = 0.3
"""Seconds between the last word and the removal of containers: exec has yet to exit, and others want the processor."""


class Attempt:
    """One attempt directory. `run` does everything; the other methods only leave a wish and return at once."""

    def __init__(
        self,
        *,
        plan: Plan,
        path: str,
        journal: Journal,
        scratch: Scratch,
        tools: Tools,
        agent: str,
        log: logging.Logger,
    ) -> None:
        self.plan, self.path, self._journal, self._scratch, self._tools = plan, path, journal, scratch, tools
        self.ref = AttemptRef(task=plan.task, attempt=plan.attempt)
        self._log = logging.LoggerAdapter(log, {"task": plan.task, "attempt": plan.attempt})
        known = journal.find("agent")
        if known is None and agent:
            known = journal.append("agent", name=agent)
        agent = str(known["name"]) if known is not None else ""
        metadata = {"host": tools.host, "agent": agent, "runtime": tools.runtime.name}
        self._record = Record(plan=plan, journal=journal, metadata=metadata)
        self._reporter = Reporter(
            client=tools.client,
            ref=self.ref,
            token=plan.token,
            instance=scratch.instance,
            journal=journal,
            snapshot=self._record.snapshot,
            answered=self._answered,
            gone=self._be_gone,
            log=self._log,
        )
        self._logs = LogFollower(
            client=tools.client,
            ref=self.ref,
            token=plan.token,
            journal=journal,
            attempt_dir=path,
            cap=plan.log_bytes,
            tail_bytes=plan.tail_bytes,
            changed=self._tail,
            log=self._log,
        )
        self._work = Work(
            plan=plan,
            attempt_dir=path,
            record=self._record,
            reporter=self._reporter,
            logs=self._logs,
            tools=tools,
            log=self._log,
        )
        self._scope: Optional[anyio.CancelScope] = None
        self._following: Optional[anyio.CancelScope] = None
        self._grace: Optional[float] = None
        self._gone = journal.find("gone") is not None
        self._resumed = len(journal.all("resumed")) > 1
        # A last word that was journalled may have been heard before whoever said it died.
        self._unsure = self._record.find_final() is not None
        self._forget = anyio.Event()
        self._saying = False
        stopping = journal.find("stopping")
        if stopping is not None:
            self._grace = float(stopping["grace"])
        self.settled = journal.find("settled") is not None
        """The gateway has heard the last word."""
        self.forgotten = journal.find("forgotten") is not None
        """The gateway wants no more of it: it is being removed and not in `have` any more."""
        if self.forgotten:
            self._forget.set()

    @property
    def wanted(self) -> bool:
        """Whether the gateway still counts on it: it is in `have`."""
        return not self._gone and not self.forgotten

    @property
    def occupies(self) -> bool:
        """Whether something of it may still run here."""
        return not self.settled and self._journal.find("removed") is None

    @property
    def stopping(self) -> bool:
        """Whether the order to stop has arrived."""
        return self._grace is not None

    # -- wishes ------------------------------------------------------------------------------------------------

    def stop(self, grace: float) -> None:
        """Have it stopped: `grace` seconds between a polite signal and a kill."""
        if self._grace is None and not self.settled and not self._gone:
            self._grace = grace
            self._interrupt()

    def forget(self) -> None:
        """Have it removed: it has ended, and the gateway has all it wants."""
        if not self.forgotten:
            self._journal.append("forgotten")
            self.forgotten = True
            self._forget.set()
            # A poll's answer may overtake that to our last word, which then settles it.
            if not self.settled and not self._saying:
                self._log.info("the attempt is over for the gateway, which never heard our last word")
                self._be_gone()

    def abandon(self) -> None:
        """Have everything of it removed; nobody will ask for it any more."""
        self._be_gone()
        self._forget.set()

    async def flush(self) -> None:
        """Send what has not been reported yet, once."""
        if not self.settled and not self._gone:
            await self._reporter.flush()

    def _be_gone(self) -> None:
        if not self._gone and not self.settled:
            self._gone = True
            self._interrupt()

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _answered(self, answer: Answer) -> None:
        if answer.stop:
            self.stop(answer.grace)

    def _tail(self, executor: int, stream: str, text: str) -> None:
        self._record.tail(executor, stream, text)
        self._reporter.changed()

    # -- life --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until everything of this attempt is removed, or cancelled: then a later run goes on."""
        try:
            async with anyio.create_task_group() as group:
                if not self.settled:
                    group.start_soon(self._reporter.run)
                group.start_soon(self._follow_logs)
                if self._resumed:
                    self._work.resume_logs()
                    self._reporter.changed()
                while not self.settled and not self._gone:
                    await self._once()
                self._reporter.close()
                await self._clean_up()
                group.cancel_scope.cancel()
        finally:
            self._journal.close()

    async def _follow_logs(self) -> None:
        with anyio.CancelScope() as self._following:
            await self._logs.run()

    async def _once(self) -> None:
        """Work, or stop, until that is done or something else is wanted."""
        try:
            with anyio.CancelScope() as self._scope:
                if self._grace is not None:
                    await self._stop(self._grace)
                else:
                    final = await self._work.run()
                    await self._wait_for_long_logs()
                    await self._say_final(final)
        except Gone:
            self._gone = True
        except (RuntimeFault, OSError) as exc:
            self._log.error("trying again in a moment: %s", exc)
            await anyio.sleep(5.0)
        finally:
            self._scope = None

    async def _wait_for_long_logs(self) -> None:
        if self._logs.unsent() > self.plan.tail_bytes:
            with anyio.move_on_after(FINISH_LOG_LIMIT):
                await self._logs.drained(LOG_PATIENCE / 6)

    async def _say_final(self, final: Final) -> None:
        crash.point("before-finish")

        async def send() -> Answer:
            return await self._reporter.send(
                final.message,
                state=final.state,
                cause=final.cause,
                outputs=final.outputs,
                published=final.published,
            )

        await self._say(final.message, send, leased=final.published)
        crash.point("after-finish")

    async def _stop(self, grace: float) -> None:
        """Stop what runs, take nothing to its place, and say so."""
        self._log.info("stopping")
        if self._journal.find("stopping") is None:
            self._journal.append("stopping", grace=grace)
        await anyio.to_thread.run_sync(self._journal.sync)  # in a thread: a slow disk would stop all attempts
        for index in range(len(self.plan.executors)):
            if self._journal.find("starting", executor=index) and not self._journal.find("ended", executor=index):
                step = self._work.step(index)
                await self._until_engine(lambda name=step.name: self._tools.runtime.stop(name, grace))  # type: ignore[misc]
                self._work.show_stopped(index)
        await self._work.discard()
        await self._say("stopped", lambda: self._reporter.send("stopped"))

    async def _say(self, message: str, send: Callable[[], Awaitable[Answer]], leased: bool = False) -> None:
        """Send the last word until it is heard, or something else is wanted. Raises `Gone`."""
        self._reporter.close()
        backoff = Backoff()
        try:
            while True:
                pause = 1.0
                if self.forgotten:
                    raise Gone("the attempt is over for the gateway, which never answered our last word")
                try:
                    self._saying = True
                    try:
                        answer = await send()
                    finally:
                        self._saying = False
                    if not answer.stop or message == "stopped":
                        self.settled = True
                        self._journal.append("settled", message=message)
                        return
                    self._unsure = True
                except Conflict as exc:
                    self._log.info("not yet: %s", exc)
                    if leased:
                        await self._renew()
                except Unauthorized as exc:
                    self._log.error("the gateway does not take this attempt's token: %s", exc)
                    pause = UNAUTHORIZED_PAUSE
                except Gone:
                    raise
                except GatewayFault as exc:
                    self._log.info("the last word waits for the gateway: %s", exc)
                    self._unsure = True
                    pause = backoff.next()
                await self._tools.client.pause(pause)
        finally:
            if not self.settled:
                self._reporter.open()

    async def _renew(self) -> None:
        """The lease under which outputs became visible has run out: it is needed once more for the last word."""
        try:
            await self._reporter.send("publish")
        except Gone:
            raise
        except GatewayFault as exc:
            self._log.info("no lease for the last word yet: %s", exc)

    # -- removal -----------------------------------------------------------------------------------------------

    async def _clean_up(self) -> None:
        """Remove containers, wait for the word (unless we are not wanted any more), then logs, then the directory."""
        crash.point("before-release")
        kept = False
        if self._gone:
            if self._journal.find("gone") is None:
                self._journal.append("gone")
            await self._remove_containers()
            await self._work.discard()
            if self._unsure or self.forgotten:
                await self._logs.drained(LOG_PATIENCE)
        else:
            await anyio.sleep(SETTLE)
            kept = self._is_kept()
            if kept:
                # A start that failed for us may have happened: its command must not run beside the next attempt's.
                await self._stop_containers()
            else:
                await self._remove_containers()
            await self._forget.wait()
            if not await self._logs.drained(LOG_PATIENCE):
                self._log.warning("%d bytes of logs could not be stored", self._logs.unsent())
        await self._discard_at_last(kept)
        if self.forgotten:
            self._scratch.disinter(self.ref.task, self.ref.attempt)
        else:
            self._scratch.entomb(self.ref.task, self.ref.attempt)
        if kept:
            if await self._tools.kept.keep(self.plan):
                self._log.info("kept for %g s", self.plan.keep.seconds)
                return
            for name in self._tools.kept.containers(self.plan):
                await self._until_engine(lambda name=name: self._remove(name))  # type: ignore[misc]
            await self._remove_containers()
        await self._removed(self._scratch.remove, self._scratch.remains)
        self._log.info("removed")

    async def _discard_at_last(self, kept: bool) -> None:
        """Nobody else knows these names: who gives up leaves them for ever.

        Unless it is to be kept, the attempt does not hold the disk meanwhile: of its directory plan and journal stay,
        which is all that a later run needs to ask again.
        """
        deadline, pause = anyio.current_time() + DISCARD_PATIENCE, DISCARD_PAUSES[0]
        emptied = kept
        while not await self._work.discard():
            if not emptied:
                emptied = True
                if self._following is not None:
                    self._following.cancel()  # open streams would hold their files' room on the disk
                await self._removed(self._scratch.empty, self._scratch.contents)
                self._log.info("its storage is away: temporary files of outputs are asked for again and again")
            if anyio.current_time() + pause > deadline:
                self._log.error("temporary files of outputs stay where they are: their storage is away")
                return
            await anyio.sleep(pause)
            pause = min(DISCARD_PAUSES[1], pause * 2)

    def _is_kept(self) -> bool:
        """Whether people may want to look at what it left."""
        keep, said = self.plan.keep, self._record.find_final()
        if keep.seconds <= 0 or said is None or self._grace is not None:
            return False
        return not keep.failed_only or said.message == "failed" or said.state != COMPLETE

    async def _stop_containers(self) -> None:
        for index in range(len(self.plan.executors)):
            if self._journal.find("starting", executor=index):
                name = self._work.step(index).name
                await self._until_engine(lambda name=name: self._tools.runtime.stop(name, 0.0))  # type: ignore[misc]

    async def _remove_containers(self) -> None:
        if self._journal.find("removed") is not None:
            return
        for index in range(len(self.plan.executors)):
            if self._journal.find("starting", executor=index):
                name = self._work.step(index).name
                await self._until_engine(lambda name=name: self._remove(name))  # type: ignore[misc]
        self._journal.append("removed")

    async def _remove(self, name: str) -> None:
        async with self._tools.removals:
            await self._tools.runtime.remove(name)

    async def _until_engine(self, call: Callable[[], Awaitable[None]]) -> None:
        """Call until the engine has done it; what we asked it to run must not stay."""
        backoff = Backoff()
        while True:
            try:
                await call()
                return
            except RuntimeFault as exc:
                self._log.warning("waiting for the engine: %s", exc)
            await anyio.sleep(backoff.next())

    async def _removed(self, remove: Callable[[str], None], remains: Callable[[str], List[str]]) -> None:
        """Call `remove`; what it must leave (files of another user) is made our own, and then it is called again."""
        for last in (False, True):
            try:
                await anyio.to_thread.run_sync(remove, self.plan.external_name)
                return
            except OSError as exc:
                if last or os.getuid() == 0:
                    self._log.error("the attempt's directory cannot be removed: %s", exc)
                    return
            paths = remains(self.plan.external_name)
            try:
                await self._tools.runtime.own(self.plan.executors[0].image, paths, os.getuid(), os.getgid())
            except RuntimeFault as exc:
                self._log.error("files of another user stay in the scratch directory: %s", exc)
                return
