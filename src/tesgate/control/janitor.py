"""The janitor: retention. One replica at a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

import structlog

from tesgate.control.held import Trust
from tesgate.store.agents import AgentStore
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore

__all__ = ["Janitor"]

log = structlog.get_logger(__name__)


class Logs(Protocol):
    """The workspace, as far as retention is concerned."""

    async def remove(self, task_id: str) -> None:
        """Remove all of a task's files; gone is success."""
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
        logs: Logs,
        trust: Trust,
        interval: timedelta,
        keep_tasks: timedelta | None,
    ) -> None:
        self._tasks = tasks
        self._agents = agents
        self._replicas = replicas
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
        if self._keep_tasks is None:
            return False
        expired = await self._tasks.expired(self._keep_tasks, self.BATCH)
        for task_id in expired:
            # Files before rows: a crash in between leaves a row without logs, not logs that nobody can find.
            await self._logs.remove(task_id)
        if expired:
            await self._tasks.delete(expired)
            log.info("retention", removed=len(expired))
        return len(expired) == self.BATCH
