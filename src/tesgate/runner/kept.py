"""Ended attempts that stay for people who look for a mistake, for a time and in a number that are bounded.

Nothing of them takes part in anything any more: the directory has left ``attempts/``, its containers go by another name
that no search for ours finds, and the plan with its token is gone.
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import anyio
import anyio.to_thread

from .plan import Keep, Plan
from .removal import remove_tree
from .runtime.base import Runtime, RuntimeFault
from .scratch import Scratch

__all__ = ["Kept"]

_log = logging.getLogger("tesgate.agent")
LOOK_EVERY = 30.0
_PREFIX = "kept-"


class Kept:
    """What is kept below ``kept/`` in one scratch directory."""

    def __init__(self, scratch: Scratch, runtime: Runtime, clock: Callable[[], float] = time.time) -> None:
        self._scratch, self._runtime, self._clock = scratch, runtime, clock
        self._directory = os.path.join(scratch.root, "kept")
        self._sweeping = anyio.Lock()

    async def keep(self, plan: Plan) -> bool:
        """Set an ended attempt aside, containers first; False where that cannot be: then it is to be removed.

        Then containers may have either name (`containers`). Idempotent, whatever died in between.
        """
        try:
            for index in range(len(plan.executors)):
                await self._runtime.keep("%s-%d" % (plan.external_name, index))
            await anyio.to_thread.run_sync(self._move, plan)
        except (RuntimeFault, OSError) as exc:
            _log.warning("attempt %s cannot be kept: %s", plan.external_name, exc)
            return False
        await self.sweep(plan.keep.most)
        return True

    @staticmethod
    def containers(plan: Plan) -> List[str]:
        """Return the names that the containers of a kept attempt have."""
        return [_PREFIX + "%s-%d" % (plan.external_name, index) for index in range(len(plan.executors))]

    async def run(self) -> None:
        """Remove what is past its time, for ever; first, containers whose directory somebody removed."""
        looked = False
        while True:
            looked = looked or await self._orphans_removed()
            await self.sweep()
            await anyio.sleep(LOOK_EVERY)

    async def _orphans_removed(self) -> bool:
        """Remove containers of which there is no directory any more; False: ask again.

        An attempt that is being kept, or was when its agent died, may still have its directory among the others: these
        are read first, as a directory goes from there to what is kept.
        """
        try:
            found = await self._runtime.names(_PREFIX)
            living = self._scratch.names()
            listed = await anyio.to_thread.run_sync(self._listed)
            known = {word for _, about in listed for word in about.get("containers") or []}
            for name in found:
                if name not in known and name[len(_PREFIX) :].rpartition("-")[0] not in living:
                    _log.warning("removing the kept container %s: nothing else is kept of it", name)
                    await self._runtime.remove(name)
        except (RuntimeFault, OSError) as exc:
            _log.info("kept containers cannot be looked for now: %s", exc)
            return False
        return True

    async def sweep(self, most: Optional[int] = None) -> None:
        """Remove what is past its time, what is more than `most` (the oldest first), and all where room is short."""
        async with self._sweeping:
            found = await anyio.to_thread.run_sync(self._listed)
            short = bool(found) and not self._scratch.has_space()
            now = self._clock()
            extra = 0 if most is None else max(0, len(found) - most)
            for position, (name, about) in enumerate(found):
                until = about.get("until", 0.0)
                # A clock that was set back must not keep it for years.
                if short or position < extra or not now < until <= now + about.get("seconds", 0.0):
                    await self._remove(name, about)

    def _move(self, plan: Plan) -> None:
        source, target = self._scratch.path(plan.external_name), os.path.join(self._directory, plan.external_name)
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if os.path.isdir(source):
            keep: Keep = plan.keep
            about = {
                "at": self._clock(),
                "until": self._clock() + keep.seconds,
                "seconds": keep.seconds,
                "task": plan.task,
                "image": plan.executors[0].image,
                "containers": self.containers(plan),
            }
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(os.path.join(source, "kept.json"), flags, 0o600), "w", encoding="utf-8") as file:
                json.dump(about, file)
            os.rename(source, target)
        try:
            os.unlink(os.path.join(target, "plan.json"))
        except FileNotFoundError:
            return

    def _listed(self) -> List[Tuple[str, Dict[str, Any]]]:
        """Name and description of each, the oldest first."""
        found: List[Tuple[str, Dict[str, Any]]] = []
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        for name in names:
            about: Dict[str, Any] = {}
            try:
                with open(os.path.join(self._directory, name, "kept.json"), encoding="utf-8") as file:
                    about = _read(json.load(file))
            except (OSError, ValueError, TypeError) as exc:
                _log.warning("what is kept of %s is damaged and is removed: %s", name, exc)
            found.append((name, about))
        return sorted(found, key=lambda one: (one[1].get("at", 0.0), one[0]))

    async def _remove(self, name: str, about: Dict[str, Any]) -> None:
        path = os.path.join(self._directory, name)
        try:
            for container in about.get("containers") or []:
                await self._runtime.remove(str(container))
            await self._emptied(path, str(about.get("image") or ""))
            await anyio.to_thread.run_sync(self._scratch.users.release, name)
            _log.info("what was kept of %s is removed", name)
        except (RuntimeFault, OSError) as exc:
            _log.warning("what is kept of %s cannot be removed now: %s", name, exc)

    async def _emptied(self, path: str, image: str) -> None:
        try:
            await anyio.to_thread.run_sync(remove_tree, path)
        except OSError:
            if os.getuid() == 0 or not image:
                raise
            await self._runtime.own(image, [path], os.getuid(), os.getgid())
            await anyio.to_thread.run_sync(remove_tree, path)


def _read(loaded: Any) -> Dict[str, Any]:
    """Take a description as `Kept._move` writes it. Raises ValueError or TypeError for what is none."""
    about = dict(loaded)
    spans = {name: float(about.get(name) or 0.0) for name in ("at", "until", "seconds")}
    return {**about, **spans, "containers": [str(name) for name in about.get("containers") or []]}
