"""Who asks: the only thing about authentication that the store and the services know."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ANONYMOUS", "SYSTEM", "Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A person or program after authentication."""

    subject: str
    """Owner of the tasks that it makes; unique in the deployment."""
    groups: tuple[str, ...] = ()
    admin: bool = False
    """Sees and cancels everybody's tasks."""


SYSTEM = Caller("system", (), True)
"""The gateway's own loops."""

ANONYMOUS = Caller("anonymous", (), False)
"""Everybody, while authentication is off."""
