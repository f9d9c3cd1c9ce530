"""The objects below one prefix that are the gateway's own: whose they are, and how they are put, read, listed, removed.

What the store answers is `StoreFault` in here. Callers say with `translated` and `within_span` how much of it becomes
`Unavailable`, which clients and runners understand.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import structlog
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError

from tesgate.errors import Unavailable
from tesgate.storage.s3 import multiparts
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location

__all__ = ["LEFT", "SPAN", "TAKEN", "UNKNOWN", "Prefix", "translated", "within_span"]

log = structlog.get_logger(__name__)

SPAN = 20.0
"""Seconds that one write may take; the runner waits 30, and sends again."""
AT_ONCE = 8
"""Objects that are removed at a time."""
LEFT = 3600.0
"""Seconds after which an upload of ours that is not completed is nobody's any more."""
TAKEN = frozenset(("PreconditionFailed", "ConditionalRequestConflict", "412", "409"))
"""A condition was not met: somebody else was first."""
UNKNOWN = frozenset(("NotImplemented", "501"))
"""The store has no conditions."""


class Prefix:
    """One prefix of one bucket. All keys here are whole: they begin with it."""

    def __init__(self, *, store: ObjectStore, at: Location) -> None:
        self._store = store
        self._bucket = at.bucket
        self.prefix = at.prefix
        self._owner = at.prefix + "deployment"

    async def close(self) -> None:
        """Let go of connections."""
        await self._store.close()

    # whose it is

    async def claim(self, deployment: str) -> str:
        """Take the place for a deployment, if it is nobody's yet; returns whose it is. Raises `Unavailable`.

        Two deployments with one place would remove each other's logs: neither has rows for the other's tasks.
        """
        with within_span():
            async with translated():
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
            await self.put(key, body, IfNoneMatch="*")
        except StoreFault as error:
            if error.code in TAKEN:
                return
            if error.code not in UNKNOWN:
                raise
            await self.put(key, body)

    # one object

    async def get(self, key: str) -> bytes:
        """The whole of it. Raises `StoreFault`."""
        answer = await self._store.call("get_object", self._bucket, Key=key)
        async with answer["Body"] as body:
            return bytes(await body.read())

    async def get_range(self, key: str, first: int, length: int) -> bytes:
        """`length` bytes from `first` on. Raises `StoreFault`, and OSError where there are fewer."""
        answer = await self._store.call(
            "get_object", self._bucket, Key=key, Range=f"bytes={first}-{first + length - 1}"
        )
        async with answer["Body"] as body:
            found = bytes(await body.read())
        if len(found) != length:
            raise OSError("the object ended early")
        return found

    async def etag(self, key: str) -> str:
        """What names its present content. Raises `StoreFault`."""
        head = await self._store.call("head_object", self._bucket, Key=key)
        etag: str = head["ETag"]
        return etag

    async def put(self, key: str, body: bytes, **condition: Any) -> None:
        """Write it, under `IfMatch` or `IfNoneMatch` where they are given. Raises `StoreFault`."""
        await self._store.call("put_object", self._bucket, Key=key, Body=body, **self._kept(), **condition)

    async def put_parts(self, key: str, bodies: AsyncGenerator[bytes], **condition: Any) -> None:
        """As `put`, of an object that is large: one part of a multipart upload for each of `bodies`."""
        await self._abort_left(key)
        begun = await self._store.call("create_multipart_upload", self._bucket, Key=key, **self._kept())
        upload = {"Key": key, "UploadId": begun["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            async with aclosing(bodies):
                async for body in bodies:
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

    async def _abort_left(self, key: str) -> None:
        """Remove what died in the middle of this: nobody sees its parts, nobody else writes below the prefix."""
        try:
            for one in await multiparts.list_uploads(self._store, Location("s3", self._bucket, key)):
                if one.age > LEFT:
                    await self._abort({"Key": key, "UploadId": one.id})
        except StoreFault as error:
            log.debug("uploads of a log cannot be listed", key=key, why=error.why)

    async def _abort(self, upload: dict[str, Any]) -> None:
        try:
            await self._store.call("abort_multipart_upload", self._bucket, **upload)
        except StoreFault as error:
            log.warning("an upload of a log is left behind", key=upload["Key"], why=error.why)

    def _kept(self) -> dict[str, str]:
        endpoint = self._store.endpoint
        words: dict[str, str] = {"ContentType": "text/plain; charset=utf-8"}
        if endpoint.encryption != "none":
            words["ServerSideEncryption"] = endpoint.encryption
            if endpoint.kms_key_id:
                words["SSEKMSKeyId"] = endpoint.kms_key_id
        return words

    # many

    async def listing(self, below: str, *, pages: int | None = None) -> AsyncIterator[dict[str, Any]]:
        """The objects whose keys begin with `below`; of the first `pages` answers only. Raises `StoreFault`."""
        more: dict[str, str] = {}
        while pages is None or pages > 0:
            answer = await self._store.call("list_objects_v2", self._bucket, Prefix=below, **more)
            for item in answer.get("Contents") or []:
                yield item
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}
            pages = None if pages is None else pages - 1

    async def directories(self, below: str, *, after: str, limit: int) -> list[str]:
        """Names of what lies between `below` and the next slash, in order from behind `after` on.

        Fewer than `limit` are all. Raises `Unavailable`.
        """
        found: list[str] = []
        # "0" follows "/": behind all keys of that one, and before those of the next.
        more: dict[str, str] = {"StartAfter": f"{below}{after}0"} if after else {}
        while len(found) < limit:
            async with translated():
                answer = await self._store.call(
                    "list_objects_v2",
                    self._bucket,
                    Prefix=below,
                    Delimiter="/",
                    MaxKeys=min(limit - len(found), 1000),
                    **more,
                )
            names = [item["Prefix"][len(below) :].rstrip("/") for item in answer.get("CommonPrefixes") or []]
            found += sorted(name for name in names if name > after)
            if not answer.get("IsTruncated"):
                break
            # Only whoever has all thinks that it has reached the end.
            if names and max(names) > after:
                after = max(names)
                more = {"StartAfter": f"{below}{after}0"}
            elif answer.get("NextContinuationToken"):
                more = {"ContinuationToken": answer["NextContinuationToken"]}
            else:
                raise Unavailable("the gateway's workspace breaks off its list of logs")
        return found

    async def remove(self, keys: Iterable[str], *, strict: bool = False) -> None:
        """Remove objects; without `strict` what cannot be removed stays until its log goes. Raises `StoreFault`."""
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
async def translated() -> AsyncIterator[None]:
    """Faults of the store and of the way to it become `Unavailable`."""
    try:
        yield
    except StoreFault as error:
        raise Unavailable(f"the gateway's workspace cannot be used now ({error.why})") from None
    except (HttpError, BotoCoreError) as error:
        raise Unavailable(f"the gateway's workspace cannot be used now ({type(error).__name__})") from None


def within_span() -> Any:
    """For `SPAN` seconds; what takes longer is `Unavailable`."""
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
