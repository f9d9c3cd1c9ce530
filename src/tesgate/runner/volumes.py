"""File roots that are an engine's named volumes: where they really lie, for the agent that reads and writes them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Callable, List

from .report import Root
from .runtime.base import EngineUnavailable, RuntimeFault
from .runtime.engine import Engine, EngineError, in_path

__all__ = ["VolumeError", "known_without_engine", "resolve_volumes"]


class VolumeError(Exception):
    """A volume cannot be used; one sentence that says why and what to do."""


def resolve_volumes(roots: List[Root], socket: str, found: Callable[[str], None]) -> List[Root]:
    """Return the roots with the real directories of those that are volumes. Blocks.

    Raises `VolumeError`, and `EngineUnavailable` (transient) while the engine does not say.
    Where something is mounted at a root's path, as in an agent that itself is a container with that volume, that is it.
    Elsewhere the engine tells where the volume lies, and the agent must have the right to go there.
    """
    if len(known_without_engine(roots)) == len(roots):
        return roots
    engine = Engine(socket, found=found)
    try:
        return [root if not root.volume or os.path.ismount(root.path) else _resolved(engine, root) for root in roots]
    finally:
        engine.close()


def known_without_engine(roots: List[Root]) -> List[Root]:
    """Return those that are no volumes, or are mounted at their paths."""
    return [root for root in roots if not root.volume or os.path.ismount(root.path)]


def _resolved(engine: Engine, root: Root) -> Root:
    try:
        about = engine.request("GET", "/volumes/%s" % in_path(root.volume or "")).json()
    except EngineError as error:
        if error.status >= 500:
            raise EngineUnavailable(
                "The volume %s cannot be looked up now (%s)." % (root.volume, error.message.rstrip("."))
            ) from error
        what = "does not exist" if error.status == 404 else "cannot be looked up (%s)" % error.message.rstrip(".")
        raise VolumeError(
            "The volume %s of the root %s %s; make it with the engine, or correct the setting."
            % (root.volume, root.name, what)
        ) from error
    except RuntimeFault as fault:
        if isinstance(fault, EngineUnavailable):
            raise
        raise VolumeError("The volume %s cannot be looked up: %s" % (root.volume, fault.sentence)) from fault
    place = str(about.get("Mountpoint") or "")
    wanted = os.R_OK | os.X_OK | (os.W_OK if root.writable else 0)
    if not place.startswith("/") or not os.path.isdir(place) or not os.access(place, wanted):
        raise VolumeError(
            "The volume %s lies at %s, where this agent has no access: run the agent as root (or as the user of the "
            "rootless engine), or in a container that has the volume mounted at %s." % (root.volume, place, root.path)
        )
    return replace(root, real=place)
