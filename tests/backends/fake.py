"""A scripted backend that keeps things until they are released, as a cluster does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio

from tesgate.backends.base import AttemptRef, Handle, Launch, Listed, Lost, Observation, Running

__all__ = ["FakeBackend", "Thing"]


@dataclass
class Thing:
    """What the backend has of one attempt."""

    task_id: str
    number: int
    handle: Handle
    made: int = 1
    """How often it was really created."""
    cancelled: bool = False


class FakeBackend:
    """`Backend` in memory. It outlives the loops that use it, and any number of them may use it."""

    name = "fake"
    keeps = True

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}
        self.calls: list[tuple[str, str, int]] = []
        self.faults: dict[str, list[BaseException]] = defaultdict(list)
        """By method: raised one by one by the next calls."""
        self.always: dict[str, Exception] = {}
        """By method: raised by every call."""
        self.late_faults: dict[str, list[BaseException]] = defaultdict(list)
        """The same, after the call has done its work (an answer that is lost)."""
        self.dies_when_cancelled = True
        self.news = anyio.Event()
        self._gone: list[Lost] = []

    def count(self, method: str, task_id: str | None = None) -> int:
        """How often a method was called."""
        return sum(call[0] == method and task_id in (None, call[1]) for call in self.calls)

    def lose(self, task_id: str) -> None:
        """The attempt disappears, and every watch says so once."""
        for name, thing in list(self.things.items()):
            if thing.task_id == task_id:
                del self.things[name]
                self._say(Lost(task_id, thing.number, "it was preempted"))

    def check(self, document: Mapping[str, Any]) -> list[str]:
        return [f"unknown: {name}" for name in document.get("resources", {}).get("backend_parameters", {})]

    async def launch(self, launch: Launch) -> Handle | None:
        ref = launch.ref
        await self._begin("launch", ref)
        thing = self.things.setdefault(ref.external_name, Thing(ref.task_id, ref.number, {"of": ref.external_name}, 0))
        thing.made += thing.made == 0
        self._end("launch")
        return thing.handle

    async def inspect(self, ref: AttemptRef) -> Observation:
        await self._begin("inspect", ref)
        if ref.external_name in self.things:
            return Running(ref.task_id, ref.number)
        return Lost(ref.task_id, ref.number, "it is not there")

    async def watch(self) -> AsyncIterator[Observation]:
        if self.faults["watch"]:
            raise self.faults["watch"].pop(0)
        seen = len(self._gone)
        for thing in list(self.things.values()):
            yield Running(thing.task_id, thing.number)
        yield Listed()
        while True:
            news = self.news
            for lost in self._gone[seen:]:
                yield lost
            seen = len(self._gone)
            await news.wait()

    async def cancel(self, ref: AttemptRef, grace: timedelta) -> None:
        del grace
        await self._begin("cancel", ref)
        thing = self.things.get(ref.external_name)
        if thing is not None:
            thing.cancelled = True
            if self.dies_when_cancelled:
                self.lose(ref.task_id)
        self._end("cancel")

    async def release(self, ref: AttemptRef) -> None:
        await self._begin("release", ref)
        self.things.pop(ref.external_name, None)
        self._end("release")

    async def _begin(self, method: str, ref: AttemptRef) -> None:
        self.calls.append((method, ref.task_id, ref.number))
        await anyio.lowlevel.checkpoint()
        if method in self.always:
            raise self.always[method]
        if self.faults[method]:
            raise self.faults[method].pop(0)

    def _end(self, method: str) -> None:
        if self.late_faults[method]:
            raise self.late_faults[method].pop(0)

    def _say(self, lost: Lost) -> None:
        self._gone.append(lost)
        news, self.news = self.news, anyio.Event()
        news.set()
