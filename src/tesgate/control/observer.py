"""Looks at queue, agents and the event loop for the metrics."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from tesgate.metrics import Metrics, Sample
from tesgate.model.state import TERMINAL, State
from tesgate.store.agents import AgentStore
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore

__all__ = ["Observer"]


class Observer:
    """Fills the gauges."""

    LAG_INTERVAL = 0.5

    def __init__(
        self,
        *,
        tasks: TaskStore,
        agents: AgentStore,
        metrics: Metrics,
        database: Database,
        backends: Sequence[str],
        places: Mapping[str, Path],
    ) -> None:
        """`places`: directories whose disk is looked at, by their word in the metrics."""
        self._tasks = tasks
        self._agents = agents
        self._metrics = metrics
        self._database = database
        self._backends = backends
        self._places = places
        self._pools: set[str] = set()
        metrics.add_source(self._read)

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
        self._metrics.leases.set(await self._tasks.leases())
        for place, path in self._places.items():
            with contextlib.suppress(OSError):
                usage = await anyio.to_thread.run_sync(shutil.disk_usage, path)
                self._metrics.disk_free.labels(place).set(usage.free)
                self._metrics.disk_size.labels(place).set(usage.total)
        agents = await self._agents.list_open()
        # A pool whose last agent went has none, and not as many as before.
        self._pools |= {agent.room.pool for agent in agents}
        for pool in self._pools:
            rooms = [agent.room for agent in agents if agent.room.pool == pool]
            self._metrics.agents.labels(pool, "open").set(sum(not room.draining for room in rooms))
            self._metrics.agents.labels(pool, "draining").set(sum(room.draining for room in rooms))
            for use in ("capacity", "used"):
                amounts = [getattr(room, use) for room in rooms]
                room = self._metrics.room
                room.labels(pool, "cpu_cores", use).set(sum(amount.cpu_milli for amount in amounts) / 1000)
                room.labels(pool, "ram_bytes", use).set(sum(amount.ram_bytes for amount in amounts))
                room.labels(pool, "disk_bytes", use).set(sum(amount.disk_bytes for amount in amounts))
                room.labels(pool, "gpus", use).set(sum(amount.gpus for amount in amounts))
        return False

    def _read(self) -> Iterator[Sample]:
        usage = self._database.usage
        yield "database_waiting", "Calls that wait for a connection", usage.waiting
        yield "database_acquisitions_total", "Calls that asked for a connection", usage.waits
        yield "database_wait_seconds_total", "Time that calls waited for a connection", usage.seconds
        yield "database_faults_outlived_total", "Calls that met a fault and were answered in the end", usage.outlived
        yield "database_faults_given_up_total", "Calls that met a fault and were given up", usage.given_up
        for name, (calls, batches) in self._tasks.gathered().items():
            yield f"gathered_{name}_total", f"Gathered {name}", calls
            yield f"gathered_{name}_batches_total", f"Statements that gathered {name}", batches

    async def watch_lag(self) -> None:
        """How late the event loop is. Runs for ever."""
        while True:
            due = anyio.current_time() + self.LAG_INTERVAL
            await anyio.sleep(self.LAG_INTERVAL)
            late = max(0.0, anyio.current_time() - due)
            self._metrics.loop_lag.set(late)
            self._metrics.loop_delay.observe(late)
