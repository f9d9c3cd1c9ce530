"""The agent of a host: keeps a session with the gateway, begins, stops and forgets attempts, goes on after a crash."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import List, Optional

import anyio
import anyio.abc
import anyio.to_thread

from . import crash, gpus
from .attempts import AGAIN, Attempts
from .facts import agent_facts, devices
from .gateway import Backoff, GatewayClient, GatewayFault, Gone, Unauthorized
from .plan import Plan
from .report import AttemptRef, Have, PollAnswer, PollRequest, Registered, Resources
from .runtime.base import RuntimeFacts, RuntimeFault
from .scratch import Scratch, ScratchError
from .settings import AgentSettings
from .work import Tools

__all__ = ["EXIT_LOCKED", "EXIT_OK", "EXIT_SCRATCH", "EXIT_SUPERSEDED", "Agent"]

EXIT_OK = 0
EXIT_SCRATCH = 3
"""The scratch directory cannot be used, or this installation lacks a part."""
EXIT_LOCKED = 4
"""Another agent works in this scratch directory."""
EXIT_SUPERSEDED = 5
"""Our scratch was taken away from under us and another session took our place."""

PROBE_PATIENCE = 30.0
FLUSH = 2.0
UNAUTHORIZED_PAUSE = 5.0
FULL_PATIENCE = 60.0
"""Seconds for which a start is put off because the disk is full, before the gateway is to look for another agent."""
CONTACT_EVERY = 60.0

_log = logging.getLogger("tesgate.agent")


class Agent:
    """One living agent; `run` returns its exit code."""

    def __init__(self, *, settings: AgentSettings, scratch: Scratch, client: GatewayClient, tools: Tools) -> None:
        self._settings, self._scratch, self._client, self._tools = settings, scratch, client, tools
        self._scope: Optional[anyio.CancelScope] = None
        self._ending = False
        self._engine: Optional[RuntimeFacts] = None
        self._gpus: List[str] = []
        self._registered: Optional[Registered] = None
        self._contact = time.monotonic()
        self._noted = 0.0
        self._polls = 0
        self._capacity = Resources()
        self._full_since: Optional[float] = None

    async def run(self) -> int:
        """Work until told to end, idle without a gateway, or superseded."""
        async with anyio.create_task_group() as group:
            self._attempts = Attempts(scratch=self._scratch, tools=self._tools, group=group)
            if threading.current_thread() is threading.main_thread():
                await group.start(self._signals)
            group.start_soon(self._tools.watch.run)
            group.start_soon(self._ends)
            self._attempts.adopt()
            group.start_soon(self._remove_orphans)
            await self._probe(PROBE_PATIENCE)
            if self._engine is None and self._tools.runtime.name != "none":
                group.start_soon(self._probe_on)
            code = await self._sessions()
            with anyio.move_on_after(FLUSH):
                async with anyio.create_task_group() as last:
                    for attempt in self._attempts:
                        last.start_soon(attempt.flush)
            self._client.close()
            group.cancel_scope.cancel()
        return code

    def end(self) -> None:
        """Have the agent end: containers go on, and the next start takes them up."""
        self._ending = True
        if self._settings.hard_exit_after is not None:
            timer = threading.Timer(self._settings.hard_exit_after, os._exit, (EXIT_OK,))
            timer.daemon = True
            timer.start()
        if self._scope is not None:
            self._scope.cancel()

    def register_anew(self) -> None:
        """Tell the gateway that what this agent offers has changed."""
        self._registered = None
        if self._scope is not None:
            self._scope.cancel()

    async def _signals(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async for number in received:
                _log.info("told to end by %s; containers go on", signal.Signals(number).name)
                self.end()

    # -- the runtime -------------------------------------------------------------------------------------------

    async def _probe(self, patience: float) -> None:
        deadline = anyio.current_time() + patience
        backoff = Backoff()
        while not self._ending and self._tools.runtime.name != "none":
            try:
                found = await self._tools.runtime.probe()
            except RuntimeFault as exc:
                pause = backoff.next()
                if anyio.current_time() + pause > deadline:
                    _log.error("no executors can run here for now: %s", exc)
                    return
                await anyio.sleep(pause)
                continue
            self._engine = found
            _log.info("runtime %s %s", found.name, found.version)
            for note in found.notes:
                _log.info("runtime %s: %s", found.name, note)
            if self._settings.gpus and not found.gpus:
                _log.warning("no GPUs are offered here: this engine would not hand them on, only Docker does")
            return

    async def _probe_on(self) -> None:
        while self._engine is None:
            await anyio.sleep(AGAIN)
            await self._probe(0.0)
        self.register_anew()

    async def _ends(self) -> None:
        while True:
            try:
                async for name in self._tools.runtime.ended():
                    self._tools.watch.notify(name)
            except RuntimeFault as exc:
                _log.info("the runtime does not say what ends for now: %s", exc)
            except Exception:  # these are hints, and every attempt would end with the agent
                _log.exception("the runtime's word of what has ended was lost; it is asked again")
            await anyio.sleep(AGAIN / 6)

    async def _remove_orphans(self) -> None:
        """Remove containers of this scratch root whose attempt directory is gone."""
        backoff = Backoff()
        while True:
            try:
                for name in await self._tools.runtime.names(""):
                    if name.rpartition("-")[0] not in self._attempts:
                        _log.warning("removing the container %s: there is no attempt of it", name)
                        await self._tools.runtime.remove(name)
                return
            except (RuntimeFault, OSError) as exc:
                _log.warning("containers of earlier attempts cannot be looked for now: %s", exc)
            await anyio.sleep(max(1.0, backoff.next()))

    # -- sessions ----------------------------------------------------------------------------------------------

    async def _sessions(self) -> int:
        backoff, unheard = Backoff(), Backoff(first=0.1, early=1.0, late=1.0)
        while not self._ending:
            pause, refused = 0.0, False
            with anyio.CancelScope() as self._scope:
                try:
                    registered = self._registered or await self._register()
                    began = anyio.current_time()
                    answer = await self._client.poll(self._request(registered))
                    self._heard()
                    backoff.reset()
                    if self._obey(answer) or anyio.current_time() - began > 1.0:
                        unheard.reset()
                    else:
                        pause = unheard.next()  # it repeats what we are about to do: no need to ask at full speed
                except Gone as exc:
                    if not self._scratch.holds_lock():
                        _log.error("another agent has taken over, this one ends: %s", exc)
                        return EXIT_SUPERSEDED
                    _log.warning("registering anew: %s", exc)
                    self._registered = None
                    pause = backoff.next()
                except Unauthorized as exc:
                    _log.error("the gateway does not take the agent's token in %s: %s", self._settings.token_file, exc)
                    pause, refused = UNAUTHORIZED_PAUSE, True
                except GatewayFault as exc:
                    _log.info("no gateway for now: %s", exc)
                    pause = backoff.next()
                # Whoever answers but does not know us is not our gateway: another may have its port by now.
                if pause and (refused or not self._client.reachable) and self._is_idle():
                    _log.info("nobody needs this agent any more: it ends")
                    return EXIT_OK
                self._abandon_if_alone()
                if pause:
                    await self._client.pause(pause)
        return EXIT_OK

    async def _register(self) -> Registered:
        name = self._tools.runtime.name
        self._gpus = devices(self._settings, runtime=name, engine=self._engine)
        runtime = None if self._engine is None else name
        facts = agent_facts(self._settings, instance=self._scratch.instance, runtime=runtime, gpu_count=len(self._gpus))
        self._capacity = facts.capacity
        try:
            registered = await self._client.register(facts)
        except Gone:
            # This instance is closed for good, and so is all that it had.
            for attempt in self._attempts:
                attempt.abandon()
            self._scratch.new_instance()
            raise
        self._registered = registered
        self._attempts.agent = registered.agent
        self._heard()
        _log.info("agent %s, session %d", registered.agent, registered.session)
        return registered

    def _request(self, registered: Registered) -> PollRequest:
        self._polls += 1
        return PollRequest(
            agent=registered.agent,
            session=registered.session,
            number=self._polls,
            have=[Have(a.ref.task, a.ref.attempt, a.stopping) for a in self._attempts if a.wanted],
            tombstones=[Have(task, attempt) for task, attempt in sorted(self._attempts.refused)],
            wait=self._settings.poll_wait,
            draining=self._is_full(),
        )

    def _is_full(self) -> bool:
        """Whether the disk of the scratch directory is: then no new attempts are wanted here."""
        if self._scratch.has_space():
            if self._full_since is not None:
                _log.warning("there is room again in the scratch directory %s", self._scratch.root)
            self._full_since = None
        elif self._full_since is None:
            self._full_since = time.monotonic()
            _log.error("no new attempts until the disk of the scratch directory %s has room", self._scratch.root)
        return self._full_since is not None

    def _heard(self) -> None:
        self._contact = time.monotonic()
        if self._contact - self._noted > CONTACT_EVERY or not self._noted:
            self._noted = self._contact
            self._scratch.note_contact()

    def _is_idle(self) -> bool:
        limit = self._settings.idle_exit
        if limit is None or time.monotonic() - self._contact < limit:
            return False
        return all(attempt.settled for attempt in self._attempts)

    def _abandon_if_alone(self) -> None:
        if not self._client.reachable and self._scratch.without_contact() > self._settings.abandon_after:
            for attempt in self._attempts:
                if attempt.wanted:
                    _log.error("no gateway for so long that attempt %s is given up", attempt.plan.external_name)
                    attempt.abandon()

    # -- what the gateway wants --------------------------------------------------------------------------------

    def _obey(self, answer: PollAnswer) -> bool:
        """Do what an answer says; False where all of it was known."""
        news = False
        # First what makes room: a start that would not fit yet is put off, and the gateway repeats it.
        for order in answer.stop:
            attempt = self._attempts.find(AttemptRef(order.task, order.attempt))
            if attempt is not None:
                attempt.stop(order.grace)
            elif (order.task, order.attempt) not in self._attempts.refused:
                news = self._entomb(order.task, order.attempt) or news
        for ref in answer.forget:
            attempt = self._attempts.find(ref)
            if (ref.task, ref.attempt) in self._attempts.refused:
                self._attempts.refused.discard((ref.task, ref.attempt))
                self._scratch.disinter(ref.task, ref.attempt)
                news = True
            if attempt is not None and attempt.wanted:
                try:
                    attempt.forget()
                    news = True
                except (OSError, ValueError) as exc:  # a full disk, or it is about to be taken up again: it is repeated
                    _log.warning("attempt %s cannot be forgotten yet: %s", attempt.plan.external_name, exc)
        for plan in answer.start:
            news = self._begin(plan) or news
        return news

    def _entomb(self, task: str, attempt: int) -> bool:
        """It was stopped before it began. A disk that takes no tombstone now may take it when the order is repeated."""
        try:
            self._scratch.entomb(task, attempt)
        except (ScratchError, OSError) as exc:
            _log.error("attempt %s/%d cannot be noted as stopped yet: %s", task, attempt, exc)
            return False
        self._attempts.refused.add((task, attempt))
        _log.info("attempt %s/%d was stopped before it began", task, attempt)
        return True

    def _begin(self, plan: Plan) -> bool:
        try:
            if plan.external_name in self._attempts or (plan.task, plan.attempt) in self._attempts.refused:
                return False
            if self._scratch.entombed(plan.task, plan.attempt):
                return self._refuse(plan)
            if plan.limits.gpus > len(self._gpus):
                _log.error("attempt %s cannot begin here: its GPUs are gone", plan.external_name)
                return self._refuse(plan)
            if not self._fits(plan) or self._is_put_off():
                return False
            made = self._scratch.begin(plan)
        except (ScratchError, OSError) as exc:
            _log.error("attempt %s cannot begin here: %s", plan.external_name, exc)
            return self._refuse(plan)
        if made is None:
            return False
        crash.point("after-begun")
        self._attempts.live(plan, made[0], made[1])
        return True

    def _fits(self, plan: Plan) -> bool:
        """Whether there is room beside what still runs here, also of attempts that the gateway has given up.

        One that finds nothing beside it always fits: what it needs was the gateway's to check. Devices are another
        matter: an attempt gets its own or none, and they are named in its plan from here on.
        """
        busy = [attempt.plan.limits for attempt in self._attempts if attempt.occupies]
        cpu_used = sum(limits.cpu_cores or 0.0 for limits in busy) + (plan.limits.cpu_cores or 0.0)
        ram_used = sum(limits.ram_bytes or 0 for limits in busy) + (plan.limits.ram_bytes or 0)
        if busy and (cpu_used > self._capacity.cpu_cores + 1e-6 or ram_used > self._capacity.ram_bytes):
            return False
        taken = [device for limits in busy for device in limits.gpu_devices]
        mine = gpus.free(self._gpus, taken, plan.limits.gpus)
        if mine is None:
            return False
        plan.limits.gpu_devices = mine
        return True

    def _is_put_off(self) -> bool:
        """The disk is full, and has not been for long."""
        return self._is_full() and time.monotonic() - (self._full_since or 0.0) < FULL_PATIENCE

    def _refuse(self, plan: Plan) -> bool:
        """Tell the gateway with the next poll that this agent will never begin it."""
        known = (plan.task, plan.attempt) in self._attempts.refused
        self._attempts.refused.add((plan.task, plan.attempt))
        return not known
