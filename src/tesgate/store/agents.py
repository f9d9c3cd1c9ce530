"""Agents: their sessions, their silence, and the room that they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tesgate.model.room import AgentRoom, Need
from tesgate.store.database import WITHIN_WRITE, Database, Row
from tesgate.store.gather import Gather, one_of_each
from tesgate.store.queries import load_queries

__all__ = ["AgentRow", "AgentStore", "Known", "NewAgent", "Silence", "Stranded", "room_of"]


@dataclass(frozen=True, slots=True)
class NewAgent:
    """What an agent says of itself."""

    instance: str
    pool: str
    host: str
    program_version: str
    capacity: Need
    runtimes: tuple[str, ...]
    roots: tuple[dict[str, Any], ...]
    labels: dict[str, str]
    zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AgentRow:
    """An open agent."""

    room: AgentRoom
    session: int
    silent_ticks: int
    program_version: str
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class Known:
    """An agent as people are told of it."""

    room: AgentRoom
    is_open: bool
    """False: it was silent for so long that it was declared lost."""
    told_to_drain: bool
    """By an operator; the agent itself drains where its disk is full."""
    program_version: str
    root_names: tuple[str, ...]
    registered_at: datetime
    seen_at: datetime
    unseen_seconds: float
    attempts: tuple[str, ...]
    """``TASK-NUMBER`` of those that are not over."""


@dataclass(frozen=True, slots=True)
class Silence:
    """How long an open agent has been silent, in good ticks."""

    agent_id: str
    session: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Stranded:
    """An open attempt of an agent that was declared lost."""

    task_id: str
    number: int
    version: int
    replica_id: str | None
    epoch: int | None
    agent_id: str
    host: str


@dataclass(frozen=True, slots=True)
class _Poll:
    """What a poll says of its agent, on its way into a gathered statement."""

    agent_id: str
    session: int
    number: int
    draining: bool
    pool: str


def room_of(row: Mapping[str, Any] | Row) -> AgentRoom:
    """What the dispatcher has to know of an agent."""
    return AgentRoom(
        agent_id=row["id"],
        host=row["host"],
        pool=row["pool"],
        capacity=Need(row["cpu_milli"], row["ram_bytes"], row["disk_bytes"], row["gpus"]),
        used=Need(row["used_cpu_milli"], row["used_ram_bytes"], row["used_disk_bytes"], row["used_gpus"]),
        roots=tuple((root["path"], bool(root.get("writable", True))) for root in row["roots"]),
        mounted=tuple(
            (root["path"], bool(root.get("writable", True))) for root in row["roots"] if root.get("mode") == "mount"
        ),
        runtimes=tuple(row["runtimes"]),
        zones=tuple(row["zones"]),
        labels=row["labels"],
        draining=row["draining"] or row["told_to_drain"],
    )


def _known(row: Row) -> Known:
    return Known(
        room=room_of(row),
        is_open=row["state"] == "open",
        told_to_drain=row["told_to_drain"],
        program_version=row["program_version"],
        root_names=tuple(str(root.get("name", "")) for root in row["roots"]),
        registered_at=row["registered_at"],
        seen_at=row["seen_at"],
        unseen_seconds=row["unseen"],
        attempts=tuple(row["attempts"]),
    )


class AgentStore:
    """Statements on ``agent``."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._sql = load_queries("agents")
        self._heard: Gather[_Poll, bool | None] = Gather(self._hear_batch, max_batch=200)

    async def register(self, agent: NewAgent) -> int | None:
        """Protocol row *restart*: the session that is now the newest; None: the instance belongs to another pool."""
        async with self._database.transaction() as connection:
            # The lock comes first, so that the room counted next is the room that is.
            await connection.fetchval(self._sql["lock_agent"], agent.instance)
            session: int | None = await connection.fetchval(
                self._sql["register_agent"],
                agent.instance,
                agent.pool,
                agent.host,
                agent.program_version,
                agent.capacity.cpu_milli,
                agent.capacity.ram_bytes,
                agent.capacity.disk_bytes,
                list(agent.runtimes),
                list(agent.roots),
                agent.labels,
                agent.capacity.gpus,
                list(agent.zones),
            )
            return session

    async def hear(self, agent_id: str, session: int, number: int, *, draining: bool, pool: str) -> bool | None:
        """Protocol row *poll*, gathered: None: not the newest session (410); False: a newer poll of it came before."""
        return await self._heard.call(_Poll(agent_id, session, number, draining, pool))

    async def _hear_batch(self, batch: Sequence[_Poll]) -> list[bool | Exception | None]:
        async def ask(part: list[_Poll]) -> dict[str, bool]:
            rows = await self._database.fetch(
                self._sql["hear_agent"],
                [poll.agent_id for poll in part],
                [poll.session for poll in part],
                [poll.number for poll in part],
                [poll.draining for poll in part],
                [poll.pool for poll in part],
                within=WITHIN_WRITE,
            )
            return {row["id"]: row["newest"] for row in rows}

        # An agent can be there twice by a copy of a poll.
        return await one_of_each(batch, lambda poll: poll.agent_id, ask)

    async def list_open(self) -> list[AgentRow]:
        """All agents that are not lost, with their room."""
        rows = await self._database.fetch(self._sql["open_agents"])
        return [
            AgentRow(
                room=room_of(row),
                session=row["session"],
                silent_ticks=row["silent_ticks"],
                program_version=row["program_version"],
                seen_at=row["seen_at"],
            )
            for row in rows
        ]

    async def list_all(self) -> list[Known]:
        """All agents, for people: lost ones too, until they are forgotten."""
        rows = await self._database.fetch(self._sql["all_agents"])
        return [_known(row) for row in rows]

    async def drain(self, name: str, drain: bool, *, pool: str | None = None) -> list[tuple[str, str]]:
        """Give the agents of this id or host (of `pool`, where given) no new attempts; or, with False, some again.

        Returns id and host of each. It holds until it is taken back, over restarts and silence.
        """
        rows = await self._database.fetch(self._sql["drain_agents"], name, drain, pool)
        return [(row["id"], row["host"]) for row in rows]

    async def known_roots(self) -> list[tuple[str, bool]]:
        """File roots (path, writable) of all agents, also of those that were declared lost."""
        rows = await self._database.fetch(self._sql["agents_roots"])
        return [(row["root"]["path"], bool(row["root"].get("writable", True))) for row in rows]

    async def count_silence(self) -> list[Silence]:
        """One good tick more of silence for every open agent (a poll sets it back)."""
        rows = await self._database.fetch(self._sql["count_silence"])
        return [Silence(row["id"], row["session"], row["silent_ticks"]) for row in rows]

    async def close(self, agent_id: str, session: int, ticks: int) -> bool:
        """Protocol row *lost agent*: closed, if it is still silent and of that session."""
        return await self._database.fetchval(self._sql["close_agent"], agent_id, session, ticks) is not None

    async def stranded(self) -> list[Stranded]:
        """Open attempts of closed agents: each of them is lost, which its owner writes."""
        rows = await self._database.fetch(self._sql["attempts_of_closed_agents"])
        return [Stranded(*row.values()) for row in rows]

    async def forget(self, after: timedelta) -> None:
        """Rows of agents that were lost long ago and hold nothing."""
        await self._database.execute(self._sql["forget_agents"], after)
