"""What operators ask about agents, and tell them: who there is, and who is to get nothing new."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from tesgate.errors import Forbidden, NotFound
from tesgate.model.caller import Caller
from tesgate.store.agents import AgentStore, Known

__all__ = ["Agents"]

log = structlog.get_logger(__name__)


class Agents:
    """For admins; where nobody is asked who he is, for everybody."""

    def __init__(self, *, store: AgentStore, open_to_all: bool, woken: Callable[[], None]) -> None:
        """`woken` is called when there may be room that was not there before."""
        self._store = store
        self._open_to_all = open_to_all
        self._woken = woken

    async def everyone(self, caller: Caller) -> list[Known]:
        """All agents, by pool and host. Raises `Forbidden`."""
        self._check(caller)
        return await self._store.list_all()

    async def drain(self, caller: Caller, name: str, drain: bool) -> list[tuple[str, str]]:
        """Give the agents of this id or host nothing new (or something again); id and host of each.

        Raises `Forbidden`, `NotFound`.
        """
        self._check(caller)
        found = await self._store.drain(name, drain)
        if not found:
            raise NotFound(f"No agent has the name or id {name[:64]!r}; `tesgate agent list` shows them.")
        self._told(found, drain, caller.subject)
        return found

    async def drain_own(self, pool: str, agent: str, drain: bool) -> list[tuple[str, str]]:
        """The same for who has a token of `pool`, and for one agent by its id."""
        found = await self._store.drain(agent, drain, pool=pool)
        self._told(found, drain, "the agent's operator")
        return found

    def _told(self, found: list[tuple[str, str]], drain: bool, by: str) -> None:
        for agent, host in found:
            log.info("agent told to drain" if drain else "agent told to go on", agent=agent, host=host, by=by)
        if not drain:
            self._woken()

    def _check(self, caller: Caller) -> None:
        if not (self._open_to_all or caller.admin):
            raise Forbidden("Only admins may see and drain agents; use the token of one.")
