"""A proxy before PostgreSQL that cuts connections, refuses new ones, or says nothing any more."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

__all__ = ["Proxy"]


class Proxy:
    """Stands before the server of one URL; `url` leads through it."""

    def __init__(self, upstream: str, directory: Path) -> None:
        parts = urlsplit(upstream)
        self._host = parse_qs(parts.query).get("host", [parts.hostname or "localhost"])[0]
        self._port = parts.port or 5432
        self._socket = directory / ".s.PGSQL.5432"
        user = f"{parts.username}:{parts.password or ''}@" if parts.username else ""
        self.url = f"postgresql://{user}/{parts.path.lstrip('/')}?host={directory}&port=5432"
        self.accepted = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._lost: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    @classmethod
    @asynccontextmanager
    async def before(cls, upstream: str) -> AsyncGenerator[Proxy]:
        with tempfile.TemporaryDirectory(prefix="tg-proxy-") as directory:
            proxy = cls(upstream, Path(directory))
            await proxy.resume()
            try:
                yield proxy
            finally:
                proxy.flow()
                await proxy.refuse()
                if proxy._tasks:
                    await asyncio.wait(proxy._tasks)

    async def resume(self) -> None:
        """Take connections (again)."""
        self._server = await asyncio.start_unix_server(self._accept, str(self._socket))

    async def refuse(self) -> None:
        """Cut what there is and take no new connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self._socket.unlink(missing_ok=True)
        self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def hang(self) -> None:
        """Pass nothing on from now."""
        self._flowing.clear()

    def lose(self) -> None:
        """What there is never passes anything on again, and nobody is told; new connections work."""
        self._lost.update(self._writers)

    def flow(self) -> None:
        """Pass on again."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._host.startswith("/"):
            up = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            up = await asyncio.open_connection(self._host, self._port)
        for source, sink in ((reader, up[1]), (up[0], writer)):
            self._writers.add(sink)
            task = asyncio.get_running_loop().create_task(self._pump(source, sink, writer, up[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *both: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self._flowing.wait()
                if sink in self._lost:
                    continue
                sink.write(data)
                await sink.drain()
        for writer in both:
            self._writers.discard(writer)
            self._lost.discard(writer)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
