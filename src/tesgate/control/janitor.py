"""Retention: rows by one replica at a time, logs by each for its own workspace, or by one for that of all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Protocol

import structlog

from tesgate.control.held import Trust
from tesgate.store.agents import AgentStore
from tesgate.store.partitions import PartitionStore
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore
from tesgate.store.tokens import TokenStore

__all__ = ["Janitor", "LogKeeper"]

log = structlog.get_logger(__name__)


class Logs(Protocol):
    """The workspace, as far as retention is concerned."""

    async def tasks(self, *, after: str, limit: int) -> list[str]:
        """Ids of tasks that have files, in order, from behind `after` on."""
        ...

    async def remove(self, task_id: str) -> None:
        """Remove all of a task's files; gone is success."""
        ...

    async def settle(self, task_id: str) -> None:
        """Give what has not been written to for long its final form."""
        ...


class Janitor:
    """Removes what is older than it should become, a bounded amount at a time."""

    NAME = "janitor"
    BATCH = 500

    def __init__(
        self,
        *,
        tasks: TaskStore,
        agents: AgentStore,
        replicas: ReplicaStore,
        tokens: TokenStore,
        partitions: PartitionStore,
        logs: Logs,
        trust: Trust,
        interval: timedelta,
        keep_tasks: timedelta | None,
    ) -> None:
        self._tasks = tasks
        self._agents = agents
        self._replicas = replicas
        self._tokens = tokens
        self._partitions = partitions
        self._logs = logs
        self._trust = trust
        self._interval = interval
        self._keep_tasks = keep_tasks

    async def once(self) -> bool:
        """One round; True: there is more."""
        if not self._trust.holds():
            return False
        if not await self._replicas.hold_singleton(self._trust.holder, self.NAME, self._interval * 3):
            return False
        await self._agents.forget(timedelta(days=7))
        await self._replicas.forget()
        await self._tokens.forget()
        try:
            await self._partitions.cut()
        except Exception:
            # Rows have a place without it; what is old goes nevertheless, and the next round tries again.
            log.exception("partitions could not be cut")
        if self._keep_tasks is None:
            return False
        # Logs of what is dropped stay behind for a moment: each replica's LogKeeper finds them without a row.
        if await self._partitions.drop_oldest(self._keep_tasks):
            return True
        below, behind = await self._partitions.one_by_one(self._keep_tasks)
        expired = await self._tasks.expired(self._keep_tasks, self.BATCH, below=below, behind=behind)
        removed = []
        for task_id in expired:
            # Files before rows: a crash in between leaves a row without logs, not logs that nobody can find.
            try:
                await self._logs.remove(task_id)
            except Exception:
                # The others' time is over all the same. Its row stays, and another round tries again.
                log.exception("the logs of a task could not be removed", task=task_id)
            else:
                removed.append(task_id)
        if removed:
            await self._tasks.delete(removed)
            log.info("retention", removed=len(removed))
        return len(removed) == self.BATCH


class LogKeeper:
    """Removes logs of a workspace that are past their time, or whose task has no row any more."""

    NAME = "log-keeper"
    BATCH = 500

    def __init__(
        self,
        *,
        tasks: TaskStore,
        logs: Logs,
        keep: timedelta | None,
        is_ours: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """`is_ours`: for a workspace that replicas share, whether this one sees to it in this round."""
        self._is_ours = is_ours
        self._tasks = tasks
        self._logs = logs
        self._keep = keep
        self._after = ""

    async def once(self) -> bool:
        """Look at one batch; True: there is more, until the end of the directory is reached."""
        if self._is_ours is not None and not await self._is_ours():
            self._after = ""
            return False
        found = await self._logs.tasks(after=self._after, limit=self.BATCH)
        kept = await self._tasks.keeping_logs(found, self._keep) if found else set()
        for task_id in found:
            try:
                if task_id not in kept:
                    await self._logs.remove(task_id)
                else:
                    await self._logs.settle(task_id)
            except Exception:
                # The others go on; this one has its turn again when all have been looked at.
                log.exception("the logs of a task could not be seen to", task=task_id)
        self._after = found[-1] if len(found) == self.BATCH else ""
        return bool(self._after)
