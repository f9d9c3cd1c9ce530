"""The HTTP server: uvicorn over connections that are bounded by the settings."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from tesgate.app.arrival import Door
from tesgate.app.connection import Connection
from tesgate.app.guests import Bounds
from tesgate.config import ServerSettings

__all__ = ["Server", "server_of"]

_OTHER_FILES = 256
"""Open files that are not clients' connections: the database's, logs, pipes."""


class Server(uvicorn.Server):
    """Uvicorn over `Connection`, without signal handlers of its own: the gateway ends as a whole."""

    def __init__(
        self, config: uvicorn.Config, *, connection: type[Connection], tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        super().__init__(config)
        self._connection, self._tls = connection, tls
        self._doors: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; with TLS, at doors of ours."""
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        for listener in sockets or []:
            door = Door(
                listener=listener,
                context=self._tls,
                protocol=self._protocol,
                connections=self.server_state.connections,
                bounds=self._connection.bounds,
            )
            self._doors.append(asyncio.create_task(door.run()))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody any more, then as uvicorn does."""
        for door in self._doors:
            door.cancel()
        await asyncio.gather(*self._doors, return_exceptions=True)
        await super().shutdown(sockets)

    def _protocol(self, has_room: bool) -> asyncio.Protocol:
        protocol = self._connection(self.config, self.server_state, self.lifespan.state)
        protocol.has_room = has_room
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `tesgate.app.serve`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Look at every connection once a second; uvicorn ticks ten times in one."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    connection.look(now)
        for door in self._doors:
            if door.done():
                door.result()  # a door that fell shut ends the server, rather than leave it deaf
        return await super().on_tick(counter)


def server_of(
    app: Callable[..., Any], settings: ServerSettings, tls: Callable[[], ssl.SSLContext] | None = None
) -> Server:
    """The server for an application, bounded as the settings say; with `tls`, asked at each handshake, HTTPS."""
    bounded = Bounds(connections=_room(settings.max_connections), patience=settings.client_timeout)
    connection: type[Connection] = type("BoundedConnection", (Connection,), {"bounds": bounded})
    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing here goes by a client's address or scheme, so no header may set them.
        proxy_headers=False,
        timeout_keep_alive=round(settings.keep_alive),
        timeout_graceful_shutdown=round(settings.shutdown_grace),
    )
    return Server(config, connection=connection, tls=tls)


def _room(wanted: int) -> int:
    """As many connections as are wanted, as far as the system lets us open files; raises the soft limit for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft // 2, soft - _OTHER_FILES)
    return wanted
