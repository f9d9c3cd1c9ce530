"""Aborts multipart uploads that a store has made for us and of which we never heard: its answer was lost, or we died.

A store tells of an upload its key, its id and when it was begun, and nothing that says who did it; the same key may be
another program's output, too. So an upload is taken for ours only if

- its key is exactly one at which a row says that we were about to begin one,
- it was begun in the moments after that row was written, by the store's own clock,
- no row has its id: no runner was ever told of it,
- and it has no part, a day later: nobody can have sent one who was never told. Somebody else's has some by then.

What is not found within a few days is left to the bucket's own lifecycle rules.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import timedelta
from itertools import groupby

import anyio
import structlog

from tesgate.control.held import Trust
from tesgate.storage.s3 import multiparts
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location
from tesgate.store.replicas import ReplicaStore
from tesgate.store.uploads import Intention, UploadStore

__all__ = ["OrphanSweeper"]

log = structlog.get_logger(__name__)

QUIET = timedelta(days=1)
"""How long an upload has to be without a part. It costs nothing meanwhile: there is nothing in it."""


class OrphanSweeper:
    """One replica at a time. It goes by intentions, which stay where it is not known what became of a beginning."""

    NAME = "upload-orphans"
    BATCH = 100
    SLACK = 120.0
    """Seconds by which two clocks may have drifted apart in `QUIET`, or a store may take to begin an upload."""
    GIVE_UP = timedelta(days=7)

    def __init__(
        self,
        *,
        uploads: UploadStore,
        endpoints: Endpoints,
        replicas: ReplicaStore,
        trust: Trust,
        interval: timedelta,
        quiet: timedelta = QUIET,
    ) -> None:
        self._uploads = uploads
        self._endpoints = endpoints
        self._replicas = replicas
        self._trust = trust
        self.interval = interval
        self._quiet = quiet
        self._after = 0

    async def once(self) -> bool:
        """Look at one batch; True: there is more."""
        if not self._trust.holds():
            return False
        if not await self._replicas.hold_singleton(self._trust.holder, self.NAME, self.interval * 3):
            return False
        read_at = time.monotonic()
        found = await self._uploads.intentions(self._quiet, after=self._after, limit=self.BATCH)
        ordered = sorted(found, key=_place)
        away: set[str] = set()
        for place, some in groupby(ordered, key=_place):
            if place[0] not in away and not await self._look(place, list(some), read_at):
                away.add(place[0])  # each further look could take a minute
        self._after = found[-1].id if len(found) == self.BATCH else 0
        return self._after > 0

    async def _look(self, place: tuple[str, str, str], some: list[Intention], read_at: float) -> bool:
        """False: the endpoint does not answer for now."""
        endpoint, bucket, key = place
        try:
            store = self._endpoints.named(endpoint)
            if store is None:
                raise StoreFault("NoEndpoint", f"endpoint {endpoint} is not configured any more")
            with anyio.move_on_after(60) as scope:
                await self._abort(store, Location("s3", bucket, key), some, read_at)
            if scope.cancelled_caught:
                raise StoreFault("503", f"endpoint {endpoint} does not answer")
        except StoreFault as fault:
            if not fault.missing:
                old = min(one.age for one in some) > (self._quiet + self.GIVE_UP).total_seconds()
                log.warning(
                    "it could not be seen whether an upload was left", endpoint=endpoint, bucket=bucket, why=fault.why,
                    given_up=old,
                )  # fmt: skip
                if not old:
                    return not fault.passing
        await self._uploads.forget([one.id for one in some])
        return True

    async def _abort(self, store: ObjectStore, at: Location, some: Iterable[Intention], read_at: float) -> None:
        listed = await multiparts.list_uploads(store, at)
        passed = time.monotonic() - read_at
        near = [one for one in listed if any(self._fits(one.age, intention.age + passed) for intention in some)]
        known = await self._uploads.known(store.name, at.bucket, at.key, [one.id for one in near])
        for one in near:
            try:
                if one.id in known or await multiparts.has_parts(store, at, one.id):
                    continue
                await multiparts.abort(store, at, one.id)
            except StoreFault as fault:
                if not fault.missing:
                    raise
                continue  # it ended meanwhile
            log.info("an upload that nobody knows was aborted", endpoint=store.name, bucket=at.bucket)

    def _fits(self, age: float, intention: float) -> bool:
        """Whether it was begun in the moments after the row was written."""
        return -self.SLACK <= intention - age <= multiparts.BEGIN_SPAN + self.SLACK


def _place(one: Intention) -> tuple[str, str, str]:
    return one.endpoint, one.bucket, one.key
