"""Looks at queue, agents and the event loop for the metrics."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from tesgate.model.state import TERMINAL, State
from tesgate.store.agents import AgentStore
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore
from tesgate.telemetry import Metrics

__all__ = ["Observer"]


class Observer:
    """Fills the gauges."""

    LAG_INTERVAL = 0.5

    def __init__(
        self, *, tasks: TaskStore, agents: AgentStore, metrics: Metrics, database: Database, backends: Sequence[str]
    ) -> None:
        self._tasks = tasks
        self._agents = agents
        self._metrics = metrics
        self._database = database
        self._backends = backends

    async def once(self) -> bool:
        """Queue, agents and their room."""
        counts = await self._tasks.counts()
        for state in State:
            for backend in (*self._backends, "none"):
                if state not in TERMINAL:
                    self._metrics.tasks.labels(state.value, backend).set(counts.get((state, backend), 0))
        used, idle = self._database.connections()
        self._metrics.pool_connections.labels("used").set(used)
        self._metrics.pool_connections.labels("idle").set(idle)
        self._metrics.queue_age.set(await self._tasks.queue_age())
        agents = await self._agents.list_open()
        for pool in {agent.pool for agent in agents}:
            rooms = [agent.room for agent in agents if agent.pool == pool]
            self._metrics.agents.labels(pool, "open").set(sum(not room.draining for room in rooms))
            self._metrics.agents.labels(pool, "draining").set(sum(room.draining for room in rooms))
            for use in ("capacity", "used"):
                amounts = [getattr(room, use) for room in rooms]
                room = self._metrics.room
                room.labels(pool, "cpu_cores", use).set(sum(amount.cpu_milli for amount in amounts) / 1000)
                room.labels(pool, "ram_bytes", use).set(sum(amount.ram_bytes for amount in amounts))
                room.labels(pool, "disk_bytes", use).set(sum(amount.disk_bytes for amount in amounts))
        return False

    async def watch_lag(self) -> None:
        """How late the event loop is. Runs for ever."""
        while True:
            due = anyio.current_time() + self.LAG_INTERVAL
            await anyio.sleep(self.LAG_INTERVAL)
            self._metrics.loop_lag.set(max(0.0, anyio.current_time() - due))
