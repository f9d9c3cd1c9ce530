"""Tasks as the system's own loops see them: the queue that the dispatcher reads, reasons to wait, ends, retention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from tesgate.model.planning import local_paths
from tesgate.model.room import AgentRoom, Candidate, Need
from tesgate.model.wishes import Seen, wish_of
from tesgate.store.agents import room_of
from tesgate.store.database import Database, Row
from tesgate.store.queries import load_queries

__all__ = ["Head", "TaskQueue"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Head:
    """What a round of the dispatcher goes by."""

    candidates: list[Candidate]
    rooms: list[AgentRoom]
    """Open agents of all pools; none where nothing waits."""
    more: bool
    """Behind these there may be others."""


class TaskQueue:
    """Statements on ``task`` that act for nobody but the system."""

    def __init__(self, *, database: Database, ended: Callable[[str], None] = lambda state: None) -> None:
        """`ended(state)` is told of every task that ends by a statement of this store."""
        self._ended = ended
        self._database = database
        self._sql = {**load_queries("tasks"), **load_queries("task_reads")}

    async def waiting(self, limit: int) -> list[Candidate]:
        """The head of the queue: owners in turn, in each one's share the oldest first."""
        return (await self.head(limit)).candidates

    async def head(
        self,
        limit: int,
        *,
        served: str = "",
        known: Mapping[str, Seen] = MappingProxyType({}),
        behind: Mapping[str, str] = MappingProxyType({}),
    ) -> Head:
        """The head of the queue, from the owner behind `served` on, with the open agents of all pools.

        `known`: what the documents of tasks say that were seen before, by id; they are not read again. `behind`: of
        these owners only what stands behind these ids.
        """
        rows = await self._database.fetch(
            self._sql["waiting_tasks"],
            limit,
            served,
            list(known),
            list(behind),
            list(behind.values()),
            idempotent=True,
        )
        candidates = [_candidate(row, known.get(row["id"]) or _seen(row["document"])) for row in rows]
        agents = (rows[0]["agents"] or []) if rows else []
        return Head(
            candidates=candidates,
            rooms=[room_of(agent) for agent in agents],
            more=any(row["more"] for row in rows),
        )

    async def note_reasons(self, reasons: Mapping[str, str]) -> None:
        """Write down why tasks wait."""
        if reasons:
            sentences = [_storable(text) for text in reasons.values()]
            await self._database.execute(self._sql["note_reasons"], list(reasons), sentences)

    async def refuse(self, refused: Mapping[str, tuple[int, str]]) -> None:
        """End waiting tasks (id to version and sentence) that nothing here can ever run, in SYSTEM_ERROR."""
        if refused:
            await self._database.fetch(
                self._sql["refuse_waiting"],
                list(refused),
                [version for version, _ in refused.values()],
                [_storable(sentence) for _, sentence in refused.values()],
            )

    async def end_pending(self) -> list[str]:
        """Write the ends that waited for a publish lease which is now over; the tasks' ids."""
        rows = await self._database.fetch(self._sql["end_pending"])
        for row in rows:
            self._ended(row["state"])
        return [row["id"] for row in rows]

    async def counts(self) -> dict[tuple[str, str], int]:
        """Open tasks by state and backend (``none`` for those that nobody has)."""
        rows = await self._database.fetch(self._sql["task_counts"])
        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            key = (row["state"], row["backend"])
            counts[key] = counts.get(key, 0) + row["tasks"]
        return counts

    async def leases(self) -> int:
        """Attempts that hold a publish lease."""
        return await self._database.fetchval(self._sql["count_leases"]) or 0

    async def queue_age(self) -> float:
        """Seconds for which the oldest waiting task has been waiting; 0 with an empty queue."""
        return await self._database.fetchval(self._sql["oldest_waiting"]) or 0.0

    async def expired(self, keep: timedelta, limit: int, *, below: str, behind: str) -> list[str]:
        """Ended tasks older than `keep`, of those with an id below `below`, or from `behind` on."""
        rows = await self._database.fetch(self._sql["expired_tasks"], keep, limit, below, behind)
        return [row["id"] for row in rows]

    async def delete(self, task_ids: Sequence[str]) -> None:
        """Retention: rows of ended tasks go, with their attempts, tails and events."""
        await self._database.execute(self._sql["delete_tasks"], list(task_ids))

    async def keeping_logs(self, task_ids: Sequence[str], keep: timedelta | None) -> set[str]:
        """Which of these tasks' logs are still kept, `keep` after the end (None: as long as the row)."""
        return {row["id"] for row in await self._database.fetch(self._sql["keeping_logs"], list(task_ids), keep)}


def _storable(text: str) -> str:
    """PostgreSQL holds no NUL and no half surrogate (the bytes of a file's name that are not UTF-8).

    A sentence that quotes one would end the statement, and with it the queue of everybody.
    """
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _candidate(row: Row, seen: Seen) -> Candidate:
    pools = row["pools"]
    return Candidate(
        task_id=row["id"],
        version=row["version"],
        need=Need(row["need_cpu_milli"], row["need_ram_bytes"], row["need_disk_bytes"], row["need_gpus"]),
        paths=seen.paths,
        wish=seen.wish,
        pools=None if pools is None else tuple(pools),
        age=row["age"],
        reason=row["wait_reason"],
        owner=row["owner"],
        last=row["last"],
    )


def _seen(document: Any) -> Seen:
    """What a document says. One that cannot be read holds up nobody else: its own plan fails and says so."""
    try:
        return Seen(tuple(local_paths(document)), wish_of(document))
    except Exception:
        log.exception("a task's document cannot be read")
        return Seen()
