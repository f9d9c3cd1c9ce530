"""A small HTTP/1.1 client for measuring: keeps connections, and costs little beside what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "LeanClient"]

_KEPT = 2.0
"""Seconds after which an idle connection is not used again: servers close them, uvicorn after five."""

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Answer:
    """Status and body of one answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class LeanClient:
    """Calls to one server, over TCP (`host`, `port`) or a unix socket (`path`); any number at the same time."""

    def __init__(self, *, host: str = "", port: int = 0, path: str = "", prefix: str = "") -> None:
        self._host, self._port, self._path, self._prefix = host, port, path, prefix
        self._idle: list[tuple[float, _Connection]] = []

    async def get(self, path: str) -> Answer:
        return await self.call("GET", path)

    async def post(self, path: str, document: Any = None) -> Answer:
        return await self.call("POST", path, b"" if document is None else json.dumps(document).encode())

    async def delete(self, path: str) -> Answer:
        return await self.call("DELETE", path)

    async def call(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One exchange; raises OSError or asyncio.IncompleteReadError where there is no whole answer."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        connection = self._kept() or await self._open()
        kept = False
        try:
            connection[1].write(head.encode() + body)
            answer, kept = await self._read(connection[0], method)
        finally:
            if kept:
                self._idle.append((time.monotonic(), connection))
            else:
                connection[1].close()
        return answer

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for _, (_, writer) in idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _kept(self) -> _Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() - since < _KEPT and not connection[0].at_eof():
                return connection
            connection[1].close()
        return None

    async def _open(self) -> _Connection:
        if self._path:
            return await asyncio.open_unix_connection(self._path)
        return await asyncio.open_connection(self._host, self._port)

    @staticmethod
    async def _read(reader: asyncio.StreamReader, method: str) -> tuple[Answer, bool]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = b""
        if headers.get("transfer-encoding", "") == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
        elif status not in (204, 304) and method != "HEAD":
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(status, body), headers.get("connection", "").lower() != "close"
