"""Clients that poll over connections which they keep, as lean as can be: hundreds of them fit into one event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Poller", "Seen"]


@dataclass
class Seen:
    """What all pollers saw."""

    statuses: dict[int, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the slowest answer."""
    answered: list[int] = field(default_factory=list)
    """Answers of each poller, by its number."""


class Poller:
    """One connection that asks again and again."""

    def __init__(self, url: str, number: int, seen: Seen) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._number = number
        self._seen = seen
        seen.answered.append(0)

    async def run(self, requests: list[tuple[str, str, bytes]], ended: asyncio.Event, pause: float) -> None:
        """Send these (method, target, body) in turn until `ended`."""
        try:
            reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 26)
            turn = self._number
            while not ended.is_set():
                method, target, body = requests[turn % len(requests)]
                turn += 1
                began = time.monotonic()
                status = await self._ask(reader, writer, method, target, body)
                self._seen.longest = max(self._seen.longest, time.monotonic() - began)
                self._seen.statuses[status] = self._seen.statuses.get(status, 0) + 1
                self._seen.answered[self._number] += 1
                await asyncio.sleep(pause)
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError) as error:
            self._seen.faults.append(repr(error))

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str, body: bytes
    ) -> int:
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n".encode() + body)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        await reader.readexactly(size)
        return int(head.split(b" ", 2)[1])
