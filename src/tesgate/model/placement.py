"""Which waiting task goes to which agent: pure, from facts alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tesgate.model.room import AgentRoom, Candidate, Need
from tesgate.model.roots import KnownRoot
from tesgate.model.waiting import Able, Reasons

__all__ = ["AgentRoom", "Candidate", "Need", "Pick", "Placement", "Reservation", "place"]


@dataclass(frozen=True)
class Pick:
    """A decision: this task, as of this version of its row, goes to this agent."""

    task_id: str
    version: int
    agent_id: str


@dataclass(frozen=True)
class Reservation:
    """An agent is kept free for a task that has waited for long: nobody passes it there because he is smaller."""

    agent_id: str
    need: Need
    """What the task needs in all."""
    floor: Need
    """What the agent had too little of. Who needs as much of that does not pass by being small: it is his turn."""

    def keeps_out(self, need: Need, agent: AgentRoom) -> bool:
        """Whether a task of this need would pass; one that takes nothing from the reserved task never does."""
        if agent.has_room_beside(need, self.need):
            return False
        return (
            need.cpu_milli < self.floor.cpu_milli
            or need.ram_bytes < self.floor.ram_bytes
            or need.disk_bytes < self.floor.disk_bytes
            or need.gpus < self.floor.gpus
        )


@dataclass
class Placement:
    """One round's decisions, and why the others wait."""

    picks: list[Pick] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Tasks that can never run here: version and sentence."""
    reserved: dict[str, Reservation] = field(default_factory=dict)
    """By task; the next rounds are given them again."""


def place(
    candidates: Sequence[Candidate],
    agents: Sequence[AgentRoom],
    *,
    reserve_after: float,
    known_roots: Sequence[tuple[str, bool]] = (),
    mount_roots: Sequence[KnownRoot] = (),
    hint: str = "",
    refused_runtimes: Collection[str] = (),
    reserved: Mapping[str, Reservation] = MappingProxyType({}),
    pools: Sequence[str] | None = None,
    open_pools: Collection[str] | None = None,
) -> Placement:
    """Give tasks to agents, in the order of `candidates`, each to the agent that it fits best.

    A task that finds no room keeps its place, and smaller ones behind it may pass; once it has waited for
    `reserve_after` seconds an agent is kept free for it, so that big tasks do not starve. That goes before all turns,
    so the order of `candidates` does not matter to it; `reserved` is what earlier rounds kept free, perhaps for tasks
    that are none of these candidates.
    `pools` are those that are filled, in the order of preference: of the agents on which a task fits now it gets one
    of the first pool, so that one that is full or has no agent is passed over. None: the agents' pools, all alike.
    `open_pools` are those of them that a task may use whose row says nothing of pools (None: all).
    `known_roots` are the file roots of the gateway's own configuration: a path outside of all of them and of all
    open agents' roots is refused, inside of them the task waits for an agent that has the root.
    `mount_roots`: all roots of the configuration, where one of them is mounted.
    `hint` says why this host has no agent, where that is known. `refused_runtimes` may not be used here (bubblewrap,
    where there can be more than one caller). `agents` is changed: what is given away is taken from
    it.
    """
    result = Placement()
    if pools is not None:
        strange = sorted({agent.pool for agent in agents} - set(pools))
        agents = [agent for agent in agents if agent.pool in pools]
        if strange and not agents:
            hint = f"those that are belong to pools that the gateway's `pools` do not list ({', '.join(strange)})"
    rank = {pool: index for index, pool in enumerate(pools or ())}
    usable = [agent for agent in agents if not agent.draining]
    finder = Reasons(
        agents,
        pools=pools,
        open_pools=open_pools,
        hint=hint,
        refused_runtimes=refused_runtimes,
        mount_roots=mount_roots,
    )
    answers: dict[object, Able] = {}
    # What found no room finds none later in this round: rooms only fill.
    full: set[object] = set()
    for candidate in candidates:
        kind = _kind(candidate)
        if kind not in answers:
            answers[kind] = finder.able(candidate)

    kept = _Kept(usable, reserved)
    for candidate in sorted(candidates, key=lambda candidate: (-candidate.age, candidate.task_id)):
        if candidate.age < reserve_after:
            break
        able = answers[_kind(candidate)].agents
        if able is not None and not any(kept.open_to(candidate, agent) for agent in able):
            kept.reserve(candidate, able)
    for candidate in candidates:
        kind = _kind(candidate)
        able, reason = answers[kind].agents, answers[kind].reason
        if able is None:
            refusal = _refusal(candidate, agents, known_roots)
            if refusal is not None:
                result.refused[candidate.task_id] = (candidate.version, refusal)
            else:
                result.reasons[candidate.task_id] = reason
            kept.free(candidate.task_id)
            continue
        fitting = [] if kind in full else [agent for agent in able if kept.open_to(candidate, agent)]
        if fitting:
            best = _best(fitting, candidate.need, rank)
            best.take(candidate.need)
            result.picks.append(Pick(candidate.task_id, candidate.version, best.agent_id))
            if kept.free(candidate.task_id):
                full.clear()
            continue
        full.add(kind)
        result.reasons[candidate.task_id] = reason
        if candidate.age >= reserve_after:
            kept.reserve(candidate, able)
    result.reserved = kept.by_task
    return result


class _Kept:
    """What is kept free in a round: at most one task's reservation on an agent."""

    def __init__(self, usable: Sequence[AgentRoom], before: Mapping[str, Reservation]) -> None:
        ids = {agent.agent_id for agent in usable}
        self.by_task = {task_id: one for task_id, one in before.items() if one.agent_id in ids}
        self._by_agent = {one.agent_id: (task_id, one) for task_id, one in self.by_task.items()}

    def open_to(self, candidate: Candidate, agent: AgentRoom) -> bool:
        """Whether it may go there now."""
        if not agent.has_room(candidate.need):
            return False
        task_id, one = self._by_agent.get(agent.agent_id, (candidate.task_id, None))
        return one is None or task_id == candidate.task_id or not one.keeps_out(candidate.need, agent)

    def reserve(self, candidate: Candidate, able: Sequence[AgentRoom]) -> None:
        """Keep the emptiest for it, if any is nobody's, unless one is kept for it already."""
        kept = self.by_task.get(candidate.task_id)
        if kept is not None and any(agent.agent_id == kept.agent_id for agent in able):
            return
        self.free(candidate.task_id)  # that agent has become too small for it
        free = [agent for agent in able if agent.agent_id not in self._by_agent]
        if free:
            best = max(free, key=lambda agent: (agent.left_after(candidate.need), agent.agent_id))
            one = Reservation(best.agent_id, candidate.need, best.short_of(candidate.need))
            self.by_task[candidate.task_id] = one
            self._by_agent[best.agent_id] = (candidate.task_id, one)

    def free(self, task_id: str) -> bool:
        """It needs none any more; whether it had one."""
        one = self.by_task.pop(task_id, None)
        if one is not None:
            del self._by_agent[one.agent_id]
        return one is not None


def _kind(candidate: Candidate) -> tuple[object, ...]:
    """Candidates of one kind fit the same agents."""
    return candidate.need, candidate.paths, candidate.wish, candidate.pools


def _best(fitting: Sequence[AgentRoom], need: Need, rank: Mapping[str, int]) -> AgentRoom:
    """Of the first pool the tightest; who needs no GPU leaves those agents to others where he can."""
    return min(
        fitting,
        key=lambda agent: (
            rank.get(agent.pool, 0),
            agent.capacity.gpus > 0 and not need.gpus,
            agent.left_after(need),
            agent.agent_id,
        ),
    )


def _refusal(candidate: Candidate, agents: Sequence[AgentRoom], known_roots: Sequence[tuple[str, bool]]) -> str | None:
    """Why it can never run: a path that nobody's roots hold. Size is no such reason: a larger agent may come."""
    for path, write in candidate.paths:
        everything = [*known_roots, *(root for agent in agents for root in agent.roots)]
        holding = [root for root in everything if path == root[0] or path.startswith(root[0].rstrip("/") + "/")]
        if not holding:
            roots = ", ".join(sorted({root for root, _ in everything})) or "none is configured"
            return (
                f"{path} is in none of the file roots ({roots}): start the gateway with --file-root for a directory "
                "that holds it, or use another URL"
            )
        if write and not any(writable for _, writable in holding):
            return f"{path} is in a read-only file root: give an output URL in a writable one"
    return None
