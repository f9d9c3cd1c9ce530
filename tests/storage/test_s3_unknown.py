"""Uploads of which nobody heard, and those of earlier attempts: what is aborted, and what is never touched."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import anyio
import pytest
import pytest_asyncio

from tesgate.config import S3Settings
from tesgate.control.held import Trust
from tesgate.control.orphans import OrphanSweeper
from tesgate.runner.access import Completion, PartsQuestion, StoreQuestion, Upload
from tesgate.storage.s3 import multiparts
from tesgate.storage.s3.urls import Location
from tesgate.store.database import Database
from tests.beds.s3 import Servers
from tests.storage.s3_proxy import Proxy, proxy_before
from tests.storage.s3_world import Asking, World, client_of, endpoint_of, made, new_bucket, send


@dataclass
class Lossy:
    """SeaweedFS behind a proxy."""

    world: World
    proxy: Proxy

    async def there(self) -> set[str]:
        answer = await self.world.client.list_multipart_uploads(Bucket=self.world.bucket)
        return {item["UploadId"] for item in answer.get("Uploads") or []}

    async def strange(self, key: str, *, parts: int = 0) -> str:
        """An upload of another program."""
        client, bucket = self.world.client, self.world.bucket
        upload = (await client.create_multipart_upload(Bucket=bucket, Key=key))["UploadId"]
        for number in range(1, parts + 1):
            await client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=b"x")
        return str(upload)

    async def sweep(self, quiet: timedelta = timedelta(0)) -> None:
        world = self.world
        sweeper = OrphanSweeper(
            uploads=world.uploads,
            endpoints=world.endpoints,
            replicas=world.rows.replicas,
            trust=Trust(holder=world.rows.holder, window=timedelta(seconds=60)),
            interval=timedelta(seconds=1),
            quiet=quiet,
        )
        assert not await sweeper.once()

    async def intentions(self) -> int:
        return await self.world.rows.database.fetchval("SELECT count(*) FROM upload_intention") or 0


@pytest_asyncio.fixture
async def lossy(database: Database, s3: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Lossy]:
    async with proxy_before(s3.seaweed.url) as proxy, client_of(s3.seaweed) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        through = endpoint_of(replace(s3.seaweed, url=proxy.url), monkeypatch, part_mb=5)
        world = World(await made(database), s3.seaweed, client, bucket, S3Settings(endpoints=[through]))
        yield Lossy(world, proxy)
        await world.close()


async def test_an_upload_whose_answer_was_lost_is_found_and_no_other(lossy: Lossy) -> None:
    world = lossy.world
    url = world.url("out/x")
    ask = await world.task(outputs=[url])
    lossy.proxy.lose_answer_to = "POST uploads"
    (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
    assert upload.fault is None and lossy.proxy.lose_answer_to is None
    orphans = await lossy.there() - {upload.id}
    assert len(orphans) == 1, "the request was repeated"
    others = {await lossy.strange("out/x", parts=1), await lossy.strange("out/xy"), await lossy.strange("out")}
    await lossy.sweep(timedelta(hours=1))
    assert await lossy.there() == {upload.id, *orphans, *others}, "it is waited for long enough"
    await lossy.sweep()
    assert await lossy.there() == {upload.id, *others}
    assert await lossy.intentions() == 0
    # What is known is begun without a trace.
    (second,) = (await ask(begin=[Upload(url, size=5)])).uploads
    assert second.fault is None and await lossy.intentions() == 0


async def test_an_upload_that_was_not_begun_at_that_moment_is_anothers(lossy: Lossy) -> None:
    world = lossy.world
    ask = await world.task(outputs=[world.url("out")])
    strange = await lossy.strange("out")
    for passed in ("1 hour", "-1 hour"):
        intention = await world.uploads.intend(ask.task_id, ask.number, world.server.name, world.bucket, "out")
        moved = "UPDATE upload_intention SET created_at = now() - $2::text::interval WHERE id = $1"
        await world.rows.database.execute(moved, intention, passed)
        await lossy.sweep(timedelta(hours=-2))
        assert await lossy.there() == {strange} and await lossy.intentions() == 0


async def test_a_beginning_that_takes_too_long_is_found(lossy: Lossy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has made it, and then our time was over: it is over at that very moment, however quick we are."""
    world = lossy.world
    url = world.url("out")
    ask = await world.task(outputs=[url])
    begin, begun = multiparts.begin, anyio.Event()
    spans: list[anyio.CancelScope] = []
    move_on_after = anyio.move_on_after

    def remembered(delay: float | None, shield: bool = False) -> anyio.CancelScope:
        scope = move_on_after(delay, shield=shield)
        if delay == multiparts.BEGIN_SPAN:
            spans.append(scope)
        return scope

    async def slow(*args: Any, **more: Any) -> Any:
        await begin(*args, **more)
        begun.set()
        (span,) = spans
        span.deadline = anyio.current_time()
        await anyio.sleep_forever()

    monkeypatch.setattr(multiparts, "begin", slow)
    monkeypatch.setattr(anyio, "move_on_after", remembered)
    (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
    assert upload.fault is not None and upload.fault.kind == "passing"
    assert begun.is_set()
    assert len(await lossy.there()) == 1
    assert await lossy.intentions() == 1
    await lossy.sweep()
    assert await lossy.there() == set() and await lossy.intentions() == 0


async def test_a_store_that_refuses_leaves_nothing_to_look_for(
    lossy: Lossy, s3: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = lossy.world
    reader = replace(s3.seaweed, access_key="reader", secret_key="reader-secret")
    world.settings = S3Settings(endpoints=[endpoint_of(reader, monkeypatch)])
    world.__post_init__()
    ask = await world.task(outputs=[world.url("out")])
    (upload,) = (await ask(begin=[Upload(world.url("out"), size=5)])).uploads
    assert upload.fault is not None and upload.fault.kind == "refused"
    assert await lossy.intentions() == 0


async def sent(ask: Asking, url: str, upload: Upload) -> list[str]:
    (signed,) = (await ask(parts=PartsQuestion(url, upload.id, [1]))).signed
    _, _, headers = await anyio.to_thread.run_sync(send, signed, b"hello")
    return [headers["etag"]]


async def further(ask: Asking) -> Asking:
    """The next attempt of the task, which runs."""
    rows = ask.world.rows
    await rows.close(ask.task_id, ask.number, "lost")
    await rows.lease_ends(ask.task_id)
    (given,) = [one for one in await rows.dispatch() if one.task_id == ask.task_id]
    await rows.attempts.acknowledge(given.agent_id, [(ask.task_id, given.number)])
    return Asking(ask.world, ask.task_id, given.number)


async def test_what_a_runner_aborts_stays_known_for_the_sweep(lossy: Lossy) -> None:
    url = lossy.world.url("out")
    ask = await lossy.world.task(outputs=[url])
    (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
    assert (await ask(abort=[Upload(url, id=upload.id)])).uploads[0].fault is None
    assert await lossy.there() == set()
    assert await lossy.world.uploads.get(ask.task_id, ask.number, [upload.id]), "a part may still be under way"


async def test_a_further_attempt_aborts_what_earlier_ones_began(lossy: Lossy) -> None:
    world = lossy.world
    url, other = world.url("out/x"), world.url("out/y")
    first = await world.task(outputs=[world.url("out")], lease=True)
    (old,) = (await first(begin=[Upload(url, size=5)])).uploads
    (elsewhere,) = (await first(begin=[Upload(other, size=5)])).uploads
    second = await further(first)
    (new,) = (await second(begin=[Upload(url, size=5)])).uploads
    assert new.fault is None and await lossy.there() == {new.id, elsewhere.id}
    # Its row stays: a part may still be under way, and it is aborted once more.
    assert await world.uploads.get(first.task_id, first.number, [old.id])
    # What is small now was large before.
    await second.take_lease()
    assert not (await second(store=[StoreQuestion(other, 5)])).faults
    assert await lossy.there() == {new.id}


async def test_a_completion_of_an_earlier_attempt_cannot_come_after_ours(lossy: Lossy) -> None:
    world = lossy.world
    url = world.url("out")
    first = await world.task(outputs=[url], lease=True)
    (old,) = (await first(begin=[Upload(url, size=5)])).uploads
    etags = await sent(first, url, old)
    second = await further(first)
    # As where the store was away when the second attempt began its own.
    lossy.proxy.slow_down = 8
    (new,) = (await second(begin=[Upload(url, size=5)])).uploads
    assert new.fault is not None and new.fault.kind == "passing"
    lossy.proxy.slow_down = 0
    row = (await world.uploads.get(first.task_id, first.number, [old.id]))[old.id]
    await world.uploads.completing(row)
    (new,) = (await second(begin=[Upload(url, size=5)])).uploads
    ours = await sent(second, url, new)
    await second.take_lease()
    (done,) = (await second(complete=[Completion(url, new.id, ours, size=5)])).completions
    assert done.done
    store = world.endpoints.named(world.server.name)
    assert store is not None
    with pytest.raises(Exception, match="NoSuchUpload"):
        await store.call(
            "complete_multipart_upload",
            world.bucket,
            Key="out",
            UploadId=old.id,
            MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etags[0]}]},
        )
    assert Location("s3", world.bucket, "out").url() == url
