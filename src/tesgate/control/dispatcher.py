"""Gives waiting tasks to agents: reads the queue's head and the rooms, decides, and writes all in one statement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import structlog

from tesgate.control.held import Trust
from tesgate.model.placement import AgentRoom, Candidate, Placement, place
from tesgate.store.agents import AgentStore
from tesgate.store.attempts import Assigned, AttemptStore
from tesgate.store.tasks import TaskStore

__all__ = ["Dispatcher"]

log = structlog.get_logger(__name__)


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
        batch: int = 200,
    ) -> None:
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
        self._batch = batch

    async def once(self) -> bool:
        """One round; True: there may be more to give away at once."""
        if not self._trust.holds():
            return False
        for task_id in await self._tasks.end_pending():
            log.info("task ended", task=task_id)
        candidates = await self._tasks.waiting(self._batch)
        if not candidates:
            return False
        rooms = [agent.room for agent in await self._agents.list_open() if agent.pool == self._pool]
        placement = self._place(candidates, rooms, self._known_roots)
        if placement.refused:
            await self._reconsider(candidates, rooms, placement)
        given = await self._give(placement)
        await self._explain(candidates, placement)
        # All picks went through and the head was full of work: look at what stood behind it.
        return bool(given) and len(given) == len(placement.picks) and len(candidates) == self._batch

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
