"""Agents, for operators: an extension beside TES."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, Field

from tesgate import __version__
from tesgate.api.context import ApiContext
from tesgate.api.deps import caller_of
from tesgate.ga4gh.common import ErrorBody
from tesgate.model.caller import Caller
from tesgate.model.room import Need
from tesgate.store.agents import Known

__all__ = ["agents_router"]

PREFIX = "/tesgate/v1"


class Amount(BaseModel):
    """Room of an agent."""

    cpu_cores: float
    ram_gb: float = Field(description="GB (10⁹ bytes).")
    disk_gb: float
    gpus: int

    @classmethod
    def of(cls, need: Need) -> "Amount":
        """In the units of TES."""
        return cls(
            cpu_cores=need.cpu_milli / 1000,
            ram_gb=need.ram_bytes / 1e9,
            disk_gb=need.disk_bytes / 1e9,
            gpus=need.gpus,
        )


class Agent(BaseModel):
    """One agent."""

    id: str
    host: str
    pool: str
    state: Literal["open", "draining", "lost"] = Field(
        description="`draining`: it gets no new attempts. `lost`: it was silent for too long, its attempts are others'."
    )
    told_to_drain: bool = Field(description="By an operator; otherwise the agent drains because its disk is full.")
    version: str = Field(description="Of its program.")
    registered_at: str
    seen_at: str
    unseen_seconds: float = Field(description="Since it last spoke; it speaks every 20 s at least.")
    capacity: Amount
    used: Amount
    runtimes: list[str]
    zones: list[str]
    labels: dict[str, str]
    roots: list[str] = Field(description="Names of its file roots.")
    attempts: list[str] = Field(description="Those that are not over, as TASK-NUMBER.")

    @classmethod
    def of(cls, known: Known) -> "Agent":
        """As operators are shown it."""
        room = known.room
        return cls(
            id=room.agent_id,
            host=room.host,
            pool=room.pool,
            state="lost" if not known.is_open else "draining" if room.draining else "open",
            told_to_drain=known.told_to_drain,
            version=known.program_version,
            registered_at=known.registered_at.isoformat(),
            seen_at=known.seen_at.isoformat(),
            unseen_seconds=round(known.unseen_seconds, 1),
            capacity=Amount.of(room.capacity),
            used=Amount.of(room.used),
            runtimes=list(room.runtimes),
            zones=list(room.zones),
            labels=dict(room.labels),
            roots=list(known.root_names),
            attempts=list(known.attempts),
        )


class AgentList(BaseModel):
    """All agents."""

    gateway_version: str
    agents: list[Agent]


class Drained(BaseModel):
    """Those that were told."""

    agents: list[str]
    hosts: list[str]


_REFUSALS: dict[int | str, dict[str, object]] = {
    401: {"description": "No valid credentials.", "model": ErrorBody},
    403: {"description": "Not an admin.", "model": ErrorBody},
}
_MISSING: dict[int | str, dict[str, object]] = {
    400: {"description": "The name is too long for one.", "model": ErrorBody},
    404: {"description": "No such agent.", "model": ErrorBody},
}


def agents_router(context: ApiContext) -> APIRouter:
    """Routes for admins."""
    router = APIRouter(tags=["Agents"], prefix=PREFIX)
    caller_dependency = caller_of(context)
    name_path = Path(description="Id of an agent, or name of its host (all agents there).", max_length=255)

    @router.get("/agents", summary="All agents, with their room and what they have.", responses=_REFUSALS)
    async def list_agents(caller: Annotated[Caller, Depends(caller_dependency)]) -> AgentList:
        found = await context.agents.everyone(caller)
        return AgentList(gateway_version=__version__, agents=[Agent.of(known) for known in found])

    @router.post(
        "/agents/{name}:drain",
        summary="Give an agent no new attempts; what it has goes on.",
        responses={**_REFUSALS, **_MISSING},
    )
    async def drain_agent(
        name: Annotated[str, name_path], caller: Annotated[Caller, Depends(caller_dependency)]
    ) -> Drained:
        return _drained(await context.agents.drain(caller, name, True))

    @router.post("/agents/{name}:undrain", summary="Give it new attempts again.", responses={**_REFUSALS, **_MISSING})
    async def undrain_agent(
        name: Annotated[str, name_path], caller: Annotated[Caller, Depends(caller_dependency)]
    ) -> Drained:
        return _drained(await context.agents.drain(caller, name, False))

    return router


def _drained(found: list[tuple[str, str]]) -> Drained:
    return Drained(agents=[agent for agent, _ in found], hosts=[host for _, host in found])
