"""Worlds of the S3 tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio

from tesgate.config import S3Settings
from tesgate.store.database import Database
from tests.beds.s3 import FURTHER, Server, Servers
from tests.storage.s3_world import World, client_of, endpoint_of, made, new_bucket


@pytest.fixture(params=["seaweed", "moto", *FURTHER])
def server(s3: Servers, request: Any) -> Server:
    """Each of the servers."""
    return s3.named(request.param)


@pytest_asyncio.fixture
async def world(database: Database, server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[World]:
    """A bucket of its own, and one endpoint for it."""
    async with client_of(server) as client:
        bucket = new_bucket()
        await client.create_bucket(Bucket=bucket)
        settings = S3Settings(endpoints=[endpoint_of(server, monkeypatch, part_mb=5, request_checksum="crc32")])
        world = World(await made(database), server, client, bucket, settings)
        yield world
        await world.close()
