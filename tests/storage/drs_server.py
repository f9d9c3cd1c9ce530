"""A DRS server and a registry of compact ids, as their specifications have them, on one port of the loopback."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web


@dataclass
class DrsServer:
    """What it holds, and what it was asked."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    access: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    token: str | None = None
    later: int = 0
    """So many requests are answered 202 first."""
    broken: int = 0
    """So many requests are answered 503 first."""
    down: set[str] = field(default_factory=set)
    """Paths that are answered 503."""
    redirect: str | None = None
    asked: Counter[str] = field(default_factory=Counter)
    tokens: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def blob(self, id: str, data: bytes, **more: Any) -> None:
        self.objects[id] = {
            "id": id,
            "self_uri": f"drs://{self.host}/{id}",
            "size": len(data),
            "created_time": "2026-01-01T00:00:00Z",
            "checksums": [{"type": "md5", "checksum": "5d41402abc4b2a76b9719d911017c592"}],
            **more,
        }

    async def answer(self, request: web.Request) -> web.Response:
        path = request.raw_path.partition("?")[0]
        self.asked[path] += 1
        if "authorization" in request.headers:
            self.tokens.add(request.headers["authorization"])
        if path.startswith("/restApi/"):
            return self._registry(request, path)
        if self.redirect is not None:
            return web.Response(status=302, headers={"location": self.redirect})
        if path in self.down:
            return web.json_response({"msg": "not now", "status_code": 503}, status=503)
        if self.broken:
            self.broken -= 1
            return web.json_response({"msg": "not now", "status_code": 503}, status=503)
        if self.later:
            self.later -= 1
            return web.Response(status=202, headers={"retry-after": "0"})
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return web.json_response({"msg": "who are you?", "status_code": 401}, status=401)
        parts = [unquote(part) for part in path.removeprefix("/ga4gh/drs/v1/objects/").split("/")]
        found = self.objects.get(parts[0]) if len(parts) == 1 else self.access.get((parts[0], parts[-1]))
        if found is None:
            return web.json_response({"msg": "no such object", "status_code": 404}, status=404)
        return web.json_response(found)

    def _registry(self, request: web.Request, path: str) -> web.Response:
        base = f"http://{self.host}/restApi"
        if path.endswith("/findByPrefix") and request.query.get("prefix") == "drs.test":
            return web.json_response({"prefix": "drs.test", "_links": {"self": {"href": f"{base}/namespaces/42"}}})
        if path.endswith("/findAllByNamespaceId") and request.query.get("id") == "42":
            pattern = f"http://{self.host}/ga4gh/drs/v1/objects/{{$id}}"
            resources = [
                {
                    "providerCode": "old",
                    "official": False,
                    "urlPattern": "http://127.0.0.1:9/ga4gh/drs/v1/objects/{$id}",
                },
                {"providerCode": "here", "official": True, "urlPattern": pattern},
            ]
            return web.json_response({"_embedded": {"resources": resources}})
        return web.json_response({}, status=404)


@asynccontextmanager
async def serving() -> AsyncGenerator[DrsServer]:
    server = DrsServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()
