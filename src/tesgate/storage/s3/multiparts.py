"""Uploads in parts, as the access contract has them: begun, listed, signed, completed, aborted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import anyio.lowlevel

from tesgate.runner.access import Signed
from tesgate.storage.s3.objects import ALGORITHMS, AT_A_TIME, EMPTY_PAGES, NAMES, algorithm_of, check_writable
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location

__all__ = ["BEGIN_SPAN", "MOST_PARTS", "PART_SPAN", "Begun", "Listed", "abort", "begin", "complete", "find_upload"]
__all__ += ["has_parts", "list_uploads", "sign_parts"]

PART_SPAN = 900.0
"""Seconds for which a request for a part is good; nobody sees it before the upload is completed."""
BEGIN_SPAN = 15.0
"""Seconds in which an upload is begun, or given up."""
MOST_PARTS = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
LARGEST = 5 << 40
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload that the store has made."""

    id: str
    part_size: int
    algorithm: str | None
    alone: bool
    """It was asked for once only, so the store can have made no other."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An upload that is not completed, as the store tells of it."""

    id: str
    age: float
    """Seconds since it was begun, by the store's own clock."""


async def begin(store: ObjectStore, at: Location, *, size: int) -> Begun:
    """Begin an upload. Raises `StoreFault`."""
    check_writable(store, anonymous=store.endpoint.anonymous)
    if size > LARGEST:
        why = f"{size} bytes are more than an object can have ({LARGEST})"
        raise StoreFault("EntityTooLarge", why, nothing_done=True)
    part = store.endpoint.part_mb * MIB
    part = max(part, math.ceil(size / MOST_PARTS / MIB) * MIB)
    arguments: dict[str, Any] = {}
    algorithm = algorithm_of(store.endpoint)
    if algorithm is not None:
        arguments["ChecksumAlgorithm"] = algorithm.upper()
        if store.endpoint.url is None and algorithm.startswith("crc"):
            # Of the whole object, so that whoever reads it in ranges can check it.
            arguments["ChecksumType"] = "FULL_OBJECT"
    endpoint = store.endpoint
    if endpoint.encryption != "none":
        arguments["ServerSideEncryption"] = endpoint.encryption
    if endpoint.kms_key_id is not None:
        arguments["SSEKMSKeyId"] = endpoint.kms_key_id
    if endpoint.storage_class is not None:
        arguments["StorageClass"] = endpoint.storage_class
    answer = await store.call("create_multipart_upload", at.bucket, Key=at.key, **arguments)
    echoed = str(answer.get("ChecksumAlgorithm") or "").lower()
    return Begun(
        id=answer["UploadId"],
        part_size=part,
        algorithm=echoed if echoed in ALGORITHMS else None,
        alone=not answer["ResponseMetadata"].get("RetryAttempts"),
    )


async def list_uploads(store: ObjectStore, at: Location) -> list[Listed]:
    """Uploads to exactly this key, of whoever. Raises `StoreFault`."""
    found: list[Listed] = []
    marker: dict[str, Any] = {}
    for _ in range(EMPTY_PAGES):
        # MinIO lists uploads of one key only, with the key as the prefix; elsewhere it comes first.
        answer = await store.call("list_multipart_uploads", at.bucket, Prefix=at.key, **marker)
        now = _date(answer) or datetime.now(UTC)
        items = answer.get("Uploads") or []
        found += [
            Listed(item["UploadId"], (now - item["Initiated"]).total_seconds())
            for item in items
            if item.get("Key") == at.key and item.get("UploadId") and isinstance(item.get("Initiated"), datetime)
        ]
        if not answer.get("IsTruncated") or answer.get("NextKeyMarker") != at.key:
            break
        marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer.get("NextUploadIdMarker") or ""}
    return found


async def has_parts(store: ObjectStore, at: Location, upload: str) -> bool:
    """Whether anything was sent to an upload that is there. Raises `StoreFault`; gone is one too."""
    answer = await store.call("list_parts", at.bucket, Key=at.key, UploadId=upload, MaxParts=1)
    return bool(answer.get("Parts"))


async def find_upload(store: ObjectStore, at: Location, upload: str) -> None:
    """Whether the upload is still there. Raises `StoreFault`."""
    await has_parts(store, at, upload)


async def sign_parts(
    store: ObjectStore,
    at: Location,
    *,
    upload: str,
    numbers: Sequence[int],
    algorithm: str | None,
    checksums: Sequence[str],
) -> list[Signed]:
    """One request for each part. Raises `StoreFault`."""
    signed = []
    async with store.signer(at.bucket) as signer:
        for place, number in enumerate(numbers):
            if place % AT_A_TIME == 0:
                await anyio.lowlevel.checkpoint()
            headers = {}
            if algorithm is not None and place < len(checksums) and checksums[place]:
                headers[f"x-amz-checksum-{algorithm}"] = checksums[place]
            query = {"partNumber": str(number), "uploadId": upload}
            signed.append(signer.sign("PUT", at.key, span=PART_SPAN, query=query, headers=headers))
    return signed


async def complete(
    store: ObjectStore,
    at: Location,
    *,
    upload: str,
    etags: Sequence[str],
    algorithm: str | None,
    checksums: Sequence[str],
    size: int,
    asked_before: datetime | None,
) -> None:
    """Check the parts and make the object visible. Raises `StoreFault`.

    `asked_before`: when the completion was asked for the first time (its answer may have been lost), if it was.
    """
    try:
        await _check_parts(store, at, upload, etags, size)
        # The upload was there: if it is not now, one of the requests of this very call has completed it.
        asked_before = asked_before or datetime.now(UTC)
        parts = [
            {
                "PartNumber": number,
                "ETag": etag,
                **({NAMES[algorithm]: checksums[number - 1]} if algorithm and number <= len(checksums) else {}),
            }
            for number, etag in enumerate(etags, 1)
        ]
        more: dict[str, Any] = {}
        if algorithm and store.endpoint.url is None and algorithm.startswith("crc"):
            more["ChecksumType"] = "FULL_OBJECT"
        await store.call(
            "complete_multipart_upload",
            at.bucket,
            Key=at.key,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
            **more,
        )
    except StoreFault as fault:
        if (
            fault.code != "NoSuchUpload"
            or asked_before is None
            or not await _is_ours(store, at, etags, size, asked_before)
        ):
            raise


async def abort(store: ObjectStore, at: Location, upload: str) -> None:
    """Remove an upload and its parts; gone is success. Raises `StoreFault`."""
    try:
        await store.call("abort_multipart_upload", at.bucket, Key=at.key, UploadId=upload)
    except StoreFault as fault:
        if not fault.missing:
            raise


async def _check_parts(store: ObjectStore, at: Location, upload: str, etags: Sequence[str], size: int) -> None:
    """The store's own list must be what the runner thinks that it sent: nothing becomes visible otherwise."""
    total, count = 0, 0
    marker: dict[str, Any] = {}
    while True:
        answer = await store.call("list_parts", at.bucket, Key=at.key, UploadId=upload, MaxParts=1000, **marker)
        for part in answer.get("Parts") or []:
            number = int(part["PartNumber"])
            if number > len(etags):
                continue  # left out of the object
            if _bare(part["ETag"]) != _bare(etags[number - 1]):
                raise StoreFault("InvalidPart", f"part {number} is not what was sent; send it again")
            total, count = total + int(part["Size"]), count + 1
        if not answer.get("IsTruncated"):
            break
        marker = {"PartNumberMarker": int(answer["NextPartNumberMarker"])}
    if count != len(etags) or total != size:
        raise StoreFault(
            "InvalidPart",
            f"{count} parts with {total} bytes are there in place of {len(etags)} with {size}; send them again",
        )


async def _is_ours(store: ObjectStore, at: Location, etags: Sequence[str], size: int, asked: datetime) -> bool:
    """Whether the object that is there came from this upload, whose completion was asked for at `asked`."""
    try:
        answer = await store.call("head_object", at.bucket, Key=at.key)
    except StoreFault as fault:
        if fault.missing or fault.code == "404":
            return False
        raise
    if int(answer["ContentLength"]) != size:
        return False
    found = _bare(str(answer.get("ETag") or ""))
    try:
        sums = hashlib.md5(b"".join(bytes.fromhex(_bare(etag)) for etag in etags), usedforsecurity=False)
        if found == f"{sums.hexdigest()}-{len(etags)}":
            return True
    except ValueError:
        pass  # ETags that are no MD5
    if store.endpoint.encryption != "aws:kms" and store.endpoint.url is not None:
        return False
    # With encryption by KMS an ETag says nothing: what was written since with this size and as many parts is it.
    modified = answer.get("LastModified")
    return (
        found.endswith(f"-{len(etags)}") and isinstance(modified, datetime) and (modified - asked).total_seconds() > -60
    )


def _date(answer: Mapping[str, Any]) -> datetime | None:
    """The store's clock, as it says itself."""
    word = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        found = parsedate_to_datetime(word)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _bare(etag: str) -> str:
    return etag.strip().strip('"').lower()
