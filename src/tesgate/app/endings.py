"""How a connection ends: with an answer that is read, with a reset, or because the client takes nothing any more."""

from __future__ import annotations

import asyncio
import socket
import struct
from http import HTTPStatus

from tesgate.api.errors import error_body

__all__ = ["RATE", "Taking", "refusal", "reset", "write_end"]

RATE = 1024
"""Bytes a second below which a client counts as standing still."""


def refusal(status: HTTPStatus, msg: str) -> bytes:
    """A whole answer in the one shape of errors, after which the connection is closed."""
    body = error_body(status, msg)
    head = (
        f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def write_end(transport: asyncio.Transport) -> None:
    """Say that nothing more comes, and let the client read. TLS has no half of a connection: there it is closed."""
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()


def reset(transport: asyncio.Transport) -> None:
    """Close with a reset, so that the kernel forgets what the client will not take."""
    if (connection := transport.get_extra_info("socket")) is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Taking:
    """Whether a client takes what it is sent. Times are the loop's, in seconds."""

    def __init__(self) -> None:
        self._since: tuple[float, int] | None = None
        """Since when bytes wait for the client to take them, and how many they were."""

    def all(self) -> None:
        """It has taken everything."""
        self._since = None

    def is_stuck(self, now: float, waiting: int, patience: float) -> bool:
        """Whether, with `waiting` bytes left, it has taken too few within `patience`."""
        if not waiting:
            self._since = None
        elif self._since is None:
            self._since = (now, waiting)
        elif now - self._since[0] > patience:
            if self._since[1] - waiting < RATE * patience:
                return True
            self._since = (now, waiting)
        return False
