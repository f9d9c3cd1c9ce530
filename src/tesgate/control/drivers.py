"""Drivers: each follows one attempt on its backend. A driver keeps no fact that is not in the row."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
import anyio.abc
import structlog

from tesgate.backends.base import AttemptRef, Backend, BackendError, Launch, Lost
from tesgate.control.held import Trust
from tesgate.model.retries import Retries
from tesgate.model.state import Phase
from tesgate.store.attempts import Assigned, AttemptStore, Closed, Held
from tesgate.store.errors import DatabaseUnavailable
from tesgate.store.wakes import Wakes
from tesgate.telemetry import Metrics

__all__ = ["Drivers"]

log = structlog.get_logger(__name__)

Name = tuple[str, int]

SUSPECT_PATIENCE = 10.0
"""Seconds after which a suspect no longer waits for the one before it."""


@dataclass
class _Followed:
    """One driver's mailbox."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    changed: anyio.Event = field(default_factory=anyio.Event)
    keeps: bool = True
    """Its backend holds something until it is released."""
    lost: Lost | None = None
    looked: bool = False
    """Where a watch says each change once: we have seen for ourselves that it is still there."""
    since: float = 0.0

    def wake(self) -> None:
        self.changed.set()


class Drivers:
    """All drivers of this replica, by attempt."""

    def __init__(
        self,
        *,
        attempts: AttemptStore,
        backends: Mapping[str, Backend],
        trust: Trust,
        wakes: Wakes,
        retries: Retries,
        grace: timedelta,
        crash_limit: int,
        metrics: Metrics | None = None,
    ) -> None:
        self._attempts = attempts
        self._backends = backends
        self._trust = trust
        self._wakes = wakes
        self._retries = retries
        self._grace = grace
        self._crash_limit = crash_limit
        self._metrics = metrics or Metrics()
        self._followed: dict[Name, _Followed] = {}
        self._by_task: dict[str, Name] = {}
        self._new: deque[tuple[Held, _Followed]] = deque()
        self._arrived = anyio.Event()
        self._look_again = anyio.Event()
        self._suspects: set[str] = set()
        self._one_suspect = anyio.Lock()

    def __len__(self) -> int:
        return len(self._followed)

    # what happens to drivers

    def assigned(self, given: Sequence[Assigned]) -> None:
        """The dispatcher has just assigned these; they are followed without being read again."""
        for item in given:
            self._follow(
                Held(
                    task_id=item.task_id,
                    number=item.number,
                    version=item.version,
                    phase="assigned",
                    state="INITIALIZING",
                    released=True,
                    crashes=0,
                    backend="pool",
                    external_name=item.external_name,
                    handle=None,
                    agent_id=item.agent_id,
                    age=0.0,
                )
            )

    def tell(self, task_id: str) -> None:
        """A task's row changed; an empty id: all may have."""
        if not task_id:
            self._look_again.set()
            self._look_again = anyio.Event()
        elif (name := self._by_task.get(task_id)) is not None:
            self._followed[name].wake()

    def ended(self, task_id: str) -> None:
        """A task has ended here: where its backend keeps nothing there is nothing left to do."""
        name = self._by_task.get(task_id)
        if name is not None:
            followed = self._followed[name]
            if followed.keeps:
                followed.wake()
            else:
                followed.scope.cancel()

    def suspect(self, task_ids: Iterable[str]) -> None:
        """These were followed by a process that crashed: one of them may be why. `compare` is to follow."""
        self._suspects.update(task_ids)

    def observed(self, lost: Lost) -> None:
        """A backend says that it does not have an attempt any more."""
        followed = self._followed.get((lost.task_id, lost.number))
        if followed is not None:
            followed.lost = lost
            followed.wake()

    def drop_all(self) -> None:
        """Past the trust window nothing that was held is ours for certain."""
        for followed in self._followed.values():
            followed.scope.cancel()
        # At once, not when the drivers have gone: a statement of theirs may still hang while `compare` looks here.
        self._followed.clear()
        self._by_task.clear()

    async def compare(self) -> None:
        """One statement for all: follow what the rows say this replica holds, and nothing else."""
        if not self._trust.holds():
            return  # the keeper calls again after the next heartbeat
        held = {(item.task_id, item.number): item for item in await self._attempts.held(self._trust.holder)}
        for name, item in held.items():
            if name in self._followed:
                if item.phase == "ended" or item.state == "CANCELING":
                    self._followed[name].wake()
            else:
                self._follow(item)
        for name in [name for name in self._followed if name not in held]:
            # Assigned a moment ago, or ended meanwhile: the driver's own reading tells.
            self._followed[name].wake()
        old = [task_id for (task_id, _), item in held.items() if item.crashes and self._is_old(task_id)]
        await self._attempts.reset_crashes(self._trust.holder, old)

    def ticket(self) -> anyio.Event:
        """Set when `compare` should run soon."""
        return self._look_again

    def _is_old(self, task_id: str) -> bool:
        name = self._by_task.get(task_id)
        return name is not None and anyio.current_time() - self._followed[name].since > 60

    # following

    def _follow(self, held: Held) -> None:
        name = (held.task_id, held.number)
        if name not in self._followed:
            backend = self._backends.get(held.backend)
            followed = _Followed(since=anyio.current_time(), keeps=backend is None or backend.keeps)
            self._followed[name] = followed
            self._by_task[held.task_id] = name
            self._new.append((held, followed))
            self._arrived.set()

    async def run(self) -> None:
        """Owns the drivers' tasks. Runs for ever."""
        async with anyio.create_task_group() as group:
            while True:
                while self._new:
                    held, followed = self._new.popleft()
                    group.start_soon(self._guarded, held, followed, name=f"driver-{held.task_id}")
                await self._arrived.wait()
                self._arrived = anyio.Event()

    async def _guarded(self, held: Held, followed: _Followed) -> None:
        name = (held.task_id, held.number)
        try:
            with followed.scope:
                await self._drive(held, followed)
        finally:
            self._suspects.discard(held.task_id)
            # After `drop_all` the name may be another driver's.
            if self._followed.get(name) is followed:
                del self._followed[name]
                if self._by_task.get(held.task_id) == name:
                    del self._by_task[held.task_id]

    async def _drive(self, held: Held, followed: _Followed) -> None:
        """Follow until the attempt is over; an exception of ours is counted in the row, and at the limit given up."""
        current: Held | None = held
        crash: Exception | None = None
        failures = 0
        while current is not None:
            try:
                if failures:
                    # In here, too: whatever goes wrong while a fault is looked after ends no other driver.
                    current, crash = await self._after(held, crash), None
                if current is not None:
                    current = await self._step(current, followed)
                failures = 0
            except (BackendError, DatabaseUnavailable) as error:
                log.warning("following interrupted", task=held.task_id, attempt=held.number, error=str(error))
                failures += 1
                await anyio.sleep(min(30.0, 0.2 * 2 ** min(failures, 8)))
            except Exception as error:
                log.exception("driver crashed", task=held.task_id, attempt=held.number)
                crash = error
                failures += 1
                await anyio.sleep(min(5.0, 0.1 * 2 ** min(failures, 6)))

    async def _after(self, held: Held, crash: Exception | None) -> Held | None:
        """Count a crash, if it was one; the row to go on with, or None: given up, or another's."""
        if crash is not None:
            counted = await self._attempts.count_crash(self._trust.holder, held.task_id, held.number)
            if counted is None:
                return None
            if counted[0] >= self._crash_limit:
                await self._give_up(held, counted[1], f"following this attempt failed {counted[0]} times: {crash}")
                return None
        return await self._read(held)

    async def _read(self, held: Held) -> Held | None:
        rows = await self._attempts.held(self._trust.holder, held.task_id)
        return next((row for row in rows if row.number == held.number), None)

    async def _step(self, held: Held, followed: _Followed) -> Held | None:
        """Do what the row asks for, then wait for the next change and read the row again. None: over."""
        if held.phase != "ended" and held.crashes >= self._crash_limit:
            await self._give_up(
                held, held.version, f"whoever followed this task died of it {held.crashes} times; it is given up"
            )
            return None
        suspect = held.task_id in self._suspects
        waits, current = await (self._cautiously(held, followed) if suspect else self._act(held, followed))
        if not waits:
            return current
        await followed.changed.wait()
        followed.changed = anyio.Event()
        return await self._read(held)

    async def _cautiously(self, held: Held, followed: _Followed) -> tuple[bool, Held | None]:
        """As `_act`, one row at a time, and counted as a crash while it lasts.

        A process that died had many rows, of which at most one was to blame. If one is, the process dies again while
        it acts on it, and only that row keeps the count.
        """
        alone = False
        with anyio.move_on_after(SUSPECT_PATIENCE):
            await self._one_suspect.acquire()
            alone = True
        try:
            with anyio.CancelScope(shield=True):  # counted and taken back, or neither
                crashes = await self._attempts.suspect(self._trust.holder, held.task_id, held.number)
            try:
                return await self._act(held, followed)
            finally:
                try:
                    if crashes is not None:
                        with anyio.move_on_after(1, shield=True):
                            await self._attempts.acquit(self._trust.holder, held.task_id, held.number, crashes)
                finally:
                    # Whatever became of that: acting did no harm, and is not counted again.
                    self._suspects.discard(held.task_id)
        finally:
            if alone:
                self._one_suspect.release()

    async def _act(self, held: Held, followed: _Followed) -> tuple[bool, Held | None]:
        """Do what the row asks for; whether to wait for a change then, else the row to go on with (None: over)."""
        backend = self._backends.get(held.backend)
        if backend is None:
            raise LookupError(f"this gateway has no backend {held.backend!r}")
        ref = AttemptRef(held.task_id, held.number, held.external_name, held.handle, held.agent_id)
        if held.phase == "ended":
            await backend.release(ref)
            if not held.released:
                await self._attempts.mark_released(held.task_id, held.number)
            return False, None
        if followed.lost is not None:
            # Where the row has moved on since it was read, the backend is asked again: its watch may say it only once.
            lost = followed.lost
            seen = None if await self._lose(held, lost) else await _seen_lost(backend, ref)
            if followed.lost is lost:
                followed.lost = seen
            return False, await self._read(held)
        if held.state == "CANCELING":
            await backend.cancel(ref, self._grace)
            if backend.keeps and (seen := await _seen_lost(backend, ref)) is not None:
                # Such as one that was never launched: nobody else would say that it has stopped.
                followed.lost = seen
                return False, held
        elif held.phase == "assigned" and held.handle is None:
            handle = await backend.launch(Launch(ref))
            if handle is not None:
                version = await self._attempts.store_handle(
                    self._trust.holder, held.task_id, held.number, held.version, handle
                )
                if version is None:
                    return False, await self._read(held)
            followed.looked = True
        elif backend.keeps and not followed.looked:
            # Taken over: what happened while nobody followed it, no watch will say.
            if (seen := await _seen_lost(backend, ref)) is not None:
                followed.lost = seen
                return False, held
            followed.looked = True
        return True, None

    async def _lose(self, held: Held, lost: Lost) -> bool:
        """Protocol row *lost attempt*: under the epoch and the version that was read. False: the row has moved on."""
        closed = await self._attempts.close(
            held.task_id,
            held.number,
            "lost",
            note=lost.sentence,
            max_attempts=self._retries.max_attempts,
            backoff=self._retries.after(held.number),
            holder=self._trust.holder,
            version=held.version,
        )
        if closed is not None:
            self._count(held, closed)
            log.warning("attempt lost", task=held.task_id, attempt=held.number, why=lost.sentence, state=closed.state)
            self._wakes.queue()
        return closed is not None

    async def _give_up(self, held: Held, version: int, sentence: str) -> None:
        closed = await self._attempts.close(
            held.task_id,
            held.number,
            "lost",
            note=sentence,
            max_attempts=self._retries.max_attempts,
            backoff=self._retries.after(held.number),
            retry=False,
            holder=self._trust.holder,
            version=version,
        )
        if closed is not None:
            self._count(held, closed)
        log.error("task given up", task=held.task_id, attempt=held.number, why=sentence)
        self._wakes.queue()

    def _count(self, held: Held, closed: Closed) -> None:
        self._metrics.attempts_total.labels("lost", held.backend).inc()
        if closed.phase == Phase.ENDED:
            self._metrics.tasks_total.labels(closed.state, held.backend).inc()
        else:
            self._metrics.retries_total.labels("lost").inc()


async def _seen_lost(backend: Backend, ref: AttemptRef) -> Lost | None:
    seen = await backend.inspect(ref)
    return seen if isinstance(seen, Lost) else None
