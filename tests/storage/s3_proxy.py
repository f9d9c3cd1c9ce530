"""An HTTP proxy in front of an S3 server that breaks what it is told to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time

import aiohttp
from aiohttp import web
from yarl import URL

SLOW_DOWN = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>slow down</Message></Error>'

WRONG_REGION = (
    b'<?xml version="1.0"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is '
    b"malformed; the region is wrong</Message><Region>%s</Region></Error>"
)


@dataclass
class Proxy:
    """Faults are counted down; 0 is none."""

    target: str
    client: aiohttp.ClientSession
    url: str = ""
    slow_down: int = 0
    lose_answer_to: str | None = None
    """The next request whose method and query (`POST uploadId=…`) hold these words is carried
    out, and its answer thrown away."""
    skew: float = 0.0
    """Seconds by which the server's clock seems to differ."""
    region: str | None = None
    """What is signed for another one is refused, as Amazon does it: to HEAD in a header alone."""
    says_region: bool = True
    """In that header; versitygw does not."""
    asked: Counter[str] = field(default_factory=Counter)

    refused: list[str] = field(default_factory=list)

    encodings: list[str] = field(default_factory=list)
    """That HEAD requests asked for."""

    async def carry(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.method] += 1
        if request.method == "HEAD":
            self.encodings.append(request.headers.get("Accept-Encoding", ""))
        if self.slow_down:
            self.slow_down -= 1
            return web.Response(status=503, body=SLOW_DOWN, content_type="application/xml")
        if self.region is not None and (signed := _region_of(request)) not in (None, self.region):
            self.refused.append(f"{request.method} {signed}")
            body = WRONG_REGION % self.region.encode()
            headers = {"content-type": "application/xml"}
            if self.says_region:
                headers["x-amz-bucket-region"] = self.region
            return web.Response(status=400, body=None if request.method == "HEAD" else body, headers=headers)
        url = URL(self.target + request.raw_path, encoded=True)
        data_in = await request.read()
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        async with self.client.request(
            request.method, url, headers=headers, data=data_in or None, allow_redirects=False
        ) as answer:
            data = await answer.read()
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            if self.skew:
                kept["Date"] = formatdate(time() + self.skew, usegmt=True)
            if self.lose_answer_to is not None and self.lose_answer_to in f"{request.method} {request.query_string}":
                self.lose_answer_to = None
                assert request.transport is not None
                request.transport.abort()
            if request.method != "HEAD":
                kept.pop("Content-Length", None)
            return web.Response(status=answer.status, headers=kept, body=data if request.method != "HEAD" else None)


def _region_of(request: web.Request) -> str | None:
    """Of the signature; None: it has none."""
    words = request.headers.get("Authorization", "") or request.query.get("X-Amz-Credential", "")
    found = re.search(r"/[0-9]{8}/([^/]*)/s3/aws4_request", words)
    return found[1] if found else None


@asynccontextmanager
async def proxy_before(target: str) -> AsyncGenerator[Proxy]:
    async with aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=["content-type", "accept"]) as client:
        proxy = Proxy(target, client)
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", proxy.carry)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield proxy
        finally:
            await runner.cleanup()
