"""Gives waiting tasks to agents: reads the queue's head and the rooms, decides, and writes all in one statement."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import timedelta

import anyio
import structlog

from tesgate.control.held import Trust
from tesgate.model.placement import Placement, Reservation, place
from tesgate.model.pools import PoolRule, known_pools
from tesgate.model.room import AgentRoom, Candidate
from tesgate.model.roots import KnownRoot
from tesgate.model.wishes import Seen
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
        mount_roots: Sequence[KnownRoot] = (),
        rules: Sequence[PoolRule] = (),
        hint: Callable[[], str] = lambda: "",
        refused_runtimes: Collection[str] = (),
        reserve_after: float = 30.0,
        interval: timedelta = timedelta(seconds=1),
        batch: int = 200,
    ) -> None:
        """`pool`: of the gateway's own agent, the first where no `rules` say which pools there are.

        `interval`: how often at the latest the queue is looked at `batch` deep, and reasons to wait are written.
        """
        self._tasks = tasks
        self._attempts = attempts
        self._agents = agents
        self._trust = trust
        self._assigned = assigned
        self._prefix = prefix
        self._known_roots = known_roots
        self._mount_roots = mount_roots
        self._pool = pool
        self._rules = rules
        self._hint = hint
        self._refused_runtimes = refused_runtimes
        self._reserve_after = reserve_after
        self._interval = interval.total_seconds()
        self._batch = batch
        self._depth = _SHALLOW
        self._whole_at = 0.0
        self._rests_until = 0.0
        self._served = ""
        # Of owners whose oldest tasks can only wait: up to where they were looked at. Every other whole round goes on.
        self._behind: dict[str, str] = {}
        self._deeper = False
        # With the moment at which they are forgotten, should the task not be seen again.
        self._reserved: dict[str, tuple[Reservation, float]] = {}
        # Of the head as it was read last: documents are read once.
        self._known: dict[str, Seen] = {}

    async def once(self) -> bool:
        """One round; True: there may be more to give away at once.

        When room becomes free somewhere, the head is looked at no deeper than the rounds before found something to
        give away. A whole round follows after the interval: it looks past tasks for which there is no room, writes
        the reasons, and ends what waited for a lease. If there are more of those than it looks at, the next one goes
        on behind them, and the one after that begins with the oldest again.
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
        deeper = whole and self._deeper
        self._reserved = {task_id: (one, until) for task_id, (one, until) in self._reserved.items() if until > now}
        head = await self._tasks.head(
            depth, served=self._served, known=self._known, behind=self._behind if deeper else {}
        )
        candidates = head.candidates
        self._known = {one.task_id: Seen(one.paths, one.wish) for one in candidates}
        if not candidates:
            self._depth = _SHALLOW
            self._behind, self._deeper = {}, False
            return False
        rooms = head.rooms
        placement = self._place(candidates, rooms, self._known_roots)
        self._keep(candidates, placement, now)
        if placement.refused:
            await self._reconsider(candidates, rooms, placement)
        given = await self._give(placement)
        picked = {pick.task_id for pick in placement.picks}
        last = max((index for index, candidate in enumerate(candidates) if candidate.task_id in picked), default=-1)
        if last >= 0:
            self._served = candidates[last].owner
        if deeper or (whole and len(picked) < len(candidates) and head.more):
            self._go_on(candidates, deeper=deeper, picked=last >= 0)
        elif whole:
            self._behind, self._deeper = {}, False
        if (last >= 0 or whole) and not deeper:
            # What a shallow round did not find may stand deeper; how deep it stands behind others says nothing.
            self._depth = min(self._batch, max(_SHALLOW, 2 * (last + 1)))
        if whole or placement.refused:
            await self._explain(candidates, placement)
        # All that could be given away was, and there may be more room than was seen for: look at what stands behind.
        again = bool(given) and len(given) == len(placement.picks) and head.more
        again = again and (last == len(candidates) - 1 or any(room.has_any_room() for room in rooms))
        if again and deeper:
            self._whole_at, self._deeper = now, True
        return again

    def _go_on(self, candidates: Sequence[Candidate], *, deeper: bool, picked: bool) -> None:
        """After a whole round that gave not all away: where the next one that looks deeper begins."""
        ends = {candidate.owner: candidate for candidate in candidates}
        if deeper:
            # Who has nothing further is looked at from his oldest on again.
            self._behind = {owner: task_id for owner, task_id in self._behind.items() if owner not in ends}
            if not picked:
                # With more owners than fit into a round, the next ones.
                self._served = list(dict.fromkeys(candidate.owner for candidate in candidates))[-1]
        for owner, end in ends.items():
            if not end.last:
                self._behind.setdefault(owner, end.task_id)
        self._deeper = not deeper

    def _keep(self, candidates: Sequence[Candidate], placement: Placement, now: float) -> None:
        """Remember what is kept free: rounds that do not look so deep, or elsewhere, keep it too."""
        seen = {candidate.task_id for candidate in candidates}
        self._reserved = {
            task_id: (one, now + 3 * self._interval if task_id in seen else self._reserved[task_id][1])
            for task_id, one in placement.reserved.items()
        }

    def _place(
        self, candidates: Sequence[Candidate], rooms: Sequence[AgentRoom], known_roots: Sequence[tuple[str, bool]]
    ) -> Placement:
        return place(
            candidates,
            rooms,
            reserve_after=self._reserve_after,
            known_roots=known_roots,
            mount_roots=self._mount_roots,
            hint=self._hint(),
            refused_runtimes=self._refused_runtimes,
            reserved={task_id: one for task_id, (one, _) in self._reserved.items()},
            pools=self._pools(rooms),
            open_pools=[rule.name for rule in self._rules if rule.is_open] if self._rules else None,
        )

    def _pools(self, rooms: Sequence[AgentRoom]) -> Sequence[str]:
        return known_pools(self._rules, self._pool, [room.pool for room in rooms])

    async def _reconsider(
        self, candidates: Sequence[Candidate], rooms: Sequence[AgentRoom], placement: Placement
    ) -> None:
        """A path that only agents know that are lost is waited for: they may come back."""
        known = [*self._known_roots, *await self._agents.known_roots()]
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
