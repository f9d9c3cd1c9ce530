"""Stores that take requests for one region alone: it is found out before anything is signed for a runner, and told."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tesgate.config import S3Endpoint
from tesgate.storage.s3 import objects
from tesgate.storage.s3.regions import named_in
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location
from tests.beds.s3 import Servers
from tests.storage.s3_proxy import Proxy, proxy_before
from tests.storage.s3_world import client_of, endpoint_of, new_bucket, send


class Room:
    """A bucket whose requests go through a proxy that takes those for eu-central-1."""

    def __init__(self, endpoint: S3Endpoint, proxy: Proxy, bucket: str) -> None:
        self.endpoint = endpoint
        self.proxy = proxy
        self.bucket = bucket
        self.stores: list[ObjectStore] = []

    def at(self, key: str) -> Location:
        return Location("s3", self.bucket, key)

    def store(self, region: str | None) -> ObjectStore:
        self.stores.append(ObjectStore(self.endpoint.model_copy(update={"region": region})))
        return self.stores[-1]


@pytest_asyncio.fixture
async def room(s3: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Room]:
    async with proxy_before(s3.seaweed.url) as proxy, client_of(s3.seaweed) as client:
        proxy.region = "eu-central-1"
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key="a", Body=b"hello")
        made = Room(endpoint_of(replace(s3.seaweed, url=proxy.url), monkeypatch), proxy, bucket)
        yield made
        for store in made.stores:
            await store.close()


@pytest.mark.parametrize(
    ("configured", "says"),
    [(None, True), (None, False), ("us-west-2", False), ("eu-central-1", True)],
)
async def test_what_is_signed_for_runners_is_signed_for_the_buckets_own_region(
    room: Room, configured: str | None, says: bool
) -> None:
    room.proxy.says_region = says
    with capture_logs() as said:
        store = room.store(configured)
        # An output alone: nothing of the bucket was asked for before.
        put = await objects.sign_put(store, room.at("out"), span=60, checksum={})
        assert (await anyio.to_thread.run_sync(send, put, b"new"))[0] == 200
        found = await objects.look(store, room.at("a"), directory=False)
        assert found.get is not None
        assert (await anyio.to_thread.run_sync(send, found.get))[:2] == (200, b"hello")
    assert "/eu-central-1/" in put.url.replace("%2F", "/")
    # Found out at once, and not again with each request.
    first = configured or "us-east-1"
    expected = [f"HEAD {first}"] if says else [f"HEAD {first}", f"GET {first}"]
    assert room.proxy.refused == ([] if configured == "eu-central-1" else expected)
    told = [line for line in said if "another region" in line["event"]]
    assert [(line["configured"], line["region"]) for line in told] == (
        [("us-west-2", "eu-central-1")] if configured == "us-west-2" else []
    )


async def test_a_region_that_is_learnt_late_counts_from_then_on(room: Room) -> None:
    store = room.store("us-west-2")
    room.proxy.says_region = False
    room.proxy.region = None
    assert "us-west-2" in (await objects.sign_put(store, room.at("out"), span=60, checksum={})).url
    room.proxy.region = "eu-central-1"
    await objects.look(store, room.at("a"), directory=False)
    assert "eu-central-1" in (await objects.sign_put(store, room.at("out"), span=60, checksum={})).url


def test_what_is_no_region_is_not_taken_for_one() -> None:
    def named(header: str, word: str) -> str | None:
        return named_in(
            {"ResponseMetadata": {"HTTPHeaders": {"x-amz-bucket-region": header}}, "Error": {"Region": word}}
        )

    assert named("eu-west-1", "other") == "eu-west-1"
    assert named("evil.example/#", "eu-west-1") == "eu-west-1"
    assert named("", "a" * 64) is None and named_in({}) is None
