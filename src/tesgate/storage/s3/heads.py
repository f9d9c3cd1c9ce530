"""Looks at objects by HEAD requests that are signed here: a botocore client takes milliseconds for each of thousands.

Only what every store does alike is done here. Whatever is no plain answer is left to that client, which knows about
retries, renewed keys and regions.
"""

from __future__ import annotations

import os
import ssl
import urllib.request
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
from yarl import URL

from tesgate.config import S3Endpoint
from tesgate.runner.access import Signed

__all__ = ["Heads"]

AT_ONCE = 32
"""Connections to one endpoint."""
SPAN = 60.0
"""Seconds for which a HEAD is signed; it is sent at once."""
_CHECKSUM = "x-amz-checksum-"
_AUTHORITIES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


class Heads:
    """HEAD requests to one endpoint, over kept connections."""

    def __init__(self, endpoint: S3Endpoint, stack: AsyncExitStack) -> None:
        """`stack`: closed with the endpoint."""
        self._endpoint = endpoint
        self._stack = stack
        self._lock = anyio.Lock()
        self._session: aiohttp.ClientSession | None = None
        # A proxy or authorities of the environment are something that the client knows how to use.
        self._usable = not urllib.request.getproxies() and not any(map(os.environ.get, _AUTHORITIES))

    async def ask(self, signed: Signed) -> dict[str, Any] | None:
        """What `head_object` answers, in its words, also of status 404; None: ask in another way."""
        if not self._usable:
            return None
        try:
            session = await self._opened()
            url = URL(signed.url, encoded=True)
            async with session.head(url, headers=signed.headers, allow_redirects=False) as answer:
                meta = {"HTTPStatusCode": answer.status, "HTTPHeaders": {"date": answer.headers.get("date", "")}}
                if answer.status == 404:
                    return {"ResponseMetadata": meta}
                size = answer.headers.get("content-length", "")
                if answer.status != 200 or not size.isdecimal():
                    return None
                found: dict[str, Any] = {"ContentLength": int(size), "ResponseMetadata": meta}
                if "etag" in answer.headers:
                    found["ETag"] = answer.headers["etag"]
                for name, value in answer.headers.items():
                    if name.lower().startswith(_CHECKSUM):
                        word = name[len(_CHECKSUM) :].upper()
                        found["ChecksumType" if word == "TYPE" else f"Checksum{word}"] = value
                return found
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._lock:
            if self._session is None:
                context: ssl.SSLContext | bool = True
                if self._endpoint.url is None or not str(self._endpoint.url).lower().startswith("http:"):
                    # Reads files.
                    context = await anyio.to_thread.run_sync(_context, self._endpoint)
                self._session = await self._stack.enter_async_context(
                    aiohttp.ClientSession(
                        connector=aiohttp.TCPConnector(limit=AT_ONCE, ssl=context),
                        timeout=aiohttp.ClientTimeout(total=12, connect=5),
                        # Another encoding would have another size and ETag than what runners are to fetch.
                        headers={"user-agent": "tesgate", "accept-encoding": "identity"},
                        cookie_jar=aiohttp.DummyCookieJar(),
                        auto_decompress=False,
                    )
                )
            return self._session


def _context(endpoint: S3Endpoint) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=None if endpoint.ca_file is None else str(endpoint.ca_file))
