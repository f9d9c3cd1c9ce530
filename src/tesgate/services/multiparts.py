"""Multipart uploads of one attempt: begun with a row, sent by the runner, completed under the publish lease, aborted.

What earlier attempts of the task have begun at the same key is aborted first: a completion of theirs that a store is
slow with can then not come after ours.
"""

from __future__ import annotations

import time

import anyio
import structlog

from tesgate.errors import BadRequest, Gone
from tesgate.runner.access import Completion, Fault, PartsQuestion, Signed, Upload
from tesgate.services.allowed import Allowed
from tesgate.services.asked import MOST, Asker, Refused, ask_each, shown
from tesgate.storage.s3 import multiparts
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location, UrlRefused
from tesgate.store.uploads import UploadRow, UploadStore

__all__ = ["Multiparts"]

log = structlog.get_logger(__name__)

BEGINNING = 0.75
"""Share of the deadline that the beginning of an upload may take; with less left none is begun."""


class Multiparts:
    """Keeps nothing: what there is stands in the rows."""

    def __init__(self, *, uploads: UploadStore, endpoints: Endpoints, allowed: Allowed, deadline: float) -> None:
        """`deadline`: seconds for the questions of one message."""
        self._uploads = uploads
        self._endpoints = endpoints
        self._allowed = allowed
        self._deadline = deadline

    async def fence(self, asker: Asker, at: Location) -> None:
        """Abort what earlier attempts have begun at this key. Raises `StoreFault` where that may work in a moment.

        Their rows stay for the sweep, which aborts once more when no part can be under way.
        """
        for row in asker.older.get((at.bucket, at.key), ()):
            store = self._endpoints.named(row.endpoint)
            if store is None:
                continue
            try:
                await multiparts.abort(store, Location("s3", row.bucket, row.key), row.id)
            except StoreFault as fault:
                if fault.passing:
                    raise
                log.warning(
                    "an upload of an earlier attempt could not be aborted",
                    task=asker.task_id,
                    endpoint=row.endpoint,
                    bucket=row.bucket,
                    why=fault.why,
                )

    async def begin(self, asker: Asker, upload: Upload) -> Upload:
        """Begin one, or find it again by its id. Raises `Gone`, `Refused`, `StoreFault`, `UrlRefused`."""
        store, at = self._allowed.writable(asker, upload.url)
        if upload.id:
            row = await self._own(asker, store, at, upload.id)
            if row.completed_at is None:
                await multiparts.find_upload(store, at, row.id)
            return Upload(upload.url, row.id, row.size, row.part_size, row.algorithm)
        if asker.attempt.stop:
            raise UrlRefused("is not stored any more: the task is being cancelled")
        await self.fence(asker, at)
        # Whoever stops waiting between the store's beginning and the row leaves one that only the intention tells of.
        span = min(multiparts.BEGIN_SPAN, self._deadline * BEGINNING)
        if asker.began + self._deadline - time.monotonic() < span:
            raise Refused(Fault(f"{shown(upload.url)} is begun with the next question.", "passing"))
        made: UploadRow | None = None
        with anyio.move_on_after(span, shield=True) as scope:
            made = await self._begun(asker, store, at, upload.size)
        if scope.cancelled_caught:
            raise StoreFault("503", f"endpoint {store.name} does not answer")
        if made is None:
            raise Gone(f"attempt {asker.number} of task {asker.task_id} is over")
        return Upload(upload.url, made.id, made.size, made.part_size, made.algorithm)

    async def _begun(self, asker: Asker, store: ObjectStore, at: Location, size: int) -> UploadRow | None:
        """Make one, with its row; None: the attempt is over. The intention goes where nothing can be left unknown."""
        intention = await self._uploads.intend(asker.task_id, asker.number, store.name, at.bucket, at.key)
        if intention is None:
            return None
        try:
            begun = await multiparts.begin(store, at, size=size)
        except StoreFault as fault:
            if fault.nothing_done:
                await self._uploads.forget([intention])
            raise
        row = UploadRow(
            id=begun.id,
            endpoint=store.name,
            bucket=at.bucket,
            key=at.key,
            task_id=asker.task_id,
            number=asker.number,
            size=size,
            part_size=begun.part_size,
            algorithm=begun.algorithm,
        )
        noted = False
        try:
            noted = await self._uploads.insert(row, settles=intention if begun.alone else None)
        finally:
            if not noted:
                with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                    await multiparts.abort(store, at, begun.id)
        return row if noted else None

    async def parts(self, asker: Asker, question: PartsQuestion) -> list[tuple[Signed, Fault | None]]:
        """A request for each part, or why there is none. Raises `BadRequest`."""
        none = Signed("", "")
        if len(question.numbers) > MOST or not all(1 <= number <= multiparts.MOST_PARTS for number in question.numbers):
            raise BadRequest(f"parts have numbers from 1 to {multiparts.MOST_PARTS}, {MOST} of them in one message")

        async def signed(one: PartsQuestion) -> list[tuple[Signed, Fault | None]]:
            store, at = self._allowed.writable(asker, one.url)
            row = await self._own(asker, store, at, one.id)
            found = await multiparts.sign_parts(
                store, at, upload=row.id, numbers=one.numbers, algorithm=row.algorithm, checksums=one.checksums
            )
            return [(item, None) for item in found]

        def refused(one: PartsQuestion, fault: Fault) -> list[tuple[Signed, Fault | None]]:
            return [(none, fault) for _ in one.numbers]

        (answer,) = await ask_each([question], signed, refused, span=self._deadline)
        return answer

    async def complete(self, asker: Asker, question: Completion) -> Completion:
        """Make one visible, under the lease. Raises `Refused`, `StoreFault`, `UrlRefused`."""
        store, at = self._allowed.writable(asker, question.url)
        row = await self._own(asker, store, at, question.id)
        if row.completed_at is None:
            asker.leased(question.url)
            if not question.etags or len(question.etags) > multiparts.MOST_PARTS:
                raise UrlRefused(f"cannot be put together from {len(question.etags)} parts")
            await self.fence(asker, at)
            await self._uploads.completing(row)
            try:
                await multiparts.complete(
                    store,
                    at,
                    upload=row.id,
                    etags=question.etags,
                    algorithm=row.algorithm,
                    checksums=question.checksums,
                    size=question.size,
                    asked_before=row.completing_at,
                )
            except StoreFault as fault:
                if fault.code != "InvalidPart":
                    raise
                # As an upload that is gone: another attempt may store what this one cannot any more.
                raise Refused(Fault(f"{shown(question.url)}: {fault.why}.", "missing")) from None
            await self._uploads.completed(row)
        return Completion(url=question.url, id=question.id, etags=[], size=question.size, done=True)

    async def abort(self, asker: Asker, upload: Upload) -> Upload:
        """Remove one of this attempt's; what there is not is removed already. Raises `StoreFault`."""
        row = (await self._uploads.get(asker.task_id, asker.number, [upload.id])).get(upload.id)
        store = None if row is None or row.completed_at is not None else self._endpoints.named(row.endpoint)
        if row is not None and store is not None:
            # Its row stays: a part may be under way, and the sweep aborts once more when none can be.
            await multiparts.abort(store, Location("s3", row.bucket, row.key), row.id)
        return Upload(url=upload.url, id=upload.id)

    async def _own(self, asker: Asker, store: ObjectStore, at: Location, id: str) -> UploadRow:
        row = (await self._uploads.get(asker.task_id, asker.number, [id])).get(id)
        if row is None or (row.endpoint, row.bucket, row.key) != (store.name, at.bucket, at.key):
            raise Refused(Fault(f"{shown(at.url())} has no upload of this name in this attempt.", "missing"))
        return row
