"""What runners ask of an object store, in the words of the access contract; who may ask is not decided here.

Uploads in parts are in `tesgate.storage.s3.multiparts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel

from tesgate.config import S3Endpoint
from tesgate.runner.access import Found, Page, Signed
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location, UrlRefused, check_key

__all__ = [
    "ALGORITHMS",
    "AT_A_TIME",
    "EMPTY_PAGES",
    "NAMES",
    "algorithm_of",
    "check_writable",
    "look",
    "page",
    "sign_put",
]

READ_SPAN = 900.0
"""Seconds for which a request to read is good. What takes longer asks again."""
AT_A_TIME = 50
"""URLs that are signed before others get their turn."""
EMPTY_PAGES = 20
"""Pages of a listing in a row that may be empty, though there are more."""
ALGORITHMS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256")
NAMES = {name: "Checksum" + name.upper() for name in ALGORITHMS}
"""Fields of requests and answers: ChecksumCRC32, …"""


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
        answer = await store.head(at.bucket, at.key)
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
    algorithm = algorithm_of(store.endpoint)
    if algorithm is not None and checksum.get(algorithm):
        headers[f"x-amz-checksum-{algorithm}"] = checksum[algorithm]
    async with store.signer(at.bucket) as signer:
        check_writable(store, anonymous=signer.anonymous)
        return signer.sign("PUT", at.key, span=span, headers=headers)


async def _holds(store: ObjectStore, at: Location) -> bool:
    answer = await store.call("list_objects_v2", at.bucket, Prefix=at.prefix, MaxKeys=1)
    return bool(answer.get("Contents"))


def check_writable(store: ObjectStore, *, anonymous: bool) -> None:
    """Raises `StoreFault` where nothing can be stored."""
    if anonymous:
        why = f"endpoint {store.name} is only read, without credentials"
        raise StoreFault("AccessDenied", why, nothing_done=True)


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


def algorithm_of(endpoint: S3Endpoint) -> str | None:
    """The checksum that requests carry for the store to check, by its name of it; None: none."""
    if endpoint.request_checksum == "auto":
        return "crc32" if endpoint.url is None else None
    return None if endpoint.request_checksum == "none" else endpoint.request_checksum


def _whole(answer: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of the whole object; one that was made of parts' checksums says so by its form."""
    if answer.get("ChecksumType") == "COMPOSITE":
        return {}
    return {name: answer[word] for name, word in NAMES.items() if answer.get(word) and "-" not in answer[word]}
