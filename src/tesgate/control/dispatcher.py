"""Gives waiting tasks to agents: reads the queue's head and the rooms, decides, and writes all in one statement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

import anyio
import structlog

from tesgate.control.held import Trust
from tesgate.model.placement import AgentRoom, Candidate, Placement, place
from tesgate.store.agents import AgentStore
from tesgate.store.attempts import Assigned, AttemptStore
from tesgate.store.tasks import TaskStore

__all__ = ["Dispatcher"]

log = structlog.get_logger(__name__)

_SHALLOW = 16
"""Waiting tasks that a round looks at when room has become free and nothing says that more could be given away."""
_LONGEST_REST = 0.05
"""Seconds. After a round the dispatcher rests for as long as it took: what happens meanwhile goes into one round."""


class Dispatcher:
    """Any replica may dispatch; the statement's guards keep two of them from giving the same task or room twice."""

    def __init__(
        self,
        *,
        tasks: TaskStore,
        attempts: AttemptStore,
        agents: AgentStore,
        trust: Trust,
        assigned: Callable[[Sequence[Assigned]], None],
        prefix: str,
        known_roots: Sequence[tuple[str, bool]],
        pool: str,
        hint: Callable[[], str] = lambda: "",
        refused_runtimes: Collection[str] = (),
        reserve_after: float = 30.0,
        interval: timedelta = timedelta(seconds=1),
        batch: int = 200,
    ) -> None:
        """`interval`: how often at the latest the queue is looked at `batch` deep, and reasons to wait are written."""
        self._tasks = tasks
        self._attempts = attempts
        self._agents = agents
        self._trust = trust
        self._assigned = assigned
        self._prefix = prefix
        self._known_roots = known_roots
        self._pool = pool
        self._hint = hint
        self._refused_runtimes = refused_runtimes
        self._reserve_after = reserve_after
        self._interval = interval.total_seconds()
        self._batch = batch
        self._depth = _SHALLOW
        self._whole_at = 0.0
        self._rests_until = 0.0
        self._served = ""
        # Of the head as it was read last: documents are read once.
        self._known: dict[str, tuple[tuple[str, bool], ...]] = {}

    async def once(self) -> bool:
        """One round; True: there may be more to give away at once.

        When room becomes free somewhere, the head is looked at no deeper than the rounds before found something to
        give away. A whole round follows after the interval: it looks past tasks for which there is no room, writes
        the reasons, and ends what waited for a lease.
        """
        if not self._trust.holds():
            return False
        if (early := self._rests_until - anyio.current_time()) > 0:
            await anyio.sleep(early)
        began = anyio.current_time()
        try:
            return await self._round(began)
        finally:
            ended = anyio.current_time()
            self._rests_until = ended + min(_LONGEST_REST, ended - began)

    async def _round(self, now: float) -> bool:
        whole = now >= self._whole_at
        if whole:
            self._whole_at = now + self._interval
            for task_id in await self._tasks.end_pending():
                log.info("task ended", task=task_id)
        depth = self._batch if whole else self._depth
        head = await self._tasks.head(depth, served=self._served, known=self._known)
        candidates = head.candidates
        self._known = {candidate.task_id: candidate.paths for candidate in candidates}
        if not candidates:
            self._depth = _SHALLOW
            return False
        rooms = [room for pool, room in head.rooms if pool == self._pool]
        placement = self._place(candidates, rooms, self._known_roots)
        if placement.refused:
            await self._reconsider(candidates, rooms, placement)
        given = await self._give(placement)
        picked = {pick.task_id for pick in placement.picks}
        last = max((index for index, candidate in enumerate(candidates) if candidate.task_id in picked), default=-1)
        if last >= 0:
            self._served = candidates[last].owner
        self._depth = min(self._batch, max(_SHALLOW, 2 * (last + 1)))
        if whole or placement.refused:
            await self._explain(candidates, placement)
        # Everything that was seen went through: look at what stood behind it.
        return bool(given) and len(given) == len(candidates) and head.more

    def _place(
        self, candidates: Sequence[Candidate], rooms: Sequence[AgentRoom], known_roots: Sequence[tuple[str, bool]]
    ) -> Placement:
        return place(
            candidates,
            rooms,
            reserve_after=self._reserve_after,
            known_roots=known_roots,
            hint=self._hint(),
            refused_runtimes=self._refused_runtimes,
        )

    async def _reconsider(
        self, candidates: Sequence[Candidate], rooms: Sequence[AgentRoom], placement: Placement
    ) -> None:
        """A path that only agents know that are lost is waited for: they may come back."""
        known = [*self._known_roots, *await self._agents.lost_roots(self._pool)]
        refused = [candidate for candidate in candidates if candidate.task_id in placement.refused]
        again = self._place(refused, rooms, known)
        placement.reasons.update(again.reasons)
        placement.refused.clear()
        placement.refused.update(again.refused)

    async def _give(self, placement: Placement) -> list[Assigned]:
        if not placement.picks:
            return []
        given = await self._attempts.assign(
            self._trust.holder, placement.picks, backend="pool", keeps=False, prefix=self._prefix
        )
        self._assigned(given)
        return given

    async def _explain(self, candidates: Sequence[Candidate], placement: Placement) -> None:
        shown = {candidate.task_id: candidate.reason for candidate in candidates}
        # A reason that stands already is not written again.
        new = {task_id: reason for task_id, reason in placement.reasons.items() if shown.get(task_id) != reason}
        await self._tasks.note_reasons(new)
        if placement.refused:
            await self._tasks.refuse(placement.refused)
            for task_id in await self._tasks.end_pending():
                log.info("task refused", task=task_id)
