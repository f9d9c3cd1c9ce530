"""The HTTP server: uvicorn over connections that are bounded by the settings."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from tesgate.app.connection import Bounds, Connection
from tesgate.config import ServerSettings

__all__ = ["Server", "server_of"]

_OTHER_FILES = 256
"""Open files that are not clients' connections: the database's, logs, pipes."""


class Server(uvicorn.Server):
    """Uvicorn over `Connection`, without signal handlers of its own: the gateway ends as a whole."""

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
        return await super().on_tick(counter)


def server_of(app: Callable[..., Any], settings: ServerSettings, tls: ssl.SSLContext | None = None) -> Server:
    """The server for an application, bounded as the settings say; with `tls` it speaks HTTPS."""
    bounded = Bounds(connections=_room(settings.max_connections), patience=settings.client_timeout)
    config = uvicorn.Config(
        app,
        http=type("BoundedConnection", (Connection,), {"bounds": bounded}),
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
    if tls is not None:
        config.load()
        config.ssl = tls  # ours, because its certificate can change
    return Server(config)


def _room(wanted: int) -> int:
    """As many connections as are wanted, as far as the system lets us open files; raises the soft limit for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft // 2, soft - _OTHER_FILES)
    return wanted
