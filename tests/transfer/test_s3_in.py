"""Inputs from two real S3 servers: objects, directories, ranges, hostile names, and what breaks on the way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from tesgate.runner.access import AccessRequest, Found
from tesgate.runner.plan import Input
from tesgate.runner.transfer import s3object, s3source
from tesgate.runner.transfer.faults import StagingError
from tesgate.runner.transfer.s3sums import sum_of
from tests.beds.s3 import FURTHER
from tests.transfer.http_server import Misbehaving
from tests.transfer.s3_bed import Objects, random_bytes

BOTH = pytest.mark.parametrize("objects", ["seaweed", "moto", *FURTHER], indirect=True)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Fail where files or sockets stay open. The proxy's own, in this process, end when it sees that ours have."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    deadline = time.monotonic() + 60
    while (now := len(os.listdir("/proc/self/fd"))) > before:
        assert time.monotonic() < deadline, (before, now)
        time.sleep(0.02)


@BOTH
def test_one_object(objects: Objects) -> None:
    data = objects.store("a b/ü+%41.bin", random_bytes(70_000))
    staged = objects.stage("a b/ü+%41.bin", writable=True)
    assert staged.read_bytes() == data
    assert staged.stat().st_mode & 0o777 == 0o666
    assert objects.notes == []


def test_an_empty_object_and_a_missing_one(objects: Objects) -> None:
    objects.store("empty", b"")
    assert objects.stage("empty").read_bytes() == b""
    with pytest.raises(StagingError, match="does not exist") as caught:
        objects.stage("nothing")
    assert not caught.value.transient


@BOTH
def test_a_large_object_comes_in_ranges(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3object, "RANGE", 1 << 20)
    data = objects.store("large", random_bytes((5 << 20) + 17))
    assert objects.stage("large").read_bytes() == data
    ranges = {seen.range for seen in objects.proxy.requests("GET", "/large$")}
    assert len(ranges) == 6
    assert "bytes=5242880-5242896" in ranges
    assert all(seen.match for seen in objects.proxy.requests("GET", "/large$"))


@BOTH
def test_a_directory_of_several_pages(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3source, "PAGE", 7)
    expected = {f"d{index % 3}/{index:02}": b"%d" % index for index in range(20)} | {"ä b/%/+&=": b"strange"}
    for name, data in expected.items():
        objects.store("some/" + name, data)
    objects.store("some/hollow/", b"")
    objects.store("someone", b"else")
    staged = objects.stage("some", type="DIRECTORY")
    found = {str(path.relative_to(staged)): path.read_bytes() for path in staged.rglob("*") if path.is_file()}
    assert found == expected
    assert (staged / "hollow").is_dir()
    assert objects.signing.asked.count("page") == 4


def test_a_file_that_is_a_directory_and_the_reverse(objects: Objects) -> None:
    """Nextflow declares directories as FILE."""
    objects.store("some/thing", b"1")
    assert (objects.stage("some") / "thing").read_bytes() == b"1"
    with pytest.raises(StagingError, match="declare it as a FILE"):
        objects.stage("some/thing", type="DIRECTORY")


@pytest.mark.parametrize(
    "key", ["x/../../y", "x/./y", "x//y", "/abs", "x/" + "n" * 256, "x/\0y", "..", "x/..", "ok/../up"]
)
def test_keys_that_are_no_file_names(objects: Objects, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers refuse some of these; a hostile one would list them."""
    objects.store("some/ok", b"1")
    page = objects.signing.page

    def hostile(*arguments: Any) -> Any:
        answer = page(*arguments)
        answer.names[0] = key
        return answer

    monkeypatch.setattr(objects.signing, "page", hostile)
    with pytest.raises(StagingError, match="no file can be called so"):
        objects.stage("some", type="DIRECTORY")
    assert not [path for path in objects.attempt.rglob("*") if path.is_file()]


@pytest.mark.parametrize("names", [["x", "x-", "x/y"], ["x/", "x"], ["x", "x/"]])
def test_a_name_that_is_a_file_and_a_directory(
    objects: Objects, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        objects.store(f"some/{index}", b"1")
    page = objects.signing.page

    def both(*arguments: Any) -> Any:
        answer = page(*arguments)
        answer.names, answer.objects = names, answer.objects[: len(names)]
        return answer

    monkeypatch.setattr(objects.signing, "page", both)
    with pytest.raises(StagingError, match="both as an object and as a directory"):
        objects.stage("some", type="DIRECTORY")


def test_inputs_are_looked_at_together(objects: Objects) -> None:
    for index in range(30):
        objects.store(f"n/{index}", b"%d" % index)
    inputs = [Input(f"/d/{index}", f"ro/d/{index}", url=objects.url(f"n/{index}")) for index in range(30)]
    objects.stage_all(*inputs)
    assert [(objects.attempt / f"ro/d/{index}").read_bytes() for index in range(30)] == [b"%d" % i for i in range(30)]
    assert objects.signing.asked == ["look"]


def test_requests_beyond_those_that_are_held_are_asked_for_again(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3source, "KEPT_SIGNED", 4)
    for index in range(12):
        objects.store(f"n/{index}", b"%d" % index)
    inputs = [Input(f"/d/{index}", f"ro/d/{index}", url=objects.url(f"n/{index}")) for index in range(12)]
    objects.stage_all(*inputs)
    assert [(objects.attempt / f"ro/d/{index}").read_bytes() for index in range(12)] == [b"%d" % i for i in range(12)]
    assert objects.signing.asked[0] == "look"
    assert 2 <= len(objects.signing.asked) <= 8


# -- what breaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slow", "error", "reset", "cut", "stall", "short", "long", "flip"])
def test_a_fault_that_passes(objects: Objects, kind: str) -> None:
    data = objects.store("thing", random_bytes(100_000))
    fault = objects.fault(kind, path="/thing$", at=30_000)
    assert objects.stage("thing").read_bytes() == data
    assert fault.times == 0


def test_a_cut_download_goes_on_where_it_stopped(objects: Objects) -> None:
    data = objects.store("thing", random_bytes(400_000))
    objects.fault("cut", path="/thing$", at=150_000)
    assert objects.stage("thing").read_bytes() == data
    first, second = objects.proxy.requests("GET", "/thing$")
    assert first.range == ""
    begin = int(second.range.removeprefix("bytes=").partition("-")[0])
    assert 0 < begin <= 150_000


def test_a_drip_is_not_waited_for(objects: Objects) -> None:
    data = objects.store("thing", random_bytes(100_000))
    objects.fault("drip", path="/thing$", at=100)
    assert objects.stage("thing").read_bytes() == data
    assert len(objects.proxy.requests("GET", "/thing$")) == 2


def test_a_fault_that_stays(objects: Objects) -> None:
    objects.store("thing", b"1")
    objects.fault("slow", path="/thing$", times=-1)
    with pytest.raises(StagingError, match=r"503 SlowDown.*tried 4 times") as caught:
        objects.stage("thing")
    assert caught.value.transient
    assert "X-Amz" not in caught.value.sentence


def test_the_server_says_when(objects: Objects) -> None:
    objects.store("thing", b"1")
    objects.fault("slow", path="/thing$", retry_after="1")
    began = time.monotonic()
    objects.stage("thing")
    assert time.monotonic() - began >= 1


def test_a_byte_that_is_always_wrong(objects: Objects) -> None:
    objects.store("thing", random_bytes(5000))
    objects.fault("flip", path="/thing$", times=-1)
    with pytest.raises(StagingError, match="does not match its checksum") as caught:
        objects.stage("thing")
    assert caught.value.transient


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA1", "SHA256"])
def test_a_flipped_byte_is_found_by_each_checksum(
    objects: Objects, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3object, "RANGE", 1 << 20)
    data = random_bytes((2 << 20) + 5)
    known = sum_of(algorithm.lower())
    known.update(data)
    objects.store("thing", data, **{f"Checksum{algorithm}": known.base64()})
    found = objects.signing.look(objects.url("thing")).checksum
    assert algorithm.lower() in found
    monkeypatch.setattr(s3object, "best_of", lambda known: (algorithm.lower(), known[algorithm.lower()]))
    objects.fault("flip", path="/thing$", skip=1)
    assert objects.stage("thing").read_bytes() == data
    assert len(objects.proxy.requests("GET", "/thing$")) == 6


def test_an_expired_request_is_asked_for_again(objects: Objects) -> None:
    """SeaweedFS itself refuses: the answer claims a longer life than the signature has."""
    data = objects.store("thing", random_bytes(5000))
    objects.signing.expires, objects.signing.claimed = 1, 300.0
    objects.settings = replace(objects.settings, read_timeout=20.0)
    waited = False

    def late(seen: Any) -> None:
        nonlocal waited
        if not waited:
            waited = True
            time.sleep(2.1)
            objects.signing.expires = 300

    objects.proxy.before = late
    assert objects.stage("thing").read_bytes() == data
    assert objects.signing.asked == ["look", "look"]


def test_a_request_that_is_never_taken(objects: Objects) -> None:
    objects.store("thing", b"1")
    objects.fault("expired", path="/thing$", times=-1)
    with pytest.raises(StagingError, match="403 AccessDenied") as caught:
        objects.stage("thing")
    assert not caught.value.transient
    assert objects.signing.asked.count("look") == 3


def test_another_endpoint_is_not_followed(objects: Objects) -> None:
    objects.store("thing", b"1")
    fault = objects.fault("elsewhere", path="/thing$")
    with pytest.raises(StagingError, match="check the endpoint and region"):
        objects.stage("thing")
    assert fault.times == 0


def test_an_object_that_is_replaced_while_it_is_read(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3object, "RANGE", 1 << 20)
    monkeypatch.setattr(s3object, "WIDTH", 1)
    objects.store("thing", random_bytes(3 << 20))
    other = random_bytes((3 << 20) + 1)

    def put_another(seen: Any) -> None:
        if seen.range.startswith("bytes=1048576"):
            objects.proxy.before = lambda seen: None
            objects.store("thing", other)

    objects.proxy.before = put_another
    assert objects.stage("thing").read_bytes() == other


def test_an_object_that_vanishes_from_a_directory(objects: Objects) -> None:
    for index in range(4):
        objects.store(f"some/{index}", b"1")

    def remove(seen: Any) -> None:
        objects.remove("some/2")

    objects.proxy.before = remove
    with pytest.raises(StagingError, match="somebody removed it") as caught:
        objects.stage("some", type="DIRECTORY")
    assert caught.value.transient


def test_a_listing_that_goes_in_circles(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    objects.store("some/1", b"1")
    page = objects.signing.page

    def same(url: str, after: str | None, limit: int) -> Any:
        answer = page(url, None, limit)
        answer.after = "again"
        return answer

    monkeypatch.setattr(objects.signing, "page", same)
    with pytest.raises(StagingError, match="does not come to its end"):
        objects.stage("some", type="DIRECTORY")


def test_a_gateway_that_is_away_is_waited_for(objects: Objects) -> None:
    objects.store("thing", b"1")
    objects.signing.away = 3
    assert objects.stage("thing").read_bytes() == b"1"


@pytest.mark.parametrize("where", ["gateway", "store"])
def test_a_cancel_ends_it_at_once(objects: Objects, where: str) -> None:
    objects.store("thing", random_bytes(100_000))
    blocked, free = threading.Event(), threading.Event()
    if where == "gateway":

        def block(request: AccessRequest) -> None:
            blocked.set()
            free.wait(30)

        objects.signing.before = block
    else:
        objects.settings = s3object.HttpSettings(read_timeout=60.0)
        objects.fault("stall", path="/thing$")
        blocked = objects.proxy.held

    async def run() -> float:
        item = Input("/data/thing", "ro/data/thing", url=objects.url("thing"))
        async with anyio.create_task_group() as group:
            group.start_soon(objects.stager([item]).stage_in, [item], str(objects.attempt))
            assert await anyio.to_thread.run_sync(blocked.wait, 20)
            began = time.monotonic()
            group.cancel_scope.cancel()
        return time.monotonic() - began

    assert anyio.run(run) < 20  # of 30 or 60
    free.set()


def test_no_descriptor_is_left(objects: Objects) -> None:
    for index in range(40):
        objects.store(f"some/{index % 20}/{index}", b"1")
    with no_more_descriptors():
        objects.stage("some", type="DIRECTORY")


# -- where DRS leads -----------------------------------------------------------------------------------------------


def elsewhere(objects: Objects, monkeypatch: pytest.MonkeyPatch, there: str, data: bytes, **more: Any) -> None:
    """Have ``drs://here/x`` lead to `there`."""
    known = sum_of("md5")
    known.update(data)
    found = Found("drs://here/x", "elsewhere", len(data), None, {"md5": known.base64()}, None, there, **more)
    monkeypatch.setattr(objects.signing, "look", lambda url: found)


def stage_drs(objects: Objects) -> bytes:
    objects.stage_all(Input("/data/thing", "ro/data/thing", url="drs://here/x"))
    return (objects.attempt / "ro/data/thing").read_bytes()


def test_drs_leads_to_the_web(objects: Objects, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    server.body = b"hello"
    elsewhere(objects, monkeypatch, server.url + "?signed", b"hello", headers={"authorization": "Bearer of-the-url"})
    assert stage_drs(objects) == b"hello"
    assert server.requests[0]["authorization"] == "Bearer of-the-url"


@pytest.mark.parametrize("body", [b"hallo", b"hello!"])
def test_what_drs_announced_is_compared(
    objects: Objects, server: Misbehaving, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    server.body = body
    elsewhere(objects, monkeypatch, server.url + "?signed=secret", b"hello")
    with pytest.raises(StagingError, match=r"does not match|were announced") as caught:
        stage_drs(objects)
    assert "secret" not in caught.value.sentence


def test_drs_leads_to_what_is_not_served(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(objects, monkeypatch, "htsget://x/y", b"")
    with pytest.raises(StagingError, match="use another access method"):
        stage_drs(objects)
