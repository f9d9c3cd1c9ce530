"""The workspace as objects below one prefix: written as it comes by any replica, read whole by all of them.

Objects cannot be appended to, so a log is written as pieces, ``<step>.<stream>.d/<start>-<end>`` with both offsets in
the name, and what is small is written again together with what follows it. What bytes a name stands for never changes:
whichever replica writes late, or twice, or dies in between, the pieces that are there agree, and the longest way
through them from the beginning is the log. A piece is removed only when one that covers it is there. A log that has
rested for `REST` is put together under its own name, ``<step>.<stream>``, as on disk; it counts as a piece from 0 on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio
import structlog
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError

from tesgate.errors import Unavailable
from tesgate.model.ids import is_task_id
from tesgate.storage.s3.pieces import Piece, piece_key, piece_of, way_through
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location
from tesgate.storage.workspace import LogRange, OffsetGap, Stream, log_name, no_log

__all__ = ["ObjectWorkspace"]

log = structlog.get_logger(__name__)

SMALL = 64 << 10
"""A last piece with fewer bytes is written again with what follows: a log that drips does not become many objects."""
KNOWN = 512
"""Logs whose end is remembered: at most so many times `SMALL` bytes."""
TRUSTED = 60.0
"""Seconds for which the end of a log is taken as remembered: others may write, or remove."""
REST = 3600.0
"""Seconds without a write after which a log is put together."""
PART = 8 << 20
SPAN = 20.0
"""Seconds that one write may take; the runner waits 30, and sends again."""
AT_ONCE = 8
TAKEN = frozenset(("PreconditionFailed", "ConditionalRequestConflict", "412", "409"))
"""A condition was not met: somebody else was first."""
UNKNOWN = frozenset(("NotImplemented", "501"))
"""The store has no conditions."""
SETTLED = 100_000
"""Tasks that are remembered to need no settling."""
CHUNK = 1 << 20
"""Bytes of one request of a reader."""


@dataclass
class _End:
    """What is known of the end of one log."""

    lock: anyio.Lock = field(default_factory=anyio.Lock)
    seen_at: float = float("-inf")
    size: int = 0
    start: int = 0
    """Of the last piece, where that is small."""
    tail: bytes | None = None
    """Its bytes."""


class ObjectWorkspace:
    """All replicas' logs, in one bucket. At most `KNOWN` small pieces are held, besides what is being written."""

    def __init__(self, *, store: ObjectStore, place: Location, max_bytes: int = 1 << 30, rest: float = REST) -> None:
        self._store = store
        self._bucket = place.bucket
        self._logs = place.prefix + "logs/"
        self._owner = place.prefix + "deployment"
        self._max_bytes = max_bytes
        self._rest = rest
        self._ends: OrderedDict[str, _End] = OrderedDict()
        self._settled: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Until when a task is taken to need no settling, and how long that was. Others may write to it."""

    async def claim(self, deployment: str) -> str:
        """Take the place for a deployment, if it is nobody's yet; returns whose it is. Raises `Unavailable`.

        Two deployments with one place would remove each other's logs: neither has rows for the other's tasks.
        """
        with _span():
            async with self._translated():
                owner = await self._claimed_by()
                if owner is None:
                    await self._put_new(self._owner, deployment.encode())
                    # Where the store knows no conditions, whoever wrote last is read by both from then on.
                    owner = await self._claimed_by()
        if owner is None:
            raise Unavailable("the gateway's workspace does not give back what was written to it")
        return owner

    async def _claimed_by(self) -> str | None:
        try:
            answer = await self._store.call("get_object", self._bucket, Key=self._owner)
        except StoreFault as error:
            if error.missing:
                return None
            raise
        async with answer["Body"] as body:
            return bytes(await body.read(256)).decode("utf-8", "replace").strip()

    async def _put_new(self, key: str, body: bytes) -> None:
        try:
            await self._put(key, body, IfNoneMatch="*")
        except StoreFault as error:
            if error.code in TAKEN:
                return
            if error.code not in UNKNOWN:
                raise
            await self._put(key, body)

    # what runners write

    async def write_at(self, task: str, attempt: int, step: int, stream: Stream, offset: int, data: bytes) -> int:
        """See `Workspace`."""
        name = self._logs + log_name(task, attempt, step, stream)
        self._settled.pop(task, None)
        end = self._ends.setdefault(name, _End())
        self._ends.move_to_end(name)
        with _span():
            async with end.lock, self._translated():
                size = await self._write(name, end, offset, data)
        while len(self._ends) > KNOWN and not next(iter(self._ends.values())).lock.locked():
            self._ends.popitem(last=False)
        return size

    async def _write(self, name: str, end: _End, offset: int, data: bytes) -> int:
        fresh = time.monotonic() - end.seen_at < TRUSTED
        if not fresh or offset > end.size:
            await self._look(name, end)
        if offset < 0 or offset > end.size:
            if offset >= self._max_bytes:
                return end.size
            raise OffsetGap(end.size)
        # What is there already is the same: a runner repeats itself, and nothing else.
        new = memoryview(data)[end.size - offset : max(0, self._max_bytes - offset)]
        if not len(new):
            return end.size
        start, before = (end.size, b"") if end.tail is None else (end.start, end.tail)
        body = b"".join((before, new))
        await self._put(piece_key(name, start, start + len(body)), body)
        if before:
            await self._forget([piece_key(name, start, end.size)])
        end.size, end.start = start + len(body), start
        end.tail = body if len(body) < SMALL else None
        return end.size

    async def _look(self, name: str, end: _End) -> None:
        """Read the end anew: another replica may have written to it, or it may have been removed."""
        way = way_through(await self._pieces(name))
        end.size, end.tail = (way[-1].end if way else 0), None
        if way and way[-1].key != name and way[-1].end - way[-1].start < SMALL:
            answer = await self._store.call("get_object", self._bucket, Key=way[-1].key)
            async with answer["Body"] as body:
                end.start, end.tail = way[-1].start, bytes(await body.read())
        end.seen_at = time.monotonic()

    # what clients read

    async def open_range(
        self, task: str, attempt: int, step: int, stream: Stream, start: int = 0, stop: int | None = None
    ) -> LogRange:
        """See `Workspace`."""
        name = self._logs + log_name(task, attempt, step, stream)
        with _span():
            async with self._translated():
                pieces = await self._pieces(name)
        if not pieces:
            raise no_log(attempt, step, stream)
        size = way[-1].end if (way := way_through(pieces)) else 0
        first, last, _ = slice(start, stop).indices(size)
        return _ObjectRange(self, name, size, first, max(0, last - first), way)

    async def read(self, name: str, start: int, end: int, way: Sequence[Piece]) -> AsyncIterator[bytes]:
        """The bytes, from pieces that may meanwhile be replaced. Raises `Unavailable`."""
        faults = 0
        while start < end:
            piece = next((piece for piece in way if piece.start <= start < piece.end), None)
            if piece is None:
                raise Unavailable("a piece of this log was removed while it was read; ask again")
            try:
                async for chunk in self._read(piece, start, min(end, piece.end)):
                    start += len(chunk)
                    faults = 0
                    yield chunk
                continue
            except StoreFault as error:
                if not (error.missing or error.passing):
                    raise Unavailable(f"the gateway's workspace cannot be read now ({error.why})") from None
            except (HttpError, BotoCoreError, TimeoutError, OSError) as error:
                log.info("a log is read on after a fault", fault=type(error).__name__)
            faults += 1
            if faults >= 5:
                raise Unavailable("the gateway's workspace cannot be read now; ask again")
            await anyio.sleep(0.1 * 2**faults)
            async with self._translated():
                way = way_through(await self._pieces(name))

    async def _read(self, piece: Piece, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            length = min(CHUNK, end - start)
            first = start - piece.start
            # Nothing stays open while the reader takes its time: connections are few, and writers need them.
            with anyio.fail_after(SPAN):
                answer = await self._store.call(
                    "get_object", self._bucket, Key=piece.key, Range=f"bytes={first}-{first + length - 1}"
                )
                async with answer["Body"] as body:
                    chunk = bytes(await body.read())
            if len(chunk) != length:
                raise OSError("the object ended early")
            yield chunk
            start += length

    # retention

    async def tasks(self, *, after: str, limit: int) -> list[str]:
        """See `Workspace`."""
        found: list[str] = []
        # "0" follows "/": behind all keys of that task, and before those of the next.
        more: dict[str, str] = {"StartAfter": f"{self._logs}{after}0"} if after else {}
        while len(found) < limit:
            async with self._translated():
                answer = await self._store.call(
                    "list_objects_v2",
                    self._bucket,
                    Prefix=self._logs,
                    Delimiter="/",
                    MaxKeys=min(limit - len(found), 1000),
                    **more,
                )
            names = [item["Prefix"][len(self._logs) :].rstrip("/") for item in answer.get("CommonPrefixes") or []]
            found += sorted(task for task in names if task > after)
            if not answer.get("IsTruncated"):
                break
            # Only whoever has all thinks that it has reached the end.
            if names and max(names) > after:
                after = max(names)
                more = {"StartAfter": f"{self._logs}{after}0"}
            elif answer.get("NextContinuationToken"):
                more = {"ContinuationToken": answer["NextContinuationToken"]}
            else:
                raise Unavailable("the gateway's workspace breaks off its list of logs")
        return found

    async def remove(self, task: str) -> None:
        """See `Workspace`."""
        if not is_task_id(task):
            return
        below = f"{self._logs}{task}/"
        for name in [name for name in self._ends if name.startswith(below)]:
            if not self._ends[name].lock.locked():
                del self._ends[name]
        async with self._translated():
            while keys := [str(item["Key"]) async for item in self._list(below, pages=1)]:
                await self._forget(keys, strict=True)
                # Stores that keep objects in directories (SeaweedFS) list empty ones for minutes.
                parts = [key[len(below) :].split("/")[:-1] for key in keys]
                made = {
                    below + "".join(part + "/" for part in some[:at]) for some in parts for at in range(len(some) + 1)
                }
                for directory in sorted(made, key=len, reverse=True):
                    await self._forget([directory])

    async def settle(self, task: str) -> None:
        """See `Workspace`. For one replica at a time; what it does not get to, it does the next time."""
        until, span = self._settled.get(task, (0.0, REST))
        if not is_task_id(task) or time.monotonic() < until:
            return
        names: dict[str, float] = {}
        loose: set[str] = set()
        now = datetime.now(UTC)
        async with self._translated():
            async for item in self._list(f"{self._logs}{task}/"):
                name, mark, _ = item["Key"].partition(".d/")
                rested = (now - item["LastModified"]).total_seconds()
                names[name] = min(rested, names.get(name, rested))
                if mark:
                    loose.add(name)
            for name in sorted(loose):
                if names[name] >= self._rest:
                    await self._put_together(name)
        if all(rested >= self._rest for rested in names.values()):
            # Each look that finds nothing makes the next one later: most tasks have ended.
            span = REST * 2 if loose else span * 2
            self._settled[task] = (time.monotonic() + span, span)
            self._settled.move_to_end(task)
            while len(self._settled) > SETTLED:
                self._settled.popitem(last=False)

    async def _put_together(self, name: str) -> None:
        """Write a log under its own name, and remove its pieces."""
        pieces = await self._pieces(name)
        way = way_through(pieces)
        size = way[-1].end if way else 0
        whole = next((piece for piece in pieces if piece.key == name), None)
        if whole is None or whole.end < size:
            # Never over one that somebody else has put together meanwhile, where the store knows such conditions.
            condition: dict[str, Any] = {"IfNoneMatch": "*"}
            if whole is not None:
                head = await self._store.call("head_object", self._bucket, Key=name)
                condition = {"IfMatch": head["ETag"]}
            try:
                try:
                    await self._write_whole(name, size, way, condition)
                except StoreFault as error:
                    if error.code not in UNKNOWN:
                        raise
                    # A store without conditions: one replica at a time puts logs together, which has to do.
                    await self._write_whole(name, size, way, {})
            except StoreFault as error:
                if error.code in TAKEN:
                    return
                raise
            whole = Piece(0, size, name)
        await self._forget([piece.key for piece in pieces if piece.key != name and piece.end <= whole.end])

    async def _write_whole(self, name: str, size: int, way: Sequence[Piece], condition: dict[str, Any]) -> None:
        if size <= PART:
            body = b"".join([chunk async for chunk in self.read(name, 0, size, way)])
            await self._put(name, body, **condition)
            return
        begun = await self._store.call("create_multipart_upload", self._bucket, Key=name, **self._kept())
        upload = {"Key": name, "UploadId": begun["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            for start in range(0, size, PART):
                body = b"".join([chunk async for chunk in self.read(name, start, min(size, start + PART), way)])
                number = len(parts) + 1
                done = await self._store.call("upload_part", self._bucket, PartNumber=number, Body=body, **upload)
                parts.append({"PartNumber": number, "ETag": done["ETag"]})
            await self._store.call(
                "complete_multipart_upload", self._bucket, MultipartUpload={"Parts": parts}, **upload, **condition
            )
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await self._abort(upload)
            raise

    async def _abort(self, upload: dict[str, Any]) -> None:
        try:
            await self._store.call("abort_multipart_upload", self._bucket, **upload)
        except StoreFault as error:
            log.warning("an upload of a log is left behind", key=upload["Key"], why=error.why)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._store.close()

    # the store

    async def _pieces(self, name: str) -> list[Piece]:
        found = [piece_of(name, str(item["Key"]), int(item["Size"])) async for item in self._list(name)]
        return [piece for piece in found if piece is not None]

    async def _list(self, prefix: str, *, pages: int | None = None) -> AsyncIterator[dict[str, Any]]:
        more: dict[str, str] = {}
        while pages is None or pages > 0:
            answer = await self._store.call("list_objects_v2", self._bucket, Prefix=prefix, **more)
            for item in answer.get("Contents") or []:
                yield item
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}
            pages = None if pages is None else pages - 1

    async def _put(self, key: str, body: bytes, **condition: Any) -> None:
        await self._store.call("put_object", self._bucket, Key=key, Body=body, **self._kept(), **condition)

    def _kept(self) -> dict[str, str]:
        endpoint = self._store.endpoint
        words: dict[str, str] = {"ContentType": "text/plain; charset=utf-8"}
        if endpoint.encryption != "none":
            words["ServerSideEncryption"] = endpoint.encryption
            if endpoint.kms_key_id:
                words["SSEKMSKeyId"] = endpoint.kms_key_id
        return words

    async def _forget(self, keys: Iterable[str], *, strict: bool = False) -> None:
        """Remove objects; without `strict` what cannot be removed stays until the log goes."""
        places = iter(list(keys))

        async def some() -> None:
            for key in places:
                try:
                    await self._store.call("delete_object", self._bucket, Key=key)
                except StoreFault as error:
                    if strict and not error.missing:
                        raise

        try:
            async with anyio.create_task_group() as group:
                for _ in range(AT_ONCE):
                    group.start_soon(some)
        except* StoreFault as found:
            raise found.exceptions[0] from None

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except StoreFault as error:
            raise Unavailable(f"the gateway's workspace cannot be used now ({error.why})") from None
        except (HttpError, BotoCoreError) as error:
            raise Unavailable(f"the gateway's workspace cannot be used now ({type(error).__name__})") from None


class _ObjectRange:
    """See `LogRange`. Nothing is open until it is read."""

    def __init__(
        self, workspace: ObjectWorkspace, name: str, size: int, start: int, length: int, way: Sequence[Piece]
    ) -> None:
        self._workspace = workspace
        self._name = name
        self._way = way
        self.size = size
        self.start = start
        self.length = length

    def chunks(self) -> AsyncIterator[bytes]:
        return self._workspace.read(self._name, self.start, self.start + self.length, self._way)

    def close(self) -> None:
        return


def _span() -> Any:
    return _Span()


class _Span:
    """As `anyio.fail_after`, in our words."""

    def __enter__(self) -> None:
        self._scope = anyio.move_on_after(SPAN)
        self._scope.__enter__()

    def __exit__(self, *raised: Any) -> bool | None:
        quiet = self._scope.__exit__(*raised)
        if self._scope.cancelled_caught:
            raise Unavailable("the gateway's workspace does not answer; try again in a moment")
        return quiet
