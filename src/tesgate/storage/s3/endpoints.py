"""Finds the configured endpoint of a URL, and whether a task's owner may use it for that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Literal

from tesgate.config import S3Endpoint, S3Settings
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location, UrlRefused, covers, parse

__all__ = ["Endpoints", "Use"]

Use = Literal["read", "write"]
_SLASHES = re.compile("/+")


class Endpoints:
    """All configured object stores."""

    def __init__(
        self, settings: S3Settings, *, reserved: Location | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`reserved`: the gateway's own place, which no task reads or writes, at whatever endpoint."""
        self._reserved = reserved
        self._stores = [ObjectStore(endpoint, clock=clock) for endpoint in settings.endpoints]

    async def close(self) -> None:
        """Let go of connections."""
        for store in self._stores:
            await store.close()

    def named(self, name: str) -> ObjectStore | None:
        """The endpoint of this name, if it is still configured."""
        return next((store for store in self._stores if store.name == name), None)

    def find(self, at: Location, use: Use, *, owner: str, groups: Sequence[str]) -> ObjectStore:
        """Who serves it for this owner. Raises `UrlRefused`."""
        store = self._serving(at, use)
        if not _allowed(store.endpoint, at, use, owner=owner, groups=groups):
            word = "read from" if use == "read" else "written to"
            raise UrlRefused(f"may not be {word} by {owner} (access of endpoint {store.name})")
        return store

    def refusal(self, url: str, use: Use) -> str | None:
        """Why nobody may read or write this URL, known before anything runs; None: somebody may."""
        try:
            self._serving(parse(url), use)
        except UrlRefused as refused:
            return refused.why
        return None

    def _serving(self, at: Location, use: Use) -> ObjectStore:
        if self._reserved is not None and _touches(at, self._reserved, use):
            raise UrlRefused("is where the gateway keeps its tasks' logs, which no task may use")
        serving = [store for store in self._stores if at.scheme in store.endpoint.schemes]
        if not serving:
            raise UrlRefused(
                f"has no endpoint: none is configured for {at.scheme}:// (s3.endpoints in the gateway's configuration)"
            )
        store = _first(serving, at)
        if store is None:
            raise UrlRefused("is in no bucket that an endpoint is configured for (s3.endpoints[].buckets)")
        if _first(serving, at.at(_SLASHES.sub("/", at.key).removeprefix("/"))) is not store:
            # Some stores take it for the same name, and then another endpoint says who may use it.
            raise UrlRefused("has slashes in a row (or one at the beginning of its key); write it without")
        return store


def _first(stores: Sequence[ObjectStore], at: Location) -> ObjectStore | None:
    return next((store for store in stores if covers(store.endpoint.buckets, at.bucket, at.key)), None)


def _touches(at: Location, reserved: Location, use: Use) -> bool:
    """Whether it is there or below, or, for what may list it, above."""
    if at.bucket != reserved.bucket:
        return False
    # Stores that keep objects as files take slashes in a row for one.
    here, there = (_SLASHES.sub("/", f"/{one.key}/") for one in (at, reserved))
    return here.startswith(there) or (use == "read" and there.startswith(here))


def _allowed(endpoint: S3Endpoint, at: Location, use: Use, *, owner: str, groups: Sequence[str]) -> bool:
    if not endpoint.access:
        return True
    for grant in endpoint.access:
        if not ("*" in grant.who or owner in grant.who or any(f"group:{group}" in grant.who for group in groups)):
            continue
        patterns = grant.read if use == "read" else grant.write
        for group in [*groups] or [""]:
            if covers(patterns, at.bucket, at.key, {"owner": owner, "group": group}):
                return True
    return False
