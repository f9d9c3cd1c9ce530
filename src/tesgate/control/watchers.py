"""Watchers: what backends see becomes news for drivers; and the one that counts the agents' silence."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import anyio
import structlog

from tesgate.backends.base import Backend, Lost
from tesgate.control.drivers import Drivers
from tesgate.control.held import Trust
from tesgate.store.agents import AgentStore
from tesgate.store.replicas import ReplicaStore

__all__ = ["SilenceWatcher", "watch_backend"]

log = structlog.get_logger(__name__)


async def watch_backend(backend: Backend, drivers: Drivers) -> bool:
    """Follow a backend's observations until its watch ends or fails (the caller repeats)."""
    async for observation in backend.watch():
        if isinstance(observation, Lost):
            drivers.observed(observation)
    return True


class SilenceWatcher:
    """Declares agents lost: after so many good ticks of silence, counted by the one replica that holds this loop.

    A tick is good if gateway and database both worked since the last one: a tick that comes much too late (the process
    was stopped, the database was away) counts nothing, so an outage of ours loses nobody.
    """

    NAME = "agent-silence"

    def __init__(
        self,
        *,
        agents: AgentStore,
        replicas: ReplicaStore,
        trust: Trust,
        tick: timedelta,
        lost_after: timedelta,
        answering: Callable[[], bool],
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._agents = agents
        self._replicas = replicas
        self._trust = trust
        self.tick = tick
        self._limit = max(1, round(lost_after / tick))
        self._answering = answering
        self._lost = lost
        self._last: float | None = None

    async def once(self) -> bool:
        """One tick."""
        started = self._trust.now()
        held = await self._replicas.hold_singleton(self._trust.holder, self.NAME, self.tick * 3)
        on_time = self._last is not None and started - self._last < 2 * self.tick.total_seconds()
        if not held:
            self._last = None
        elif not on_time or not self._answering():
            self._last = started
        else:
            self._last = started
            for silence in await self._agents.count_silence():
                if silence.ticks >= self._limit and await self._agents.close(
                    silence.agent_id, silence.session, self._limit
                ):
                    self._lost()
                    log.error("agent lost", agent=silence.agent_id, silent=silence.ticks * self.tick.total_seconds())
        await anyio.lowlevel.checkpoint()
        return False
