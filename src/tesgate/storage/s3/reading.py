"""Reads a log out of its pieces, which others may replace meanwhile by one that covers them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import anyio
import structlog
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError

from tesgate.errors import Unavailable
from tesgate.storage.s3.pieces import Piece, piece_of, way_through
from tesgate.storage.s3.prefix import SPAN, Prefix, translated
from tesgate.storage.s3.store import StoreFault

__all__ = ["LogReader", "PieceRange"]

log = structlog.get_logger(__name__)

CHUNK = 1 << 20
"""Bytes of one request of a reader."""


class LogReader:
    """Logs below a prefix; one is known by the key that it has when it is put together."""

    def __init__(self, objects: Prefix) -> None:
        self._objects = objects

    async def pieces(self, name: str) -> list[Piece]:
        """All that there are of a log, in any order. Raises `StoreFault`."""
        found = [piece_of(name, str(item["Key"]), int(item["Size"])) async for item in self._objects.listing(name)]
        return [piece for piece in found if piece is not None]

    async def read(self, name: str, start: int, end: int, way: Sequence[Piece]) -> AsyncIterator[bytes]:
        """The bytes, from pieces that may meanwhile be replaced. Raises `Unavailable`."""
        faults = 0
        while start < end:
            piece = next((piece for piece in way if piece.start <= start < piece.end), None)
            if piece is None:
                raise Unavailable("a piece of this log was removed while it was read; ask again")
            try:
                async for chunk in self._read(piece, start, min(end, piece.end)):
                    start += len(chunk)
                    faults = 0
                    yield chunk
                continue
            except StoreFault as error:
                if not (error.missing or error.passing):
                    raise Unavailable(f"the gateway's workspace cannot be read now ({error.why})") from None
            except (HttpError, BotoCoreError, TimeoutError, OSError) as error:
                log.info("a log is read on after a fault", fault=type(error).__name__)
            faults += 1
            if faults >= 5:
                raise Unavailable("the gateway's workspace cannot be read now; ask again")
            await anyio.sleep(0.1 * 2**faults)
            async with translated():
                way = way_through(await self.pieces(name))

    async def _read(self, piece: Piece, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            length = min(CHUNK, end - start)
            # Nothing stays open while the reader takes its time: connections are few, and writers need them.
            with anyio.fail_after(SPAN):
                chunk = await self._objects.get_range(piece.key, start - piece.start, length)
            yield chunk
            start += length


class PieceRange:
    """See `LogRange`. Nothing is open until it is read."""

    def __init__(self, reader: LogReader, name: str, size: int, start: int, length: int, way: Sequence[Piece]) -> None:
        self._reader = reader
        self._name = name
        self._way = way
        self.size = size
        self.start = start
        self.length = length

    def chunks(self) -> AsyncIterator[bytes]:
        """See `LogRange`."""
        return self._reader.read(self._name, self.start, self.start + self.length, self._way)

    def close(self) -> None:
        """See `LogRange`."""
        return
