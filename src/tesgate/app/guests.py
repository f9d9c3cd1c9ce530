"""What clients may take up together, and who goes when there is no room: for connections and for handshakes of TLS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LINGERING", "SILENCE", "Bounds", "Guest", "make_room"]

SILENCE = 1.0
"""A client that has said nothing for so long makes room for others; what one says at once may lie unread yet."""
LINGERING = 64
"""Clients beyond the bound that are let go in good form; more of them at once may see a reset."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What clients may take up."""

    connections: int
    """All together."""
    patience: float
    """How long one may keep us waiting (seconds)."""

    @property
    def handshake(self) -> float:
        """How long the handshake of TLS may take (seconds)."""
        return self.patience / 3


class Guest:
    """What takes up one of the connections."""

    since: float
    """When it last came to be waited for."""

    def is_idle(self) -> bool:
        """Whether it may go where others need room."""
        raise NotImplementedError

    def let_go(self) -> None:
        """Close it."""
        raise NotImplementedError


def make_room(guests: Iterable[object]) -> bool:
    """Let go of the one that has been idle for longest; False where all are busy."""
    idle = [guest for guest in guests if isinstance(guest, Guest) and guest.is_idle()]
    if not idle:
        return False
    longest = min(idle, key=lambda guest: guest.since)
    longest.let_go()
    return True
