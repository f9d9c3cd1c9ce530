"""What tasks need and what agents have: amounts, and whether one fits into the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tesgate.model.roots import KnownRoot, lies_in, root_of
from tesgate.model.wishes import NOTHING, Wish

__all__ = ["AgentRoom", "Candidate", "Need"]


@dataclass(frozen=True)
class Need:
    """An amount of room."""

    cpu_milli: int
    ram_bytes: int
    disk_bytes: int
    gpus: int = 0


@dataclass(frozen=True)
class Candidate:
    """A waiting task: what it needs, and for how long it has been waiting (seconds)."""

    task_id: str
    version: int
    need: Need
    paths: tuple[tuple[str, bool], ...] = ()
    """Local paths that it stages from (False) or to (True)."""
    wish: Wish = NOTHING
    pools: tuple[str, ...] | None = None
    """Where its owner may have it run; None: in every pool that is everybody's."""
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
    pool: str = "default"
    zones: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    mounted: tuple[tuple[str, bool], ...] = ()
    """Those of `roots` whose mode is ``mount``."""

    def has(self, need: Need) -> bool:
        """Whether the agent could hold it if it were empty."""
        return (
            need.cpu_milli <= self.capacity.cpu_milli
            and need.ram_bytes <= self.capacity.ram_bytes
            and need.disk_bytes <= self.capacity.disk_bytes
            and need.gpus <= self.capacity.gpus
        )

    def has_room(self, need: Need) -> bool:
        """Whether it fits now; of what it needs nothing there may be less than is taken (a device has failed)."""
        return (
            (not need.cpu_milli or self.used.cpu_milli + need.cpu_milli <= self.capacity.cpu_milli)
            and (not need.ram_bytes or self.used.ram_bytes + need.ram_bytes <= self.capacity.ram_bytes)
            and (not need.disk_bytes or self.used.disk_bytes + need.disk_bytes <= self.capacity.disk_bytes)
            and (not need.gpus or self.used.gpus + need.gpus <= self.capacity.gpus)
        )

    def has_room_beside(self, need: Need, reserved: Need) -> bool:
        """Whether, with `need` given now, there would be enough left for `reserved` of all that `need` takes from."""
        both = (
            (need.cpu_milli, reserved.cpu_milli, self.used.cpu_milli, self.capacity.cpu_milli),
            (need.ram_bytes, reserved.ram_bytes, self.used.ram_bytes, self.capacity.ram_bytes),
            (need.disk_bytes, reserved.disk_bytes, self.used.disk_bytes, self.capacity.disk_bytes),
            (need.gpus, reserved.gpus, self.used.gpus, self.capacity.gpus),
        )
        return all(not mine or not other or used + mine + other <= have for mine, other, used, have in both)

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
            need.gpus if self.used.gpus + need.gpus > self.capacity.gpus else 0,
        )

    def take(self, need: Need) -> None:
        """Count `need` as taken."""
        self.used = Need(
            self.used.cpu_milli + need.cpu_milli,
            self.used.ram_bytes + need.ram_bytes,
            self.used.disk_bytes + need.disk_bytes,
            self.used.gpus + need.gpus,
        )

    def is_in(self, zones: Sequence[str]) -> bool:
        """Whether it is in one of them; none asks for nothing."""
        return not zones or not set(zones).isdisjoint(self.zones)

    def missing_label(self, labels: Sequence[tuple[str, str]]) -> str | None:
        """The first label that it does not have."""
        return next((f"{name}={value}" for name, value in labels if self.labels.get(name) != value), None)

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
            if not any((writable or not write) and lies_in(path, place) for place, writable in self.roots):
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
                (self.capacity.gpus, self.used.gpus, need.gpus),
            )
            if have > 0
        ]
        return min(shares, default=0.0)
