"""JSON from servers that users name: allowed addresses, few hops, bounded sizes, tokens to their own host alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tesgate.runner.plan import UrlPolicy
from tesgate.runner.transfer.policy import AddressPolicy, AddressRefused

__all__ = ["JsonWeb", "WebFault"]

MOST_BYTES = 2 << 20
MOST_VALUES = 200_000
"""In one answer: a bundle's entry has about five."""
MOST_HOPS = 5
LONGEST_WAIT = 10.0
"""Seconds to wait for a server that says when to come again."""
TRIES = 4


class WebFault(Exception):
    """No answer. `why` completes a sentence that begins with the URL; `kind` is that of `runner.access.Fault`."""

    def __init__(self, why: str, kind: str = "refused") -> None:
        super().__init__(why)
        self.why = why
        self.kind = kind


class JsonWeb:
    """A client that is opened when it is first needed."""

    def __init__(self, policy: UrlPolicy) -> None:
        self._policy = AddressPolicy(policy)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Let go of connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, url: str, *, token: str | None = None, until: float) -> Any:
        """The JSON at `url`, asked for until `until` (`time.monotonic`). Raises `WebFault`."""
        pause = 0.2
        for attempt in range(TRIES):
            try:
                status, wait, value = await self._follow(url, token, until)
            except WebFault as fault:
                if fault.kind != "passing" or attempt == TRIES - 1 or time.monotonic() + pause > until:
                    raise
                status, wait, value = 503, 0.0, None
            if status == 200:
                return value
            host = urlsplit(url).netloc
            if status == 404:
                raise WebFault(f"is not known to {host}", "missing")
            if status in (401, 403):
                raise WebFault(f"is not given to the gateway by {host} ({status}); set a token for it in drs.hosts")
            if status not in (202, 408, 429, 500, 502, 503, 504):
                raise WebFault(f"has no answer: {host} says {status}")
            delay = max(pause, min(wait, LONGEST_WAIT))
            if time.monotonic() + delay > until or attempt == TRIES - 1:
                raise WebFault(f"has no answer yet: {host} says {status}", "passing")
            await anyio.sleep(delay)
            pause *= 2
        raise AssertionError("unreachable")

    async def _follow(self, address: str, token: str | None, until: float) -> tuple[int, float, Any]:
        url = first = self._checked(address)
        for _ in range(MOST_HOPS):
            headers = {"accept": "application/json"}
            if token is not None and url.origin() == first.origin():
                headers["authorization"] = f"Bearer {token}"
            left = until - time.monotonic()
            if left <= 0:
                raise WebFault("has no answer within the time", "passing")
            try:
                answer = await self._once(url, headers, left)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                refused = _refusal(error)
                if refused is not None:
                    raise WebFault(f"cannot be asked about: {refused.why}; see url_policy.allowed_hosts") from None
                raise WebFault(
                    f"cannot be asked about: {url.authority} cannot be reached ({type(error).__name__})",
                    "passing",
                ) from None
            status, kept, data = answer
            if status in (301, 302, 303, 307, 308) and kept.get("location"):
                url = self._checked(kept["location"], url)
                continue
            if status != 200:
                word = kept.get("retry-after", "")
                return status, float(word) if word.isdecimal() and len(word) < 6 else 0.0, None
            return status, 0.0, _parsed(data, url)
        raise WebFault(f"has no answer: more than {MOST_HOPS} redirects")

    async def _once(self, url: URL, headers: Mapping[str, str], left: float) -> tuple[int, dict[str, str], bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=_Resolver(self._policy), use_dns_cache=False, limit=32)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        limits = aiohttp.ClientTimeout(total=left, connect=5)
        async with self._session.get(url, headers=headers, allow_redirects=False, timeout=limits) as answer:
            data = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                data += chunk
                if len(data) > MOST_BYTES:
                    raise WebFault(f"has an answer larger than {MOST_BYTES} bytes")
            kept = {name: answer.headers[name] for name in ("location", "retry-after") if name in answer.headers}
            return answer.status, kept, bytes(data)

    def _checked(self, text: str, base: URL | None = None) -> URL:
        """The URL that is asked: judged as aiohttp reads it, which folds full-width digits and dots in hosts.

        Addresses in URLs are not looked up, so they are judged here; names when they are resolved.
        """
        try:
            url = URL(text) if base is None else base.join(URL(text))
            host, port = url.raw_host, url.port
        except ValueError:
            raise WebFault("leads to something that is no URL") from None
        if url.scheme not in ("http", "https") or not host or not port or url.user is not None or url.password:
            raise WebFault(f"leads to {url.scheme or 'nothing'}: only http(s) is followed")
        if ":" not in host and not host.replace(".", "").isdigit():
            return url
        try:
            self._policy.check(host, port, [host])
        except AddressRefused as error:
            raise WebFault(f"cannot be asked about: {error.why}; see url_policy.allowed_hosts") from None
        except ValueError:
            raise WebFault("leads to something that is no address") from None
        return url


class _Refused(OSError):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def _refusal(error: BaseException) -> _Refused | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Refused):
            return seen
        inner = getattr(seen, "os_error", None)
        seen = inner if inner is not None and inner is not seen else seen.__cause__
    return None


class _Resolver(AbstractResolver):
    """Resolves names; the addresses that were judged are those that are connected to."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await anyio.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        try:
            self._policy.check(host, port, [str(address[0]) for *_, address in found])
        except AddressRefused as error:
            raise _Refused(error.why) from None
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, *_, address in found
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def _parsed(data: bytes, url: URL) -> Any:
    # Parsing holds the interpreter, in a thread as well, for as long as there are values to make.
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise WebFault(f"has an answer of more than {MOST_VALUES} values")
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise WebFault(f"has no answer: {url.authority} did not send JSON") from None
