"""Which waiting task goes to which agent: pure, from facts alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

__all__ = ["AgentRoom", "Candidate", "Need", "Pick", "Placement", "place"]


@dataclass(frozen=True)
class Need:
    """An amount of room."""

    cpu_milli: int
    ram_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Candidate:
    """A waiting task: what it needs, and for how long it has been waiting (seconds)."""

    task_id: str
    version: int
    need: Need
    paths: tuple[tuple[str, bool], ...] = ()
    """Local paths that it stages from (False) or to (True)."""
    age: float = 0.0
    reason: str | None = None
    """The reason that its row shows now."""
    owner: str = ""


@dataclass
class AgentRoom:
    """An open agent: what it has in all and what of it is taken."""

    agent_id: str
    host: str
    capacity: Need
    used: Need
    roots: tuple[tuple[str, bool], ...] = ()
    """Local roots: path, writable."""
    runtimes: tuple[str, ...] = ("docker",)
    """What it can run executors with; none while its engine is down."""
    draining: bool = False

    def has(self, need: Need) -> bool:
        """Whether the agent could hold it if it were empty."""
        return (
            need.cpu_milli <= self.capacity.cpu_milli
            and need.ram_bytes <= self.capacity.ram_bytes
            and need.disk_bytes <= self.capacity.disk_bytes
        )

    def has_room(self, need: Need) -> bool:
        """Whether it fits now."""
        return (
            self.used.cpu_milli + need.cpu_milli <= self.capacity.cpu_milli
            and self.used.ram_bytes + need.ram_bytes <= self.capacity.ram_bytes
            and self.used.disk_bytes + need.disk_bytes <= self.capacity.disk_bytes
        )

    def take(self, need: Need) -> None:
        """Count `need` as taken."""
        self.used = Need(
            self.used.cpu_milli + need.cpu_milli,
            self.used.ram_bytes + need.ram_bytes,
            self.used.disk_bytes + need.disk_bytes,
        )

    def missing_root(self, paths: Sequence[tuple[str, bool]]) -> str | None:
        """The first path that lies in none of the agent's roots (or in none that is writable, where it must be)."""
        for path, write in paths:
            if not any(
                (writable or not write) and (path == root or path.startswith(root.rstrip("/") + "/"))
                for root, writable in self.roots
            ):
                return path
        return None

    def left_after(self, need: Need) -> float:
        """How much is left of the scarcest thing, as a share: the best fit leaves the least."""
        shares = [
            (have - used - want) / have
            for have, used, want in (
                (self.capacity.cpu_milli, self.used.cpu_milli, need.cpu_milli),
                (self.capacity.ram_bytes, self.used.ram_bytes, need.ram_bytes),
                (self.capacity.disk_bytes, self.used.disk_bytes, need.disk_bytes),
            )
            if have > 0
        ]
        return min(shares, default=0.0)


@dataclass(frozen=True)
class Pick:
    """A decision: this task, as of this version of its row, goes to this agent."""

    task_id: str
    version: int
    agent_id: str


@dataclass
class Placement:
    """One round's decisions, and why the others wait."""

    picks: list[Pick] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Tasks that can never run here: version and sentence."""


def place(
    candidates: Sequence[Candidate],
    agents: Sequence[AgentRoom],
    *,
    reserve_after: float,
    known_roots: Sequence[tuple[str, bool]] = (),
    hint: str = "",
    refused_runtimes: Collection[str] = (),
) -> Placement:
    """Give tasks to agents, in the order of `candidates`, each to the agent that it fits best.

    A task that finds no room keeps its place, and smaller ones behind it may pass; once it has waited for
    `reserve_after` seconds the agent that it needs is kept free for it, so that big tasks do not starve.
    `known_roots` are the file roots of the gateway's own configuration: a path outside of all of them and of all
    open agents' roots is refused, inside of them the task waits for an agent that has the root.
    `hint` says why this host has no agent, where that is known. `refused_runtimes` may not be used here (bubblewrap,
    where there can be more than one caller). `agents` is changed: what is given away is taken from
    it.
    """
    result = Placement()
    usable = [agent for agent in agents if not agent.draining]
    working = [agent for agent in usable if set(agent.runtimes) - set(refused_runtimes)]
    reserved: set[str] = set()
    if agents and not usable:
        hint = "those that are take no new tasks for now (they drain, or their disks are full; their logs say which)"
    answers: dict[tuple[Need, tuple[tuple[str, bool], ...]], tuple[list[AgentRoom] | None, str]] = {}
    # What found no room finds none later in this round: rooms only fill.
    full: set[tuple[Need, tuple[tuple[str, bool], ...]]] = set()
    for candidate in candidates:
        kind = (candidate.need, candidate.paths)
        if kind not in answers:
            answers[kind] = _able(candidate, usable, working, hint)
        able, reason = answers[kind]
        if able is None:
            refusal = _refusal(candidate, agents, known_roots)
            if refusal is not None:
                result.refused[candidate.task_id] = (candidate.version, refusal)
            else:
                result.reasons[candidate.task_id] = reason
            continue
        fitting = (
            []
            if kind in full
            else [agent for agent in able if agent.agent_id not in reserved and agent.has_room(candidate.need)]
        )
        if fitting:
            best = min(fitting, key=lambda agent: (agent.left_after(candidate.need), agent.agent_id))
            best.take(candidate.need)
            result.picks.append(Pick(candidate.task_id, candidate.version, best.agent_id))
            continue
        full.add(kind)
        result.reasons[candidate.task_id] = reason
        if candidate.age >= reserve_after:
            free = [agent for agent in able if agent.agent_id not in reserved]
            if free:
                reserved.add(max(free, key=lambda agent: (agent.left_after(candidate.need), agent.agent_id)).agent_id)
    return result


def _able(
    candidate: Candidate, agents: Sequence[AgentRoom], working: Sequence[AgentRoom], hint: str
) -> tuple[list[AgentRoom] | None, str]:
    """The agents that could carry it out when empty, and the reason to wait that goes with the answer."""
    if not agents:
        return None, "waiting: no agent is connected; " + (hint or "start one with `tesgate agent`, or look at its log")
    if not working:
        return None, "waiting: no connected agent has a container engine that may be used here; see the agents' logs"
    large = [agent for agent in working if agent.has(candidate.need)]
    if not large:
        return None, "waiting: no connected agent is large enough for " + _amount(candidate.need)
    able = [agent for agent in large if agent.missing_root(candidate.paths) is None]
    if not able:
        path = large[0].missing_root(candidate.paths)
        return None, f"waiting: no connected agent has a file root that holds {path}"
    return able, f"waiting: every agent that is large enough is busy; needs {_amount(candidate.need)}"


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


def _amount(need: Need) -> str:
    return (
        f"{need.cpu_milli / 1000:g} CPU cores, {need.ram_bytes / 1e9:g} GB of memory and "
        f"{need.disk_bytes / 1e9:g} GB of disk"
    )
