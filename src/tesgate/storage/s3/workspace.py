"""The workspace as objects below one prefix: written as it comes by any replica, read whole by all of them.

Objects cannot be appended to, so a log is written as pieces, ``<step>.<stream>.d/<start>-<end>`` with both offsets in
the name, and what is small is written again together with what follows it. What bytes a name stands for never changes:
whichever replica writes late, or twice, or dies in between, the pieces that are there agree, and the longest way
through them from the beginning is the log. A piece is removed only when one that covers it is there. A log that has
rested is put together under its own name, ``<step>.<stream>``, as on disk (`tesgate.storage.s3.settling`); it counts as
a piece from 0 on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field

import anyio

from tesgate.model.ids import is_task_id
from tesgate.storage.s3.pieces import piece_key, way_through
from tesgate.storage.s3.prefix import Prefix, translated, within_span
from tesgate.storage.s3.reading import LogReader, PieceRange
from tesgate.storage.s3.settling import REST, Settling
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location
from tesgate.storage.workspace import LogRange, OffsetGap, Stream, log_name, no_log

__all__ = ["ObjectWorkspace"]

SMALL = 64 << 10
"""A last piece with fewer bytes is written again with what follows: a log that drips does not become many objects."""
KNOWN = 512
"""Logs whose end is remembered: at most so many times `SMALL` bytes."""
TRUSTED = 60.0
"""Seconds for which the end of a log is taken as remembered: others may write, or remove."""


@dataclass
class _End:
    """What is known of the end of one log."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    seen_at: float = float("-inf")
    size: int = 0
    start: int = 0
    """Of the last piece, where that is small."""
    tail: bytes | None = None
    """Its bytes."""


class ObjectWorkspace:
    """All replicas' logs, in one bucket. At most `KNOWN` small pieces are held, besides what is being written."""

    def __init__(self, *, store: ObjectStore, place: Location, max_bytes: int = 1 << 30, rest: float = REST) -> None:
        self._objects = Prefix(store=store, at=place)
        self._reader = LogReader(self._objects)
        self._settling = Settling(objects=self._objects, reader=self._reader, rest=rest)
        self._logs = place.prefix + "logs/"
        self._max_bytes = max_bytes
        self._ends: OrderedDict[str, _End] = OrderedDict()

    async def claim(self, deployment: str) -> str:
        """See `Prefix.claim`."""
        return await self._objects.claim(deployment)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._objects.close()

    # what runners write

    async def write_at(self, task: str, attempt: int, step: int, stream: Stream, offset: int, data: bytes) -> int:
        """See `Workspace`."""
        name = self._logs + log_name(task, attempt, step, stream)
        self._settling.written(task)
        end = self._ends.setdefault(name, _End())
        self._ends.move_to_end(name)
        with within_span():
            async with end.lock, translated():
                size = await self._write(name, end, offset, data)
        while len(self._ends) > KNOWN and not next(iter(self._ends.values())).lock.locked():
            self._ends.popitem(last=False)
        return size

    async def _write(self, name: str, end: _End, offset: int, data: bytes) -> int:
        fresh = time.monotonic() - end.seen_at < TRUSTED
        if not fresh or offset > end.size:
            await self._look(name, end)
        if offset < 0 or offset > end.size:
            if offset >= self._max_bytes:
                return end.size
            raise OffsetGap(end.size)
        # What is there already is the same: a runner repeats itself, and nothing else.
        new = memoryview(data)[end.size - offset : max(0, self._max_bytes - offset)]
        if not len(new):
            return end.size
        start, before = (end.size, b"") if end.tail is None else (end.start, end.tail)
        body = b"".join((before, new))
        await self._objects.put(piece_key(name, start, start + len(body)), body)
        if before:
            await self._objects.remove([piece_key(name, start, end.size)])
        end.size, end.start = start + len(body), start
        end.tail = body if len(body) < SMALL else None
        return end.size

    async def _look(self, name: str, end: _End) -> None:
        """Read the end anew: another replica may have written to it, or it may have been removed."""
        way = way_through(await self._reader.pieces(name))
        end.size, end.tail = (way[-1].end if way else 0), None
        if way and way[-1].key != name and way[-1].end - way[-1].start < SMALL:
            end.start, end.tail = way[-1].start, await self._objects.get(way[-1].key)
        end.seen_at = time.monotonic()

    # what clients read

    async def open_range(
        self, task: str, attempt: int, step: int, stream: Stream, start: int = 0, stop: int | None = None
    ) -> LogRange:
        """See `Workspace`."""
        name = self._logs + log_name(task, attempt, step, stream)
        with within_span():
            async with translated():
                pieces = await self._reader.pieces(name)
        if not pieces:
            raise no_log(attempt, step, stream)
        size = way[-1].end if (way := way_through(pieces)) else 0
        first, last, _ = slice(start, stop).indices(size)
        return PieceRange(self._reader, name, size, first, max(0, last - first), way)

    # retention

    async def tasks(self, *, after: str, limit: int) -> list[str]:
        """See `Workspace`."""
        return await self._objects.directories(self._logs, after=after, limit=limit)

    async def remove(self, task: str) -> None:
        """See `Workspace`."""
        if not is_task_id(task):
            return
        below = f"{self._logs}{task}/"
        for name in [name for name in self._ends if name.startswith(below)]:
            if not self._ends[name].lock.locked():
                del self._ends[name]
        async with translated():
            while keys := [str(item["Key"]) async for item in self._objects.listing(below, pages=1)]:
                await self._objects.remove(keys, strict=True)
                # Stores that keep objects in directories (SeaweedFS) list empty ones for minutes.
                parts = [key[len(below) :].split("/")[:-1] for key in keys]
                made = {
                    below + "".join(part + "/" for part in some[:at]) for some in parts for at in range(len(some) + 1)
                }
                for directory in sorted(made, key=len, reverse=True):
                    await self._objects.remove([directory])

    async def settle(self, task: str) -> None:
        """See `Workspace`. For one replica at a time; what it does not get to, it does the next time."""
        if is_task_id(task):
            async with translated():
                await self._settling.settle(task, f"{self._logs}{task}/")
