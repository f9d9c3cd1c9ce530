"""Clients in TLS' handshake: counted when they are accepted, and let go like any other that says nothing.

A server of asyncio or uvloop tells of a client when its handshake is done, a minute after it came if it likes; until
then nobody counts its socket and buffers. So the sockets are accepted here, and each handshake is a task. The context
is asked for at each, so that one whose files have changed is used at once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from tesgate.app.guests import LINGERING, SILENCE, Bounds, Guest, make_room

__all__ = ["Arrival", "Door"]

_NO_FILES = 1.0
"""Seconds to wait where the system grants no socket for a client (as asyncio's own server does)."""
_LAST_WORD = 30.0
"""Seconds that the loop gives a client to take its answer and to answer TLS' end; `Connection.look` is quicker."""


class Arrival(Guest):
    """One client before its handshake is done; stands among the server's connections."""

    def __init__(self, task: asyncio.Task[None], since: float) -> None:
        self._task, self.since = task, since

    def is_idle(self) -> bool:
        """Whether it has had the time in which an honest client is done."""
        return self._task.get_loop().time() - self.since > SILENCE

    def let_go(self) -> None:
        """End the handshake, and close the socket with it."""
        self._task.cancel()

    def shutdown(self) -> None:
        """The server ends."""
        self._task.cancel()


class Door:
    """Accepts clients of one listening socket and leads them through the handshake."""

    def __init__(
        self,
        *,
        listener: socket.socket,
        context: Callable[[], ssl.SSLContext],
        protocol: Callable[[bool], asyncio.Protocol],
        connections: set[Any],
        bounds: Bounds,
    ) -> None:
        self._listener, self._context, self._protocol = listener, context, protocol
        self._connections, self._bounds = connections, bounds

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(_NO_FILES)
                continue
            self._take(loop, client)

    def _take(self, loop: asyncio.AbstractEventLoop, client: socket.socket) -> None:
        taken = len(self._connections)
        has_room = taken < self._bounds.connections or make_room(self._connections)
        # Where all are busy, some are taken beyond the bound nevertheless: only after a handshake can 503 be said.
        if not has_room and taken >= self._bounds.connections + LINGERING:
            client.close()
            return
        task = loop.create_task(self._greet(loop, client, has_room))
        arrival = Arrival(task, loop.time())
        self._connections.add(arrival)

        def done(task: asyncio.Task[None]) -> None:
            self._connections.discard(arrival)
            if task.cancelled():
                client.close()  # cancelled before it began, nobody else did

        task.add_done_callback(done)

    async def _greet(self, loop: asyncio.AbstractEventLoop, client: socket.socket, has_room: bool) -> None:
        try:
            await loop.connect_accepted_socket(
                lambda: self._protocol(has_room),
                client,
                ssl=self._context(),
                ssl_handshake_timeout=self._bounds.handshake,
                ssl_shutdown_timeout=_LAST_WORD,
            )
        except OSError:
            # It left, took too long, or is none whom we know; the loop has closed its socket.
            return
