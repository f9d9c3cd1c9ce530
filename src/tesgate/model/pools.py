"""Which pools of agents there are, in which order they are filled, and who may use them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tesgate.errors import BadRequest, Forbidden
from tesgate.model.caller import Caller

__all__ = ["PoolRule", "allowed_pools", "check_pool", "known_pools"]


@dataclass(frozen=True, slots=True)
class PoolRule:
    """A pool that the configuration names."""

    name: str
    callers: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    """With neither of the two it is everybody's."""

    @property
    def is_open(self) -> bool:
        """Whether everybody may use it."""
        return not self.callers and not self.groups

    def admits(self, caller: Caller) -> bool:
        """Whether the tasks of `caller` may go there."""
        return (
            self.is_open or caller.admin or caller.subject in self.callers or not self.groups.isdisjoint(caller.groups)
        )


def allowed_pools(rules: Sequence[PoolRule], caller: Caller) -> tuple[str, ...] | None:
    """The pools of a caller's tasks; None: whatever pools there are. Raises `Forbidden` where there is none for him."""
    if not rules:
        return None
    names = tuple(rule.name for rule in rules if rule.admits(caller))
    if not names:
        raise Forbidden("No pool of agents is open to you here; ask those who run this service for access to one.")
    return names


def check_pool(wanted: str | None, allowed: Sequence[str] | None) -> None:
    """Raise `BadRequest` for a wish that is not among the allowed ones."""
    if wanted is not None and allowed is not None and wanted not in allowed:
        raise BadRequest(
            f"resources.backend_parameters.pool: {wanted!r} is no pool that you may use (pools: {', '.join(allowed)}); "
            "name one of these, or leave it away"
        )


def known_pools(rules: Sequence[PoolRule], own: str, connected: Iterable[str]) -> tuple[str, ...]:
    """All pools in the order in which they are filled: as configured, else the gateway's own, then those of agents."""
    if rules:
        return tuple(rule.name for rule in rules)
    return (own, *sorted(set(connected) - {own}))
