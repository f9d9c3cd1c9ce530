"""The pool: agents on hosts with a container engine. Docker, Podman and bubblewrap are this one backend.

The dispatcher itself takes attempt and room on a named agent in one statement; what an agent has to do stands in the
rows, and its held poll reads them. Launching and cancelling are wake-ups.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import anyio

from tesgate.backends.base import AttemptRef, Handle, Launch, Listed, Lost, Observation, Running
from tesgate.store.agents import AgentStore
from tesgate.store.wakes import Wakes

__all__ = ["PoolBackend"]


class PoolBackend:
    """See `tesgate.backends.base.Backend` for what each method promises."""

    name = "pool"
    keeps = False

    def __init__(self, *, agents: AgentStore, wakes: Wakes, interval: timedelta) -> None:
        self._agents = agents
        self._wakes = wakes
        self._interval = interval

    def check(self, document: Mapping[str, Any]) -> list[str]:
        """What the pool understands of ``backend_parameters`` was checked at intake (`tesgate.model.wishes`)."""
        del document
        return []

    async def launch(self, launch: Launch) -> Handle | None:
        """Wake the agent's held poll: the start stands in the rows already."""
        if launch.ref.agent_id is not None:
            self._wakes.agent(launch.ref.agent_id)
        return None

    async def inspect(self, ref: AttemptRef) -> Observation:
        """Lost if its agent was declared lost."""
        for stranded in await self._agents.stranded():
            if (stranded.task_id, stranded.number) == (ref.task_id, ref.number):
                return _lost(stranded.task_id, stranded.number, stranded.host)
        return Running(ref.task_id, ref.number)

    async def watch(self) -> AsyncIterator[Observation]:
        """Attempts whose agents were declared lost. The rows are the truth; this looks at them every interval."""
        while True:
            for stranded in await self._agents.stranded():
                yield _lost(stranded.task_id, stranded.number, stranded.host)
            yield Listed()
            await anyio.sleep(self._interval.total_seconds())

    async def cancel(self, ref: AttemptRef, grace: timedelta) -> None:
        """Wake the agent's held poll: its answer says stop."""
        del grace
        if ref.agent_id is not None:
            self._wakes.agent(ref.agent_id)

    async def release(self, ref: AttemptRef) -> None:
        """Wake the agent's held poll: its answer says forget."""
        if ref.agent_id is not None:
            self._wakes.agent(ref.agent_id)


def _lost(task_id: str, number: int, host: str) -> Lost:
    return Lost(task_id, number, f"the agent on {host} has not been heard of; the attempt on it is given up")
