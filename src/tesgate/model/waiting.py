"""Which agents could carry a task out, and the sentence for its owner where none can or all are busy. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from tesgate.model.room import AgentRoom, Candidate, Need
from tesgate.model.roots import KnownRoot, root_of

__all__ = ["Able", "Reasons"]

Test = tuple[Callable[[AgentRoom], bool], Callable[[Sequence[AgentRoom]], str]]
"""What an agent must be, and the sentence if none of those that are so far good is."""


class Able(NamedTuple):
    """The answer for all tasks of one kind."""

    agents: list[AgentRoom] | None
    """Those that could carry it out if they were empty; None: none."""
    reason: str
    """Why it waits, if it does."""


class Reasons:
    """Answers for one round."""

    def __init__(
        self,
        agents: Sequence[AgentRoom],
        *,
        pools: Sequence[str] | None,
        open_pools: Collection[str] | None,
        hint: str,
        refused_runtimes: Collection[str],
        mount_roots: Sequence[KnownRoot] = (),
    ) -> None:
        """See `tesgate.model.placement.place`."""
        self._agents, self._pools, self._open, self._hint = agents, pools, open_pools, hint
        self._usable = [agent for agent in agents if not agent.draining]
        self._refused = frozenset(refused_runtimes)
        self._mount_roots = mount_roots

    def able(self, candidate: Candidate) -> Able:
        """The agents for this kind of task."""
        if not self._usable:
            hint = self._hint or "start one with `tesgate agent`, or look at its log"
            return Able(None, "waiting: no agent is connected; " + (_DRAIN if self._agents else hint))
        good, lack = self._good(candidate, self._usable)
        if lack:
            draining = [agent for agent in self._agents if agent.draining]
            others, _ = self._good(candidate, draining)
            if others:
                lack = (
                    f"every agent that could take it ({_names([agent.host for agent in others])}) takes no new tasks "
                    "for now (told to drain, or its disk is full)"
                )
            return Able(None, f"waiting: {lack}{self._down(candidate)}")
        busy = f"waiting: every agent that is large enough is busy; needs {_amount(candidate.need)}"
        return Able(good, busy + self._down(candidate))

    def _good(self, candidate: Candidate, agents: Sequence[AgentRoom]) -> tuple[list[AgentRoom], str]:
        """Those of `agents` that pass all tests, or what the last ones lack."""
        good = list(agents)
        for passes, sentence in self._tests(candidate):
            left = [agent for agent in good if passes(agent)]
            if not left:
                return [], sentence(good)
            good = left
        return good, ""

    def _tests(self, candidate: Candidate) -> Iterator[Test]:
        wish, need = candidate.wish, candidate.need
        pools = self._allowed(candidate)
        if wish.pool is not None:
            pool = wish.pool
            if self._open is not None and pool not in (pools or ()):
                yield lambda agent: False, lambda agents: f"the pool {pool!r} does not exist here (any more)"
            yield (
                lambda agent: agent.pool == pool,
                lambda agents: f"no agent of the pool {pool!r}, which it asks for, is connected",
            )
        elif pools is not None:
            yield (
                lambda agent: agent.pool in pools,
                lambda agents: f"no agent of the pools that it may use ({_names(pools) or 'none'}) is connected",
            )
        yield (
            lambda agent: not self._refused.issuperset(agent.runtimes),
            lambda agents: "no connected agent has a container engine that may be used here; see the agents' logs",
        )
        if wish.zones:
            yield (
                lambda agent: agent.is_in(wish.zones),
                lambda agents: f"no connected agent is in the zone {_names(wish.zones, ' or ')}",
            )
        for label in wish.labels:
            yield (
                lambda agent, label=label: agent.missing_label([label]) is None,  # type: ignore[misc]
                lambda agents, label=label: (  # type: ignore[misc]
                    f"no connected agent{_there(wish.zones)} has the label {label[0]}={label[1]}"
                    + (" with the others that it asks for" if len(wish.labels) > 1 else "")
                ),
            )
        if need.gpus:
            yield (
                lambda agent: agent.capacity.gpus >= need.gpus,
                lambda agents: f"no connected agent{_there(wish.zones)} has {_gpus(need.gpus)}",
            )
        yield (
            lambda agent: agent.has(need),
            lambda agents: f"no connected agent{_there(wish.zones)} is large enough for {_amount(need)}",
        )
        if candidate.paths:
            yield (
                lambda agent: agent.missing_root(candidate.paths, self._mount_roots) is None,
                lambda agents: self._rootless(agents[0].missing_root(candidate.paths, self._mount_roots) or "it"),
            )

    def _rootless(self, path: str) -> str:
        root = root_of(path, self._mount_roots)
        how = " and is mounted (`--root NAME=PATH:mount`)" if root is not None and root.mounted else ""
        return f"no connected agent has a file root that holds {path}{how}"

    def _allowed(self, candidate: Candidate) -> Sequence[str] | None:
        """Names of the pools that it may use; None: all."""
        if self._pools is None:
            return candidate.pools
        mine = self._open if candidate.pools is None else candidate.pools
        return self._pools if mine is None else [pool for pool in self._pools if pool in mine]

    def _down(self, candidate: Candidate) -> str:
        """The known pools that it could use and that have no agent at all."""
        if self._pools is None or candidate.wish.pool is not None:
            return ""
        living = {agent.pool for agent in self._agents}
        down = [pool for pool in self._allowed(candidate) or () if pool not in living]
        if not down or not living:
            return ""
        return f"; of the pool{'s' if len(down) > 1 else ''} {_names(down)} no agent is connected"


_DRAIN = "those that are take no new tasks for now (they drain, or their disks are full; their logs say which)"


def _there(zones: Sequence[str]) -> str:
    return f" in the zone {_names(zones, ' or ')}" if zones else ""


def _names(names: Sequence[str], between: str = ", ") -> str:
    shown = list(dict.fromkeys(names))
    return between.join(shown[:8]) + (", …" if len(shown) > 8 else "")


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _amount(need: Need) -> str:
    gpus = f"{_gpus(need.gpus)}, " if need.gpus else ""
    return (
        f"{gpus}{need.cpu_milli / 1000:g} CPU cores, {need.ram_bytes / 1e9:g} GB of memory and "
        f"{need.disk_bytes / 1e9:g} GB of disk"
    )
