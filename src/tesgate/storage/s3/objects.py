"""What runners ask of an object store, in the words of the access contract; who may ask is not decided here."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import anyio.lowlevel

from tesgate.config import S3Endpoint
from tesgate.runner.access import Found, Page, Signed
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location, UrlRefused, check_key

__all__ = ["Begun", "abort", "begin", "complete", "find_upload", "look", "page", "sign_parts", "sign_put"]

READ_SPAN = 900.0
"""Seconds for which a request to read is good. What takes longer asks again."""
PART_SPAN = 900.0
"""The same for parts of an upload, which nobody sees before it is completed."""
MOST_PARTS = 10_000
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html"""
LARGEST = 5 << 40
AT_A_TIME = 50
"""URLs that are signed before others get their turn."""
EMPTY_PAGES = 20
"""Pages of a listing in a row that may be empty, though there are more."""
MIB = 1 << 20
ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
_NAMES = {name: "Checksum" + name.upper() for name in ALGORITHMS}
"""Fields of requests and answers: ChecksumCRC32, …"""


@dataclass(frozen=True, slots=True)
class Begun:
    """An upload that the store has made."""

    id: str
    part_size: int
    algorithm: str | None


async def look(store: ObjectStore, at: Location, *, directory: bool) -> Found:
    """What lies there. `directory`: prefer what lies below it. Raises `StoreFault`; missing is one too."""
    if directory or not at.key or at.key.endswith("/"):
        if await _holds(store, at):
            return Found(url=at.url(), kind="directory")
        if not at.key:
            # A bucket with nothing in it: the request has shown that there is one.
            return Found(url=at.url(), kind="directory")
    known = store.renewals
    try:
        answer = await store.call("head_object", at.bucket, Key=at.key, ChecksumMode="ENABLED")
    except StoreFault as fault:
        # An answer to HEAD has no words. A listing has, and tells what lies below.
        if fault.code not in ("404", "403", "NoSuchKey", "NotFound", "400"):
            raise
        if await _holds(store, at):
            return Found(url=at.url(), kind="directory")
        if store.renewals == known:
            raise
        # The listing found keys or region to be wrong ones, and others to be good.
        answer = await store.call("head_object", at.bucket, Key=at.key, ChecksumMode="ENABLED")
    async with store.signer(at.bucket) as signer:
        get = signer.sign("GET", at.key, span=READ_SPAN)
    return Found(
        url=at.url(),
        size=int(answer["ContentLength"]),
        etag=answer.get("ETag"),
        checksum=_whole(answer),
        get=get,
    )


async def page(store: ObjectStore, at: Location, *, after: str | None, limit: int) -> Page:
    """One page of what lies below. Raises `StoreFault`."""
    prefix = at.prefix
    more: dict[str, Any] = {} if after is None else {"StartAfter": prefix + after}
    most = max(1, min(limit, 1000))
    for _ in range(EMPTY_PAGES):
        answer = await store.call("list_objects_v2", at.bucket, Prefix=prefix, MaxKeys=most, **more)
        keys = [item["Key"] for item in answer.get("Contents") or []]
        if keys or not answer.get("IsTruncated") or not answer.get("NextContinuationToken"):
            break
        more = {"ContinuationToken": answer["NextContinuationToken"]}
    if answer.get("IsTruncated") and not (keys and keys[-1].startswith(prefix)):
        # Where to go on is not known, and to stop here would leave objects out without a word.
        raise StoreFault("503", f"endpoint {store.name} breaks off its list of what lies there")
    found = Page()
    async with store.signer(at.bucket) as signer:
        for place, item in enumerate(answer.get("Contents") or []):
            if place % AT_A_TIME == 0:
                await anyio.lowlevel.checkpoint()
            key = item["Key"]
            name = key[len(prefix) :]
            if not key.startswith(prefix) or not name:
                continue  # the listed directory's own marker
            one = at.at(key)
            entry = Found(url=one.url(), size=int(item["Size"]), etag=item.get("ETag"))
            try:
                check_key(key)
            except UrlRefused:
                pass  # a hostile name: the runner refuses it by its name, and nothing is signed for it
            else:
                entry.get = signer.sign("GET", key, span=READ_SPAN)
            found.objects.append(entry)
            found.names.append(name)
    if answer.get("IsTruncated"):
        found.after = keys[-1][len(prefix) :]
        if found.after == after:
            raise StoreFault("Unknown", f"endpoint {store.name} lists the same keys again and again")
    return found


async def sign_put(store: ObjectStore, at: Location, *, span: float, checksum: Mapping[str, str]) -> Signed:
    """One PUT that is visible at once; good for `span` seconds. Raises `StoreFault`."""
    headers = _kept(store.endpoint)
    algorithm = _algorithm(store.endpoint)
    if algorithm is not None and checksum.get(algorithm):
        headers[f"x-amz-checksum-{algorithm}"] = checksum[algorithm]
    async with store.signer(at.bucket) as signer:
        _writable(store, anonymous=signer.anonymous)
        return signer.sign("PUT", at.key, span=span, headers=headers)


async def begin(store: ObjectStore, at: Location, *, size: int) -> Begun:
    """Begin an upload. Raises `StoreFault`."""
    _writable(store, anonymous=store.endpoint.anonymous)
    if size > LARGEST:
        raise StoreFault("EntityTooLarge", f"{size} bytes are more than an object can have ({LARGEST})")
    part = store.endpoint.part_mb * MIB
    part = max(part, math.ceil(size / MOST_PARTS / MIB) * MIB)
    arguments: dict[str, Any] = {}
    algorithm = _algorithm(store.endpoint)
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
    return Begun(id=answer["UploadId"], part_size=part, algorithm=echoed if echoed in ALGORITHMS else None)


async def find_upload(store: ObjectStore, at: Location, upload: str) -> None:
    """Whether the upload is still there. Raises `StoreFault`."""
    await store.call("list_parts", at.bucket, Key=at.key, UploadId=upload, MaxParts=1)


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
                **({_NAMES[algorithm]: checksums[number - 1]} if algorithm and number <= len(checksums) else {}),
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


async def _holds(store: ObjectStore, at: Location) -> bool:
    answer = await store.call("list_objects_v2", at.bucket, Prefix=at.prefix, MaxKeys=1)
    return bool(answer.get("Contents"))


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


def _writable(store: ObjectStore, *, anonymous: bool) -> None:
    if anonymous:
        raise StoreFault("AccessDenied", f"endpoint {store.name} is only read, without credentials")


def _kept(endpoint: S3Endpoint) -> dict[str, str]:
    """How objects are to be kept, as headers of a PUT."""
    headers: dict[str, str] = {}
    if endpoint.encryption != "none":
        headers["x-amz-server-side-encryption"] = endpoint.encryption
    if endpoint.kms_key_id is not None:
        headers["x-amz-server-side-encryption-aws-kms-key-id"] = endpoint.kms_key_id
    if endpoint.storage_class is not None:
        headers["x-amz-storage-class"] = endpoint.storage_class
    return headers


def _algorithm(endpoint: S3Endpoint) -> str | None:
    if endpoint.request_checksum == "auto":
        return "crc32" if endpoint.url is None else None
    return None if endpoint.request_checksum == "none" else endpoint.request_checksum


def _whole(answer: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of the whole object; one that was made of parts' checksums says so by its form."""
    if answer.get("ChecksumType") == "COMPOSITE":
        return {}
    return {name: answer[word] for name, word in _NAMES.items() if answer.get(word) and "-" not in answer[word]}


def _bare(etag: str) -> str:
    return etag.strip().strip('"').lower()
