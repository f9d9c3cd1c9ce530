"""Which waiting task goes to which agent: pure, from facts alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from tesgate.model.roots import KnownRoot, root_of

__all__ = ["AgentRoom", "Candidate", "Need", "Pick", "Placement", "Reservation", "place"]


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
    last: bool = False
    """Behind it nothing of its owner waits."""


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
    mounted: tuple[tuple[str, bool], ...] = ()
    """Those of `roots` whose mode is ``mount``."""

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

    def has_any_room(self) -> bool:
        """Whether there is something left of what every task needs."""
        return (
            not self.draining
            and self.used.cpu_milli < self.capacity.cpu_milli
            and self.used.ram_bytes < self.capacity.ram_bytes
        )

    def short_of(self, need: Need) -> Need:
        """The parts of `need` for which there is too little now; nought for the others."""
        return Need(
            need.cpu_milli if self.used.cpu_milli + need.cpu_milli > self.capacity.cpu_milli else 0,
            need.ram_bytes if self.used.ram_bytes + need.ram_bytes > self.capacity.ram_bytes else 0,
            need.disk_bytes if self.used.disk_bytes + need.disk_bytes > self.capacity.disk_bytes else 0,
        )

    def take(self, need: Need) -> None:
        """Count `need` as taken."""
        self.used = Need(
            self.used.cpu_milli + need.cpu_milli,
            self.used.ram_bytes + need.ram_bytes,
            self.used.disk_bytes + need.disk_bytes,
        )

    def missing_root(self, paths: Sequence[tuple[str, bool]], known: Sequence[KnownRoot] = ()) -> str | None:
        """The first path that lies in none of the agent's roots (or in none that is writable, where it must be).

        What lies in one of the `known` roots that is mounted needs the same root, mounted as it is there.
        """
        for path, write in paths:
            root = root_of(path, known)
            if root is not None and root.mounted:
                if not any(have == root.path and (writable or not root.writable) for have, writable in self.mounted):
                    return path
                continue
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


@dataclass(frozen=True)
class Reservation:
    """An agent is kept free for a task that has waited for long: nobody passes it there because he is smaller."""

    agent_id: str
    floor: Need
    """What the agent had too little of. Who needs as much of that does not pass by being small: it is his turn."""

    def keeps_out(self, need: Need) -> bool:
        """Whether a task of this need would pass."""
        return (
            need.cpu_milli < self.floor.cpu_milli
            or need.ram_bytes < self.floor.ram_bytes
            or need.disk_bytes < self.floor.disk_bytes
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
) -> Placement:
    """Give tasks to agents, in the order of `candidates`, each to the agent that it fits best.

    A task that finds no room keeps its place, and smaller ones behind it may pass; once it has waited for
    `reserve_after` seconds an agent is kept free for it, so that big tasks do not starve. That goes before all turns,
    so the order of `candidates` does not matter to it; `reserved` is what earlier rounds kept free, perhaps for tasks
    that are none of these candidates.
    `known_roots` are the file roots of the gateway's own configuration: a path outside of all of them and of all
    open agents' roots is refused, inside of them the task waits for an agent that has the root.
    `mount_roots`: all roots of the configuration, where one of them is mounted.
    `hint` says why this host has no agent, where that is known. `refused_runtimes` may not be used here (bubblewrap,
    where there can be more than one caller). `agents` is changed: what is given away is taken from
    it.
    """
    result = Placement()
    usable = [agent for agent in agents if not agent.draining]
    working = [agent for agent in usable if set(agent.runtimes) - set(refused_runtimes)]
    if agents and not usable:
        hint = "those that are take no new tasks for now (they drain, or their disks are full; their logs say which)"
    answers: dict[tuple[Need, tuple[tuple[str, bool], ...]], tuple[list[AgentRoom] | None, str]] = {}
    # What found no room finds none later in this round: rooms only fill.
    full: set[tuple[Need, tuple[tuple[str, bool], ...]]] = set()
    for candidate in candidates:
        kind = (candidate.need, candidate.paths)
        if kind not in answers:
            answers[kind] = _able(candidate, usable, working, hint, mount_roots)

    kept = _Kept(usable, reserved)
    for candidate in sorted(candidates, key=lambda candidate: (-candidate.age, candidate.task_id)):
        able, _ = answers[candidate.need, candidate.paths]
        if candidate.age < reserve_after:
            break
        if able is not None and not any(kept.open_to(candidate, agent) for agent in able):
            kept.reserve(candidate, able)
    for candidate in candidates:
        kind = (candidate.need, candidate.paths)
        able, reason = answers[kind]
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
            best = min(fitting, key=lambda agent: (agent.left_after(candidate.need), agent.agent_id))
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
        return one is None or task_id == candidate.task_id or not one.keeps_out(candidate.need)

    def reserve(self, candidate: Candidate, able: Sequence[AgentRoom]) -> None:
        """Keep the emptiest for it, if any is nobody's, unless one is kept for it already."""
        if candidate.task_id in self.by_task:
            return
        free = [agent for agent in able if agent.agent_id not in self._by_agent]
        if free:
            best = max(free, key=lambda agent: (agent.left_after(candidate.need), agent.agent_id))
            one = Reservation(best.agent_id, best.short_of(candidate.need))
            self.by_task[candidate.task_id] = one
            self._by_agent[best.agent_id] = (candidate.task_id, one)

    def free(self, task_id: str) -> bool:
        """It needs none any more; whether it had one."""
        one = self.by_task.pop(task_id, None)
        if one is not None:
            del self._by_agent[one.agent_id]
        return one is not None


def _able(
    candidate: Candidate,
    agents: Sequence[AgentRoom],
    working: Sequence[AgentRoom],
    hint: str,
    mount_roots: Sequence[KnownRoot],
) -> tuple[list[AgentRoom] | None, str]:
    """The agents that could carry it out when empty, and the reason to wait that goes with the answer."""
    if not agents:
        return None, "waiting: no agent is connected; " + (hint or "start one with `tesgate agent`, or look at its log")
    if not working:
        return None, "waiting: no connected agent has a container engine that may be used here; see the agents' logs"
    large = [agent for agent in working if agent.has(candidate.need)]
    if not large:
        return None, "waiting: no connected agent is large enough for " + _amount(candidate.need)
    able = [agent for agent in large if agent.missing_root(candidate.paths, mount_roots) is None]
    if not able:
        path = large[0].missing_root(candidate.paths, mount_roots)
        root = root_of(path or "", mount_roots)
        how = " and is mounted (`--root NAME=PATH:mount`)" if root is not None and root.mounted else ""
        return None, f"waiting: no connected agent has a file root that holds {path}{how}"
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
