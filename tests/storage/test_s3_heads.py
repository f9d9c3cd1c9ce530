"""What lean looks at objects say besides: the store's clock, and how they ask."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

import pytest
import pytest_asyncio

from tesgate.storage.s3.regions import GUESSED, Regions
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tests.beds.s3 import Servers
from tests.storage.s3_proxy import Proxy, proxy_before
from tests.storage.s3_world import client_of, endpoint_of, new_bucket


class Room:
    """A bucket with an object ``a``, a proxy before its server, and a store whose clock can be put wrong."""

    def __init__(self, proxy: Proxy, bucket: str) -> None:
        self.proxy = proxy
        self.bucket = bucket
        self.wrong = 0.0

    def clock(self) -> float:
        return time.time() + self.wrong


@pytest_asyncio.fixture
async def room(s3: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[tuple[Room, ObjectStore]]:
    async with proxy_before(s3.seaweed.url) as proxy, client_of(s3.seaweed) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key="a", Body=b"hello")
        made = Room(proxy, bucket)
        endpoint = endpoint_of(s3.seaweed, monkeypatch).model_copy(update={"url": proxy.url})
        store = ObjectStore(endpoint, clock=made.clock)
        yield made, store
        await store.close()


@pytest.mark.parametrize("key", ["a", "nothing"])
async def test_the_clock_of_the_store_is_learnt(room: tuple[Room, ObjectStore], key: str) -> None:
    """A PUT that is signed by another clock would outlive the publish lease, or be dead at birth."""
    made, store = room

    async def look() -> None:
        if key == "a":
            assert (await store.head(made.bucket, key))["ContentLength"] == 5
            return
        with pytest.raises(StoreFault) as caught:
            await store.head(made.bucket, key)
        assert caught.value.missing

    await look()
    made.wrong = -40.0
    await look()
    async with store.signer(made.bucket) as signer:
        signed = signer.sign("PUT", "b", span=30)
    at = parse_qs(urlsplit(signed.url).query)["X-Amz-Date"][0]
    moment = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    assert abs(moment - time.time()) < 30, "by the store's clock, which is right"


async def test_no_other_encoding_is_asked_for(room: tuple[Room, ObjectStore]) -> None:
    """It would have another size than what is fetched."""
    made, store = room
    await store.head(made.bucket, "a")
    assert made.proxy.encodings[-1] == "identity"


def test_a_guess_is_not_kept() -> None:
    now = 0.0
    regions = Regions(endpoint="e", configured=None, clock=lambda: now)
    regions.guess("b", "us-east-1")
    assert regions.known("b") == "us-east-1"
    now = GUESSED
    assert regions.known("b") is None
    regions.note("b", "eu-central-1")
    assert regions.known("b") == "eu-central-1"
