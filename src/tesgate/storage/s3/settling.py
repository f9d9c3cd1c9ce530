"""Puts logs that have rested together: one object under the log's own name in place of its pieces."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

from tesgate.storage.s3.pieces import Piece, way_through
from tesgate.storage.s3.prefix import TAKEN, UNKNOWN, Prefix
from tesgate.storage.s3.reading import LogReader
from tesgate.storage.s3.store import StoreFault

__all__ = ["REST", "Settling"]

REST = 3600.0
"""Seconds without a write after which a log is put together."""
PART = 8 << 20
"""Bytes of one part; a log that has no more is put in one request."""
SETTLED = 100_000
"""Tasks that are remembered to need no settling."""


class Settling:
    """For one replica at a time; what it does not get to, it does the next time."""

    def __init__(self, *, objects: Prefix, reader: LogReader, rest: float = REST) -> None:
        self._objects = objects
        self._reader = reader
        self._rest = rest
        self._settled: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Until when a task is taken to need no settling, and how long that was. Others may write to it."""

    def written(self, task: str) -> None:
        """A log of this task goes on."""
        self._settled.pop(task, None)

    async def settle(self, task: str, below: str) -> None:
        """Put a task's logs together, the objects below `below`. Raises `StoreFault`, `Unavailable`."""
        until, span = self._settled.get(task, (0.0, REST))
        if time.monotonic() < until:
            return
        names: dict[str, float] = {}
        loose: set[str] = set()
        now = datetime.now(UTC)
        async for item in self._objects.listing(below):
            name, mark, _ = item["Key"].partition(".d/")
            rested = (now - item["LastModified"]).total_seconds()
            names[name] = min(rested, names.get(name, rested))
            if mark:
                loose.add(name)
        for name in sorted(loose):
            if names[name] >= self._rest:
                await self._put_together(name)
        if all(rested >= self._rest for rested in names.values()):
            # Each look that finds nothing makes the next one later: most tasks have ended.
            span = REST * 2 if loose else span * 2
            self._settled[task] = (time.monotonic() + span, span)
            self._settled.move_to_end(task)
            while len(self._settled) > SETTLED:
                self._settled.popitem(last=False)

    async def _put_together(self, name: str) -> None:
        """Write a log under its own name, and remove its pieces."""
        pieces = await self._reader.pieces(name)
        way = way_through(pieces)
        size = way[-1].end if way else 0
        whole = next((piece for piece in pieces if piece.key == name), None)
        if whole is None or whole.end < size:
            # Never over one that somebody else has put together meanwhile, where the store knows such conditions.
            condition = {"IfNoneMatch": "*"} if whole is None else {"IfMatch": await self._objects.etag(name)}
            try:
                try:
                    await self._write_whole(name, size, way, condition)
                except StoreFault as error:
                    if error.code not in UNKNOWN:
                        raise
                    # A store without conditions: one replica at a time puts logs together, which has to do.
                    await self._write_whole(name, size, way, {})
            except StoreFault as error:
                if error.code in TAKEN:
                    return
                raise
            whole = Piece(0, size, name)
        await self._objects.remove([piece.key for piece in pieces if piece.key != name and piece.end <= whole.end])

    async def _write_whole(self, name: str, size: int, way: Sequence[Piece], condition: dict[str, Any]) -> None:
        if size <= PART:
            await self._objects.put(name, await self._bytes(name, 0, size, way), **condition)
            return

        async def parts() -> AsyncGenerator[bytes]:
            for start in range(0, size, PART):
                yield await self._bytes(name, start, min(size, start + PART), way)

        await self._objects.put_parts(name, parts(), **condition)

    async def _bytes(self, name: str, start: int, end: int, way: Sequence[Piece]) -> bytes:
        return b"".join([chunk async for chunk in self._reader.read(name, start, end, way)])
