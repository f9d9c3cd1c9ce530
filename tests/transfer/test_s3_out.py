"""Outputs to two real S3 servers: single PUTs under the lease, uploads in parts before it, and what breaks."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tesgate.runner.access import AccessRequest
from tesgate.runner.transfer import s3sink
from tesgate.runner.transfer.faults import LeaseLost, StagingError
from tests.transfer.s3_bed import Objects, random_bytes
from tests.transfer.test_s3_in import BOTH, no_more_descriptors

LARGE = (11 << 20) + 3
"""Three parts."""


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 8 MiB and more are large."""
    monkeypatch.setattr(s3sink, "SINGLE", 8 << 20)


@BOTH
@pytest.mark.parametrize("algorithm", ["crc32", None])
def test_files_of_all_sizes(objects: Objects, algorithm: str | None) -> None:
    objects.signing.algorithm = algorithm
    expected = {"empty": b"", "small": b"s", "ä b/%+&": b"odd", "middle": random_bytes(100_000)}
    expected["deep/down/large"] = random_bytes(LARGE)
    for name, data in expected.items():
        objects.write(f"/out/{name}", data)
    (objects.attempt / "rw/out/hollow").mkdir()
    stored = objects.put(objects.output("/out", "here", "DIRECTORY"))
    assert {key: objects.stored(key) for key in objects.stored_keys()} == {
        f"here/{name}": expected[name] for name in expected
    }
    assert sorted(file.size_bytes for file in stored) == sorted(len(data) for data in expected.values())
    assert objects.uploads() == []
    assert objects.signing.asked.count("store") == 1


def test_a_wildcard(objects: Objects) -> None:
    for name in ("a.txt", "b.txt", "c.bin"):
        objects.write(f"/out/{name}", name.encode())
    objects.put(objects.output("/out/*.txt", "w", prefix="/out"))
    assert objects.stored_keys() == ["w/a.txt", "w/b.txt"]


def test_nothing_is_visible_before_the_lease(objects: Objects) -> None:
    objects.write("/out/large", random_bytes(LARGE))
    objects.write("/out/small")

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out", "here", "DIRECTORY"))
        assert objects.stored_keys() == []
        assert objects.uploads() == ["here/large"]
        assert len(objects.names) == 1
        await objects.stager().discard(prepared)
        assert objects.uploads() == []

    anyio.run(run)


def test_a_later_runner_aborts_what_was_journalled(objects: Objects) -> None:
    objects.write("/out/large", random_bytes(LARGE))
    anyio.run(objects.prepare, objects.output("/out/large", "large"))
    assert objects.uploads() == ["large"]
    assert "X-Amz" not in "".join(objects.names)
    anyio.run(objects.stager().discard, ["/a/local/.tesgate-tg-x-1-0.part", "s3-upload:{", *objects.names])
    assert objects.uploads() == []


@pytest.mark.parametrize("size", [10_000, LARGE])
def test_no_lease(objects: Objects, size: int) -> None:
    objects.write("/out/file", random_bytes(size))
    with pytest.raises(LeaseLost):
        objects.put(objects.output("/out/file", "file"), lease=lambda: 0.0)
    assert objects.stored_keys() == []


@pytest.mark.parametrize("size", [10_000, LARGE])
def test_the_gateway_knows_of_no_lease(objects: Objects, size: int) -> None:
    objects.write("/out/file", random_bytes(size))
    objects.signing.leased = False

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out/file", "file"))
        stager = objects.stager()
        with pytest.raises(LeaseLost):
            await stager.publish(prepared, lambda: 30.0)
        assert objects.stored_keys() == []
        objects.signing.leased = True
        await stager.publish(prepared, lambda: 30.0)

    anyio.run(run)
    assert objects.stored_keys() == ["file"]


def test_a_lease_that_ends_in_the_middle_of_a_body(objects: Objects) -> None:
    """The connection is ended, so that the store never has the whole body."""
    objects.write("/out/file", random_bytes(7 << 20))
    left = iter([30.0, 30.0, 30.0])
    with pytest.raises(LeaseLost):
        objects.put(objects.output("/out/file", "file"), lease=lambda: next(left, 0.0))
    assert objects.stored_keys() == []


def test_another_lease_goes_on_where_the_first_ended(objects: Objects) -> None:
    for index in range(20):
        objects.write(f"/out/{index}", b"%d" % index)
    ends = threading.Event()
    objects.proxy.before = lambda seen: ends.set() if len(objects.proxy.requests("PUT")) >= 8 else None

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out", "here", "DIRECTORY"))
        stager = objects.stager()
        with pytest.raises(LeaseLost):
            await stager.publish(prepared, lambda: 0.0 if ends.is_set() else 30.0)
        assert 0 < len(objects.stored_keys()) < 20
        await stager.publish(prepared, lambda: 30.0)

    anyio.run(run)
    assert len(objects.stored_keys()) == 20
    assert len(objects.proxy.requests("PUT")) < 30


@pytest.mark.parametrize("what", ["content", "replaced", "removed", "longer"])
@pytest.mark.parametrize("size", [10_000, LARGE])
def test_a_file_that_changes_before_it_is_published(objects: Objects, size: int, what: str) -> None:
    file = objects.write("/out/file", random_bytes(size))

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out/file", "file"))
        if what == "content":
            with file.open("r+b") as handle:
                handle.write(b"X")
        elif what == "replaced":
            other = objects.write("/other", random_bytes(size))
            other.rename(file)
        elif what == "longer":
            with file.open("ab") as handle:
                handle.write(b"X")
        else:
            file.unlink()
        with pytest.raises(StagingError, match="changed while it was stored") as caught:
            await objects.stager().publish(prepared, lambda: 30.0)
        assert caught.value.transient
        await objects.stager().discard(prepared)

    anyio.run(run)
    assert objects.stored_keys() == []
    assert objects.uploads() == []


# -- what breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slow", "error", "reset", "early", "lost", "flip"])
@pytest.mark.parametrize("size", [1000, 200_000, LARGE])
def test_a_fault_that_passes(objects: Objects, size: int, kind: str) -> None:
    if kind == "early" and size == 1000:
        size = 70_000
    data = random_bytes(size)
    objects.write("/out/file", data)
    fault = objects.fault(kind, method="PUT")
    objects.put(objects.output("/out/file", "file"))
    assert hashlib.sha256(objects.stored("file")).digest() == hashlib.sha256(data).digest()
    assert fault.times == 0


@pytest.mark.parametrize("objects", ["moto"], indirect=True)
@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_flipped_byte_is_found_where_the_store_checks_nothing(objects: Objects, size: int) -> None:
    """moto stores whatever comes; its ETag tells."""
    objects.signing.algorithm = None
    data = random_bytes(size)
    objects.write("/out/file", data)
    fault = objects.fault("flip", method="PUT")
    objects.put(objects.output("/out/file", "file"))
    assert hashlib.sha256(objects.stored("file")).digest() == hashlib.sha256(data).digest()
    assert fault.times == 0


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_fault_that_stays(objects: Objects, size: int) -> None:
    objects.write("/out/file", random_bytes(size))
    objects.fault("slow", method="PUT", times=-1)
    with pytest.raises(StagingError, match=r"503 SlowDown.*tried 4 times") as caught:
        objects.put(objects.output("/out/file", "file"))
    assert caught.value.transient
    assert "X-Amz" not in caught.value.sentence
    assert objects.uploads() == []


@pytest.mark.parametrize("size", [1000, LARGE])
def test_an_expired_request_is_asked_for_again(objects: Objects, size: int) -> None:
    objects.write("/out/file", random_bytes(size))
    fault = objects.fault("expired", method="PUT")
    objects.put(objects.output("/out/file", "file"))
    assert fault.times == 0
    assert objects.stored("file") == random_bytes(size)


@pytest.mark.parametrize("when", ["before its parts", "before its completion"])
def test_an_upload_that_is_gone(objects: Objects, when: str) -> None:
    objects.write("/out/file", random_bytes(LARGE))

    def gone(seen: Any) -> None:
        if isinstance(seen, AccessRequest) and not seen.complete:
            return
        objects.proxy.before = lambda seen: None
        key = objects.below + "file"
        (upload,) = [
            each
            for each in objects.straight.list_multipart_uploads(Bucket=objects.bucket)["Uploads"]
            if each["Key"] == key
        ]
        objects.straight.abort_multipart_upload(Bucket=objects.bucket, Key=key, UploadId=upload["UploadId"])

    if when == "before its parts":
        objects.proxy.before = gone
    else:
        objects.signing.before = gone
    with pytest.raises(StagingError, match="NoSuchUpload") as caught:
        objects.put(objects.output("/out/file", "file"))
    assert caught.value.transient


def test_names_that_are_no_keys(objects: Objects) -> None:
    directory = objects.attempt / "rw/out"
    directory.mkdir()
    with open(os.fsencode(directory) + b"/\xff", "wb"):
        pass
    with pytest.raises(StagingError, match="not UTF-8"):
        objects.put(objects.output("/out", "here", "DIRECTORY"))


@pytest.mark.parametrize("where", ["gateway", "store"])
def test_a_cancel_ends_it_at_once_and_leaves_no_upload(objects: Objects, where: str) -> None:
    objects.write("/out/file", random_bytes(LARGE))
    blocked, free = threading.Event(), threading.Event()
    if where == "gateway":

        def block(request: AccessRequest) -> None:
            if request.parts is not None and not blocked.is_set():
                blocked.set()
                free.wait(2)  # the upload is aborted by another question

        objects.signing.before = block
    else:
        objects.settings = replace(objects.settings, read_timeout=60.0)
        objects.fault("stall", method="PUT", at=0, times=-1)
        blocked = objects.proxy.held

    async def run() -> float:
        async with anyio.create_task_group() as group:
            group.start_soon(objects.prepare, objects.output("/out/file", "file"))
            assert await anyio.to_thread.run_sync(blocked.wait, 20)
            began = time.monotonic()
            group.cancel_scope.cancel()
        return time.monotonic() - began

    assert anyio.run(run) < 30  # of 60
    free.set()
    assert objects.stored_keys() == []
    assert objects.uploads() == []


def test_no_descriptor_is_left(objects: Objects) -> None:
    for index in range(20):
        objects.write(f"/out/{index}")
    objects.write("/out/large", random_bytes(LARGE))
    with no_more_descriptors():
        objects.put(objects.output("/out", "here", "DIRECTORY"))
