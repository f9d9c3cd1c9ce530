"""Aborts multipart uploads whose attempt is over: nobody sees their parts, and somebody pays for them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import anyio
import structlog

from tesgate.control.held import Trust
from tesgate.storage.s3 import multiparts
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import StoreFault
from tesgate.storage.s3.urls import Location
from tesgate.store.replicas import ReplicaStore
from tesgate.store.uploads import UploadRow, UploadStore

__all__ = ["UploadSweeper"]

log = structlog.get_logger(__name__)


class UploadSweeper:
    """One replica at a time; it knows uploads by their rows alone, so it never touches anybody else's."""

    NAME = "uploads"
    BATCH = 100
    AT_ONCE = 8
    GIVE_UP = timedelta(days=7)
    """After so long without its endpoint (or its leave) an upload is left to the bucket's own lifecycle rules."""

    def __init__(
        self,
        *,
        uploads: UploadStore,
        endpoints: Endpoints,
        replicas: ReplicaStore,
        trust: Trust,
        interval: timedelta,
        late: float = multiparts.PART_SPAN,
    ) -> None:
        """`late`: seconds for which a part that was signed may still arrive, also behind an abort."""
        self._late = late
        self._aborted: dict[tuple[str, int, str], float] = {}
        """When. Another replica that takes over begins anew."""
        self._uploads = uploads
        self._endpoints = endpoints
        self._replicas = replicas
        self._trust = trust
        self.interval = interval
        self._after = ("", 0, "")

    async def once(self) -> bool:
        """Look at one batch; True: there is more."""
        if not self._trust.holds():
            return False
        if not await self._replicas.hold_singleton(self._trust.holder, self.NAME, self.interval * 3):
            self._aborted.clear()
            return False
        rows = await self._uploads.stale(self._after, self.BATCH)
        limiter = anyio.CapacityLimiter(self.AT_ONCE)
        async with anyio.create_task_group() as group:
            for row in rows:
                group.start_soon(self._sweep, row, limiter)
        last = rows[-1] if len(rows) == self.BATCH else None
        self._after = ("", 0, "") if last is None else (last.task_id, last.number, last.id)
        return last is not None

    async def _sweep(self, row: UploadRow, limiter: anyio.CapacityLimiter) -> None:
        name = (row.task_id, row.number, row.id)
        first = self._aborted.get(name)
        if first is not None and time.monotonic() - first < self._late:
            return
        async with limiter:
            try:
                if row.completed_at is None:
                    await self._abort(row)
                    if first is None:
                        # Parts that are under way may be kept all the same: it is aborted once more when none can be.
                        self._aborted[name] = time.monotonic()
                        return
            except StoreFault as fault:
                old = row.created_at is not None and datetime.now(UTC) - row.created_at > self.GIVE_UP
                log.warning(
                    "an upload could not be aborted",
                    task=row.task_id,
                    endpoint=row.endpoint,
                    bucket=row.bucket,
                    why=fault.why,
                    given_up=old,
                )
                if not old:
                    return
            await self._uploads.delete(row)
            self._aborted.pop(name, None)

    async def _abort(self, row: UploadRow) -> None:
        store = self._endpoints.named(row.endpoint)
        if store is None:
            raise StoreFault("NoEndpoint", f"endpoint {row.endpoint} is not configured any more")
        with anyio.move_on_after(60) as scope:
            await multiparts.abort(store, Location("s3", row.bucket, row.key), row.id)
        if scope.cancelled_caught:
            raise StoreFault("503", f"endpoint {row.endpoint} does not answer")
