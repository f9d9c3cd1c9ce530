"""Stores that are busy, keys that are wrong or rotate, clocks that differ, answers that are lost."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio

from tesgate.config import S3Endpoint, S3Settings
from tesgate.control.held import Trust
from tesgate.control.uploads import UploadSweeper
from tesgate.runner.access import Completion, ListQuestion, PartsQuestion, Signed, StoreQuestion, Upload
from tesgate.services.access import AccessService
from tesgate.services.drs import DrsAnswers
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import ObjectStore
from tesgate.store.database import Database
from tests.beds.s3 import Servers
from tests.storage.s3_proxy import Proxy, proxy_before
from tests.storage.s3_world import World, client_of, endpoint_of, made, new_bucket, send


@dataclass
class Broken:
    world: World
    proxy: Proxy

    def use(self, *endpoints: S3Endpoint, clock: Any = time.time, deadline: float = 120.0) -> None:
        world = self.world
        world.settings = S3Settings(endpoints=list(endpoints))
        world.__post_init__()
        world.endpoints = Endpoints(world.settings, clock=clock)
        world._open.append(world.endpoints)
        drs = DrsAnswers(world.resolver)
        world.service = AccessService(uploads=world.uploads, endpoints=world.endpoints, drs=drs, deadline=deadline)


async def sent(signed: Signed, body: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
    """The proxy runs here too."""
    return await anyio.to_thread.run_sync(send, signed, body)


@pytest_asyncio.fixture
async def broken(database: Database, s3: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Broken]:
    async with proxy_before(s3.seaweed.url) as proxy, client_of(s3.seaweed) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        through = endpoint_of(replace(s3.seaweed, url=proxy.url), monkeypatch)
        world = World(await made(database), s3.seaweed, client, bucket, S3Settings(endpoints=[through]))
        yield Broken(world, proxy)
        await world.close()


async def test_a_busy_store_is_asked_again_and_at_last_the_runner_is_told_to(broken: Broken) -> None:
    world, proxy = broken.world, broken.proxy
    await world.put("a")
    ask = await world.task(inputs=[world.url("a")])
    proxy.slow_down = 1
    (found,) = (await ask(look=[world.url("a")])).found
    assert found.fault is None and proxy.slow_down == 0
    proxy.slow_down = 10_000
    broken.use(*world.settings.endpoints, deadline=1.0)
    (found,) = (await ask(look=[world.url("a")])).found
    assert found.fault is not None and found.fault.kind == "passing"


async def test_wrong_keys_are_named_without_their_values_and_new_ones_taken_up(broken: Broken, tmp_path: Path) -> None:
    world = broken.world
    await world.put("a")
    file = tmp_path / "credentials"

    def write(key: str, secret: str) -> None:
        new = file.with_suffix(".new")
        new.write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n", "utf-8")
        new.rename(file)

    endpoint = S3Endpoint(name="some", url=broken.proxy.url, credentials_file=file, profile="lab")
    broken.use(endpoint)
    ask = await world.task(inputs=[world.url("a")])
    (found,) = (await ask(look=[world.url("a")])).found
    # The file may be just being renewed.
    assert found.fault is not None and str(file) in found.fault.sentence and found.fault.kind == "passing"
    for key, secret in (("nobody", "top-secret-1"), ("testing", "top-secret-2")):
        write(key, secret)
        (found,) = (await ask(look=[world.url("a")])).found
        assert found.fault is not None and found.fault.kind == "refused" and "key" in found.fault.sentence
        assert "top-secret" not in found.fault.sentence
    write("testing", "testing-secret")
    (found,) = (await ask(look=[world.url("a")])).found
    assert found.fault is None and found.get is not None
    assert (await sent(found.get))[0] == 200


async def test_an_account_that_may_not_write_says_so(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    world = broken.world
    await world.put("a")
    broken.use(endpoint_of(replace(world.server, access_key="reader", secret_key="reader-secret"), monkeypatch))
    ask = await world.task(
        inputs=[world.url("a"), "s3://no-such-bucket-at-all/x"], outputs=[world.url("out")], lease=True
    )
    found, none = (await ask(look=[world.url("a"), "s3://no-such-bucket-at-all/x"])).found
    assert found.fault is None and none.fault is not None and none.fault.kind == "missing"
    assert "bucket" in none.fault.sentence
    (upload,) = (await ask(begin=[Upload(world.url("out"), size=9)])).uploads
    assert upload.fault is not None and upload.fault.kind == "refused" and "denies" in upload.fault.sentence


async def test_public_buckets_are_read_without_keys_and_never_written(broken: Broken) -> None:
    world = broken.world
    try:
        await world.client.create_bucket(Bucket="public")
    except world.client.exceptions.ClientError:
        pass  # another test's
    await world.client.put_object(Bucket="public", Key="a b", Body=b"for all")
    broken.use(S3Endpoint(name="public", url=world.server.url, anonymous=True))
    url = "s3://public/a%20b"
    ask = await world.task(inputs=[url], outputs=["s3://public/out"], lease=True)
    (found,) = (await ask(look=[url])).found
    assert found.get is not None and "?" not in found.get.url and send(found.get)[1] == b"for all"
    answer = await ask(store=[StoreQuestion("s3://public/out", 1)], begin=[Upload("s3://public/out", size=1)])
    assert answer.faults[0] is not None and answer.uploads[0].fault is not None


async def test_signatures_expire_and_go_by_the_servers_clock(broken: Broken) -> None:
    world = broken.world
    await world.put("a")
    ask = await world.task(inputs=[world.url("a")])
    broken.use(*world.settings.endpoints, clock=lambda: time.time() - 7200)  # ours is two hours late
    (found,) = (await ask(look=[world.url("a")])).found
    assert found.get is not None and (await sent(found.get))[0] == 200
    store = ObjectStore(world.settings.endpoints[0])
    async with store.signer(world.bucket) as signer:
        short = signer.sign("GET", "a", span=1.5)
    with anyio.fail_after(20):
        while (status := (await sent(short))[0]) == 200:
            await anyio.sleep(0.1)
    assert status == 403
    await store.close()


async def test_a_completion_whose_answer_was_lost_is_found_done(broken: Broken) -> None:
    world, proxy = broken.world, broken.proxy
    url = world.url("out")
    ask = await world.task(outputs=[url], lease=True)
    (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
    (signed,) = (await ask(parts=PartsQuestion(url, upload.id, [1]))).signed
    _, _, headers = await sent(signed, b"hello")
    wrong = Completion(url, upload.id, [headers["etag"]], size=6)
    (done,) = (await ask(complete=[wrong])).completions
    assert done.fault is not None and "bytes" in done.fault.sentence
    wrong = Completion(url, upload.id, ['"0123456789abcdef0123456789abcdef"'], size=5)
    (done,) = (await ask(complete=[wrong])).completions
    assert done.fault is not None and not done.done
    proxy.lose_answer_to = "GET uploadId"  # of the request that lists the parts
    right = Completion(url, upload.id, [headers["etag"]], size=5)
    first = proxy.asked["POST"]
    (done,) = (await ask(complete=[right])).completions
    if not done.done:
        assert done.fault is not None and done.fault.kind == "passing"
        (done,) = (await ask(complete=[right])).completions
    assert done.done and proxy.asked["POST"] > first
    assert await world.get("out") == b"hello"


async def test_a_completion_that_is_repeated_within_one_question_is_done(
    broken: Broken, s3: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = broken.world
    # moto forgets an upload at once when it is complete, as Amazon may; SeaweedFS answers a repetition as it did.
    async with proxy_before(s3.moto.url) as proxy, client_of(s3.moto) as client:
        await client.create_bucket(Bucket=world.bucket)
        broken.use(endpoint_of(replace(s3.moto, url=proxy.url), monkeypatch))
        url = world.url("out")
        ask = await world.task(outputs=[url], lease=True)
        (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
        (signed,) = (await ask(parts=PartsQuestion(url, upload.id, [1]))).signed
        _, _, headers = await sent(signed, b"hello")
        proxy.lose_answer_to = "POST uploadId"
        (done,) = (await ask(complete=[Completion(url, upload.id, [headers["etag"]], size=5)])).completions
        assert proxy.lose_answer_to is None and done.done and done.fault is None

        # Parts that are not what was sent, or gone: another attempt may store it.
        (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
        (done,) = (await ask(complete=[Completion(url, upload.id, [headers["etag"]], size=5)])).completions
        assert done.fault is not None and done.fault.kind == "missing" and "parts" in done.fault.sentence


async def test_an_object_of_somebody_else_is_not_taken_for_a_completion(broken: Broken) -> None:
    world = broken.world
    url = world.url("out")
    ask = await world.task(outputs=[url], lease=True)
    (upload,) = (await ask(begin=[Upload(url, size=5)])).uploads
    await world.put("out", body=b"other")
    await world.client.abort_multipart_upload(Bucket=world.bucket, Key="out", UploadId=upload.id)
    question = Completion(url, upload.id, ['"5d41402abc4b2a76b9719d911017c592"'], size=5)
    for _ in range(2):
        (done,) = (await ask(complete=[question])).completions
        assert done.fault is not None and done.fault.kind == "missing" and not done.done


async def test_listings_that_change_go_on_where_they_were(broken: Broken) -> None:
    world = broken.world
    await world.put(*(f"d/{at}" for at in range(6)))
    ask = await world.task(inputs=[(world.url("d"), "DIRECTORY")])
    page = (await ask(page=ListQuestion(world.url("d"), None, 3))).page
    assert page is not None and page.names == ["0", "1", "2"] and page.after == "2"
    await world.client.delete_object(Bucket=world.bucket, Key="d/2")
    await world.put("d/00", "d/25", "d/9")
    page = (await ask(page=ListQuestion(world.url("d"), page.after, 10))).page
    assert page is not None and page.names == ["25", "3", "4", "5", "9"] and page.after is None


async def test_roles_are_assumed(s3: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(
        s3.moto,
        monkeypatch,
        role_arn="arn:aws:iam::123456789012:role/reader",
        external_id="env:TEST_S3_ID",
        sts_url=s3.moto.url,
    )
    async with client_of(s3.moto) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key="a", Body=b"hello")
        store = ObjectStore(endpoint)
        await store.call("head_object", bucket, Key="a")
        async with store.signer(bucket) as signer:
            signed = signer.sign("GET", "a", span=100_000)
        # Not with our own key, and no longer than the role's session.
        assert "X-Amz-Security-Token=" in signed.url and "testing" not in signed.url
        assert signed.expires_in <= 3600
        assert send(signed)[:2] == (200, b"hello")
        await store.close()


async def test_uploads_are_aborted_when_their_attempt_is_over_and_no_others(broken: Broken) -> None:
    world = broken.world
    url = world.url("out/x")
    over, running = await world.task(outputs=[url]), await world.task(outputs=[url])
    (stale,) = (await over(begin=[Upload(url, size=5)])).uploads
    (kept,) = (await running(begin=[Upload(url, size=5)])).uploads
    strange = await world.client.create_multipart_upload(Bucket=world.bucket, Key="out/x")
    await world.rows.close(over.task_id, over.number, "failed", instance="agent1")
    trust = Trust(holder=world.rows.holder, window=timedelta(seconds=60))
    sweeper = UploadSweeper(
        uploads=world.uploads,
        endpoints=world.endpoints,
        replicas=world.rows.replicas,
        trust=trust,
        interval=timedelta(seconds=1),
        late=3600.0,
    )
    assert not await sweeper.once()

    async def there() -> set[str]:
        answer = await world.client.list_multipart_uploads(Bucket=world.bucket)
        return {item["UploadId"] for item in answer.get("Uploads") or []}

    assert await there() == {kept.id, strange["UploadId"]}
    # A part may have been under way: it is aborted once more when none can be any more.
    assert not await sweeper.once()
    assert await world.uploads.get(over.task_id, over.number, [stale.id])
    aborted = broken.proxy.asked["DELETE"]
    sweeper._late = 0.0
    assert not await sweeper.once()
    assert broken.proxy.asked["DELETE"] == aborted + 1
    assert not await world.uploads.get(over.task_id, over.number, [stale.id])
    assert await world.uploads.get(running.task_id, running.number, [kept.id])
