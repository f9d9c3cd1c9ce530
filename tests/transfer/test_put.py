"""Outputs by PUT to a real server that misbehaves: what it gets, what is said, and what a lease does not cover."""

from __future__ import annotations

import hashlib
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tesgate.runner.plan import Output, UrlPolicy
from tesgate.runner.transfer.connect import HttpSettings
from tesgate.runner.transfer.stage import LeaseLost, StagingError
from tesgate.runner.transfer.threads import Stop
from tesgate.storage.s3.store import ObjectStore
from tests.beds.s3 import Server, Servers
from tests.storage.s3_world import endpoint_of, new_bucket
from tests.transfer.conftest import Bed
from tests.transfer.put_server import Storing, put_server


@pytest.fixture
def web() -> Iterator[Storing]:
    with put_server() as running:
        yield running


def fails(bed: Bed, url: str, match: str, *, transient: bool = False, **more: Any) -> str:
    bed.write("/work/out.txt", "hello")
    with pytest.raises(StagingError, match=match) as caught:
        bed.store(Output("/work/out.txt", url), **more)
    assert caught.value.transient is transient
    return caught.value.sentence


def test_a_file_is_stored(bed: Bed, web: Storing) -> None:
    bed.write("/work/out.txt", "hello")
    bed.write("/work/empty", "")
    files = bed.store(Output("/work/out.txt", f"{web.url}/a%20b/o.txt"), Output("/work/empty", f"{web.url}/into/"))
    assert web.files == {"/a%20b/o.txt": b"hello", "/into/empty": b""}
    assert {(file.url, file.path, file.size_bytes) for file in files} == {
        (f"{web.url}/a%20b/o.txt", "/work/out.txt", 5),
        (f"{web.url}/into/empty", "/work/empty", 0),
    }
    (request,) = [request for request in web.requests if request["path"] == "/a%20b/o.txt"]
    assert request["content-length"] == "5"
    assert not request.keys() & {"content-type", "transfer-encoding", "authorization"}


def test_nothing_is_sent_before_publish(bed: Bed, web: Storing) -> None:
    bed.write("/work/out.txt", "hello")
    prepared = bed.prepare(Output("/work/out.txt", f"{web.url}/x"))
    assert (web.requests, prepared.temporaries, prepared.empty) == ([], [], False)
    with pytest.raises(LeaseLost):
        bed.publish(prepared, lambda: 0.0)
    assert web.requests == []
    bed.publish(prepared)
    assert web.files == {"/x": b"hello"}


def test_directories_and_wildcards_are_one_put_for_each_file(bed: Bed, web: Storing) -> None:
    for name in ("d/a b?.txt", "d/sub/ü%", "d/sub/deep/x", "p1.txt", "p2.txt", "q"):
        bed.write(f"/work/{name}", name)
    (bed.rw / "work/d/nothing").mkdir()
    bed.store(
        Output("/work/d", f"{web.url}/out/", "DIRECTORY"),
        Output("/work/p?.txt", f"{web.url}/globbed?token=t%2Fx#part", path_prefix="/work"),
    )
    assert {path: body.decode() for path, body in web.files.items()} == {
        "/out/a%20b%3F.txt": "d/a b?.txt",
        "/out/sub/%C3%BC%25": "d/sub/ü%",
        "/out/sub/deep/x": "d/sub/deep/x",
        "/globbed/p1.txt?token=t%2Fx": "p1.txt",
        "/globbed/p2.txt?token=t%2Fx": "p2.txt",
    }


def test_a_presigned_url_is_used_as_it_is_and_its_query_shown_to_nobody(bed: Bed, web: Storing) -> None:
    bed.write("/work/out.txt", "hello")
    url = f"{web.url}/bucket/key?X-Amz-Signature=abc/def%2B&X-Amz-Expires=60/"
    assert [file.url for file in bed.store(Output("/work/out.txt", url))] == [url]
    assert list(web.files) == ["/bucket/key?X-Amz-Signature=abc/def%2B&X-Amz-Expires=60/"]
    web.statuses, web.body = [403], b"<Error><Code>SignatureDoesNotMatch</Code><Key>abc/def</Key></Error>"
    sentence = fails(bed, url, r"403 Forbidden \(SignatureDoesNotMatch\)")
    assert "abc/def" not in sentence
    assert "?…" in sentence


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "other credentials"),
        (403, "not allowed"),
        (404, "no such place"),
        (405, "does not take files by PUT"),
        (409, "directory above it"),
        (411, "length"),
        (413, "too large"),
        (303, "303 See Other; that is no way"),
        (307, "307 Temporary Redirect; that is no way"),
        (418, "418"),
    ],
)
def test_each_refusal_is_one_sentence_and_final(bed: Bed, web: Storing, status: int, words: str) -> None:
    for moment in (web.early, web.statuses):
        moment.append(status)
        web.requests.clear()
        sentence = fails(bed, f"http://me:secret@127.0.0.1:{web.port}/x?y=z", words)
        assert len(web.requests) == 1
        assert sentence.count("/work/out.txt") == 1
        assert "secret" not in sentence
        assert "y=z" not in sentence


def test_passing_faults_are_tried_again_with_the_whole_body(bed: Bed, web: Storing) -> None:
    web.statuses, web.cuts, web.early = [503, 429, 500], 2, [503]
    web.headers = {"Retry-After": "0"}
    data = bytes(range(256)) * 4096
    bed.write("/work/out.txt").write_bytes(data)
    bed.http = bed.http.__class__(**{**bed.http.__dict__, "tries": 8})
    bed.store(Output("/work/out.txt", f"{web.url}/x"))
    assert web.files == {"/x": data}
    assert len(web.requests) == 7


def test_faults_that_do_not_pass_fail_the_attempt(bed: Bed, web: Storing) -> None:
    web.statuses = [503] * 6
    fails(bed, f"{web.url}/x", "503 Service Unavailable .tried 6 times", transient=True)


def test_redirects_are_followed_with_the_body_again(bed: Bed, web: Storing) -> None:
    web.redirects = {"/x": (307, "/y?z"), "/y?z": (308, f"{web.url}/end")}
    bed.write("/work/out.txt", "hello")
    bed.store(Output("/work/out.txt", f"{web.url}/x"))
    assert web.files == {"/end": b"hello"}


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://127.0.0.1/x", "redirects to ftp:"),
        ("http://169.254.169.254/x", "cloud metadata"),
        ("/x", "more than 10"),
    ],
)
def test_redirects_that_are_refused(bed: Bed, web: Storing, location: str, words: str) -> None:
    web.redirects = {"/x": (307, location)}
    fails(bed, f"{web.url}/x", words)


def test_the_address_policy_holds_for_outputs(bed: Bed, web: Storing) -> None:
    bed.policy = UrlPolicy()
    fails(bed, f"{web.url}/x", "loopback address; an administrator can allow it")
    assert web.requests == []


@pytest.mark.parametrize("url", ["http://", "https:///x", "http:x", "https://@/x"])
def test_a_url_without_host_is_refused_before_anything_runs(bed: Bed, url: str) -> None:
    with pytest.raises(StagingError, match="names no host"):
        bed.stager().check([], [Output("/work/out.txt", url)])


def test_named_credentials_stay_at_their_own_origin(bed: Bed, web: Storing) -> None:
    asked: list[str] = []

    def headers_for(url: str, stop: Stop) -> dict[str, str]:
        asked.append(url)
        return {"X-Token": "secret"}

    with put_server() as other:
        web.redirects = {"/x": (307, "/same"), "/same": (307, f"{other.url}/there")}
        other.redirects = {"/there": (307, f"{web.url}/back")}
        bed.write("/work/out.txt", "hello")
        bed.store(Output("/work/out.txt", f"{web.url}/x", login=True), headers_for=headers_for)
        assert asked == [f"{web.url}/x"]
        assert [(r["path"], r.get("x-token")) for r in web.requests] == [
            ("/x", "secret"),
            ("/same", "secret"),
            ("/back", None),
        ]
        assert [r.get("x-token") for r in other.requests] == [None]
        assert web.files == {"/back": b"hello"}


def test_a_lease_that_runs_out_cuts_the_body_off(bed: Bed, web: Storing) -> None:
    """Nothing becomes visible; under another lease it is sent whole."""
    left = [30.0]
    web.during = lambda: left.__setitem__(0, 0.0)
    data = bytes(32 << 20)  # more than all buffers on the way hold
    bed.write("/work/out.bin").write_bytes(data)
    prepared = bed.prepare(Output("/work/out.bin", f"{web.url}/x"))
    with pytest.raises(LeaseLost):
        bed.publish(prepared, lambda: left[0])
    assert web.files == {}
    web.during, left[0] = None, 30.0
    bed.publish(prepared, lambda: left[0])
    assert web.files == {"/x": data}


def test_a_file_that_changes_meanwhile_is_not_completed(bed: Bed, web: Storing) -> None:
    file = bed.write("/work/out.bin")
    file.write_bytes(bytes(32 << 20))
    changed = threading.Event()

    def change() -> None:
        with file.open("r+b") as handle:
            handle.truncate(1000)
        changed.set()

    web.during = change
    with pytest.raises(StagingError, match="changed while it was stored") as caught:
        bed.store(Output("/work/out.bin", f"{web.url}/x"))
    assert caught.value.transient
    assert changed.wait(10)
    assert web.files == {}


def test_a_cancel_cuts_the_body_off(bed: Bed, web: Storing) -> None:
    bed.write("/work/out.bin").write_bytes(bytes(32 << 20))
    halfway, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        halfway.set()
        let_go.wait(30)

    web.during = hold
    prepared = bed.prepare(Output("/work/out.bin", f"{web.url}/x"))

    async def run() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(bed.stager().publish, prepared, lambda: 30.0)
            await anyio.to_thread.run_sync(halfway.wait, 30)
            group.cancel_scope.cancel()

    try:
        anyio.run(run)
    finally:
        let_go.set()
    assert web.files == {}


def test_a_large_file_is_never_in_memory(bed: Bed, web: Storing) -> None:
    web.digest = True
    size = 64 << 20
    file = bed.write("/work/out.bin", "")
    with file.open("r+b") as handle:
        handle.truncate(size)
        handle.seek(size - 3)
        handle.write(b"end")
    tracemalloc.start()
    try:
        bed.store(Output("/work/out.bin", f"{web.url}/x"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert web.digests == {"/x": hashlib.sha256(bytes(size - 3) + b"end").hexdigest()}
    assert peak < 24 << 20


@pytest.mark.parametrize("name", ["seaweed", "moto"])
def test_a_presigned_put_of_a_real_store(bed: Bed, s3: Servers, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The query is the signature; with a wrong one the store's own word is in the sentence, and nothing else of it."""
    server: Server = getattr(s3, name)
    bucket = new_bucket()

    async def made() -> tuple[str, Any]:
        store = ObjectStore(endpoint_of(server, monkeypatch))
        try:
            await store.call("create_bucket", bucket)
            async with store.signer(bucket) as signer:
                url = signer.sign("PUT", "a key/ü.txt", span=600.0).url
            bed.write("/work/out.txt", "hello")
            await bed.stager().publish(
                await bed.stager().prepare_outputs([Output("/work/out.txt", url)], [], str(bed.attempt), "tg-x-1"),
                lambda: 30.0,
            )
            answer = await store.call("get_object", bucket, Key="a key/ü.txt")
            async with answer["Body"] as body:
                return url, await body.read()
        finally:
            await store.close()

    url, stored = anyio.run(made)
    assert stored == b"hello"
    if server.checks:
        sentence = fails(bed, url.replace("X-Amz-Signature=", "X-Amz-Signature=0"), r"403 Forbidden \(Signature")
        assert "X-Amz" not in sentence


def test_named_credentials_go_with_what_braces_match(bed: Bed, web: Storing) -> None:
    bed.write("/work/a.txt", "a")
    bed.write("/work/b.txt", "b")
    asked: list[str] = []

    def headers_for(url: str, stop: Stop) -> dict[str, str]:
        asked.append(url)
        return {"X-Token": "secret"}

    url = f"{web.url}/dir/{{a,b}}.txt"
    bed.store(Output("/work/{a,b}.txt", url, login=True), headers_for=headers_for)
    assert web.files == {"/dir/a.txt": b"a", "/dir/b.txt": b"b"}
    assert [request.get("x-token") for request in web.requests] == ["secret"] * 2
    assert set(asked) == {url}


def test_a_server_that_stops_reading_is_not_waited_for_beyond_the_lease(bed: Bed, web: Storing) -> None:
    given_up = threading.Event()
    read_on: list[bool] = []
    web.during = lambda: read_on.append(given_up.wait(20))
    bed.http = HttpSettings(read_timeout=600.0, first_pause=0.01)
    bed.write("/work/out.bin").write_bytes(bytes(32 << 20))  # more than all buffers on the way hold
    prepared = bed.prepare(Output("/work/out.bin", f"{web.url}/x"))
    end = time.monotonic() + 0.7
    with pytest.raises(LeaseLost):
        bed.publish(prepared, lambda: end - time.monotonic())
    assert read_on == []
    given_up.set()
    assert web.files == {}
