"""Who may ask about what: URLs of other tasks, encoded tricks, prefixes of callers, attempts that are over."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tesgate.config import S3Endpoint, S3Grant, S3Settings
from tesgate.errors import Gone
from tesgate.runner.access import AccessRequest, Completion, ListQuestion, PartsQuestion, StoreQuestion, Upload
from tesgate.storage.s3.urls import Location, UrlRefused, covers, parse
from tesgate.store.database import Database
from tests.beds.s3 import Servers
from tests.storage.s3_world import World, client_of, endpoint_of, made, new_bucket, send


@pytest_asyncio.fixture
async def room(database: Database, s3: Servers, monkeypatch: pytest.MonkeyPatch) -> Any:
    async with client_of(s3.seaweed) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        settings = S3Settings(endpoints=[endpoint_of(s3.seaweed, monkeypatch)])
        world = World(await made(database), s3.seaweed, client, bucket, settings)
        yield world
        await world.close()


def with_grants(world: World, *grants: S3Grant, **more: Any) -> None:
    old = world.settings.endpoints[0]
    world.settings = S3Settings(endpoints=[old.model_copy(update={"access": list(grants), **more})])
    world.__post_init__()


TRICKS = ["in2", "in/../secret", "in%2F..%2Fsecret", "in/%2e%2e/secret", "IN", "other", "", "in/./a", "i", "in%00"]


async def test_only_what_the_task_names_and_what_lies_below(room: World) -> None:
    await room.put("in/a", "secret", "in2", "IN", "other")
    ask = await room.task(inputs=[(room.url("in"), "DIRECTORY")], outputs=[room.url("in")], lease=True)
    for url in map(room.url, TRICKS):
        (found,) = (await ask(look=[url])).found
        assert found.fault is not None and found.fault.kind == "refused" and found.get is None, url
        page = (await ask(page=ListQuestion(url))).page
        assert page is not None and page.fault is not None and not page.objects, url
        answer = await ask(store=[StoreQuestion(url, 1)], begin=[Upload(url, size=1)])
        assert answer.faults[0] is not None and not answer.signed[0].url, url
        assert answer.uploads[0].fault is not None and not answer.uploads[0].id, url


async def test_inputs_are_not_written_and_outputs_not_read(room: World) -> None:
    await room.put("in", "out")
    ask = await room.task(inputs=[room.url("in")], outputs=[room.url("out")], lease=True)
    (found,) = (await ask(look=[room.url("out")])).found
    assert found.fault is not None
    answer = await ask(store=[StoreQuestion(room.url("in"), 1)])
    assert answer.faults[0] is not None
    answer = await ask(store=[StoreQuestion(room.url(key), 1) for key in ("out//x", "out/x//y", "out/x/y")])
    assert [fault is None for fault in answer.faults] == [False, False, True]
    # The same name, spelled otherwise, is the same object.
    (found,) = (await ask(look=[f"S3://{room.bucket}/%69n"])).found
    assert found.fault is None


async def test_below_a_file_lies_nothing_unless_it_is_a_directory(room: World) -> None:
    await room.put("file", "file/below", "tree/below")
    ask = await room.task(inputs=[room.url("file"), room.url("tree")])
    file, below, tree, leaf = (
        await ask(look=[room.url("file"), room.url("file/below"), room.url("tree"), room.url("tree/below")])
    ).found
    assert (file.kind, file.fault, tree.kind, leaf.kind, leaf.fault) == ("file", None, "directory", "file", None)
    assert below.fault is not None and "file" in below.fault.sentence


async def test_prefixes_by_owner_group_and_everybody(room: World) -> None:
    b = room.bucket
    with_grants(
        room,
        S3Grant(read=[f"{b}/public/"]),
        S3Grant(who=["alice"], read=[f"{b}/home/{{owner}}/"], write=[f"{b}/home/{{owner}}/out*"]),
        S3Grant(who=["bob"], read=["*"], write=["*"]),
        S3Grant(who=["group:lab"], read=["*"]),
    )
    await room.put("public/a", "home/alice/a", "home/alice2/a", "home/bob/a")
    names = ["public/a", "home/alice/a", "home/alice2/a", "home/bob/a", "public", "home"]
    ask = await room.task(inputs=[room.url(name) for name in names], outputs=[room.url("home/")], lease=True)
    found = (await ask(look=[room.url(name) for name in names])).found
    assert [one.fault is None for one in found] == [True, True, False, False, True, False]
    assert found[2].fault is not None and "alice" in found[2].fault.sentence
    puts = ["home/alice/out/x", "home/alice/out2", "home/alice/in", "home/bob/out"]
    answer = await ask(store=[StoreQuestion(room.url(name), 1) for name in puts])
    assert [fault is None for fault in answer.faults] == [True, True, False, False]


async def test_nothing_configured_says_what_to_configure(room: World) -> None:
    room.settings = S3Settings()
    room.__post_init__()
    ask = await room.task(inputs=[room.url("a"), "gs://bucket/a"], outputs=[room.url("out")])
    for found in (await ask(look=[room.url("a"), "gs://bucket/a"])).found:
        assert found.fault is not None and found.fault.kind == "refused" and "s3.endpoints" in found.fault.sentence
    with_bucket = S3Endpoint(name="some", buckets=["lab-*", "data/shared/"])
    room.settings = S3Settings(endpoints=[with_bucket])
    room.__post_init__()
    (found,) = (await ask(look=[room.url("a")])).found
    assert found.fault is not None and "buckets" in found.fault.sentence


async def test_uploads_of_others_are_nobodys(room: World) -> None:
    url = room.url("out/x")
    one = await room.task(outputs=[room.url("out")], lease=True)
    other = await room.task(outputs=[room.url("out")], lease=True)
    (upload,) = (await one(begin=[Upload(url, size=7)])).uploads
    assert (await other(begin=[Upload(url, id=upload.id)])).uploads[0].fault is not None
    assert (await other(parts=PartsQuestion(url, upload.id, [1]))).faults[0] is not None
    assert (await other(complete=[Completion(url, upload.id, ['"e"'], size=7)])).completions[0].fault is not None
    assert (await other(abort=[Upload(url, id=upload.id)])).uploads[0].fault is None
    # It is still there, and another URL of its own task does not lead to it.
    assert (await one(begin=[Upload(url, id=upload.id)])).uploads[0].fault is None
    assert (await one(parts=PartsQuestion(room.url("out/y"), upload.id, [1]))).faults[0] is not None
    assert (await one(abort=[Upload(url, id=upload.id)])).uploads[0].fault is None
    (gone,) = (await one(begin=[Upload(url, id=upload.id)])).uploads
    assert gone.fault is not None and gone.fault.kind == "missing"
    assert (await one(abort=[Upload(url, id=upload.id)])).uploads[0].fault is None


async def test_an_attempt_that_is_over_or_not_this_runners_is_told_nothing(room: World) -> None:
    ask = await room.task(inputs=[room.url("a")])
    with pytest.raises(Gone):
        await room.service.answer(ask.task_id, 1, AccessRequest(instance="agent2", look=[room.url("a")]))
    await room.rows.close(ask.task_id, ask.number, "failed", instance="agent1")
    with pytest.raises(Gone):
        await ask(look=[room.url("a")])


async def test_a_lease_that_ended_is_none(room: World) -> None:
    ask = await room.task(outputs=[room.url("out")], lease=True)
    await ask.lease_ends()
    answer = await ask(store=[StoreQuestion(room.url("out"), 1)])
    assert answer.faults[0] is not None and answer.faults[0].kind == "lease"
    said = room.rows.words(started=True)
    await room.rows.attempts.publish(ask.task_id, ask.number, said, timedelta(seconds=20))
    answer = await ask(store=[StoreQuestion(room.url("out"), 1)])
    assert not answer.faults and answer.signed[0].expires_in <= 17


async def test_a_put_is_of_one_object_and_of_what_was_signed(room: World) -> None:
    with_grants(room, request_checksum="crc32")
    ask = await room.task(outputs=[room.url("out")], lease=True)
    answer = await ask(store=[StoreQuestion(room.url("out"), 3, {"crc32": "NSRBwg=="})])  # of b"abc"
    assert send(answer.signed[0], b"xyz")[0] == 400
    assert send(answer.signed[0], b"abc")[0] == 200
    answer.signed[0].url = answer.signed[0].url.replace("/out?", "/out2?")
    assert send(answer.signed[0], b"abc")[0] == 403


def test_urls_are_decoded_once() -> None:
    assert parse("s3://bucket/a%2520b%2Fc?d#e") == Location("s3", "bucket", "a%20b/c?d#e")
    assert parse("s3://bucket/a+b 100%") == Location("s3", "bucket", "a+b 100%")
    assert parse(Location("s3", "bucket", "ü %25/x?#").url()) == Location("s3", "bucket", "ü %25/x?#")
    for wrong in (
        "s3://",
        "s3:///x",
        "s3://b%2fc/x",
        "s3://b/../c/x",
        "s3://bucket/%ff",
        "s3://u@bucket/x",
        "s3://b:1/x",
    ):
        with pytest.raises(UrlRefused):
            parse(wrong)


def test_words_of_grants_are_replaced_at_once() -> None:
    words = {"owner": "{group}", "group": "lab"}
    assert not covers(["bucket/{owner}/"], "bucket", "lab/x", words)
    assert covers(["bucket/{owner}/"], "bucket", "{group}/x", words)
    assert covers(["bucket/{group}/{owner}"], "bucket", "lab/{group}", words)


@pytest.mark.parametrize("owner", ["", "..", "a/b", "*", None])
def test_odd_owners_cover_nothing(owner: str | None) -> None:
    assert not covers(["bucket/{owner}/", "bucket/{owner}*"], "bucket", f"{owner}/x", {"owner": owner})
