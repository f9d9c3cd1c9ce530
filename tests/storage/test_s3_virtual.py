"""Buckets in the host name, on real servers: asked by the gateway, presigned, and moved by the runner's own client."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tesgate.runner.transfer.connect import HttpSettings
from tesgate.runner.transfer.s3http import Connections
from tesgate.runner.transfer.s3wire import FilePart
from tesgate.runner.transfer.threads import Stop
from tesgate.storage.s3 import multiparts, objects
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location
from tests.beds.s3 import FURTHER, Servers
from tests.storage.s3_world import client_of, endpoint_of, new_bucket

KEY = "a b/ü+%41.bin"
DATA = bytes(range(256)) * 30


@pytest.fixture
def names_below_localhost(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A resolver's entry ``*.localhost``, which not every machine has; the names that were asked for."""
    resolve, asked = socket.getaddrinfo, []

    def with_entry(host: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if isinstance(name, str) and name.endswith(".localhost"):
            asked.append(name)
            name = "127.0.0.1"
        return resolve(name, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", with_entry)
    return asked


@pytest.mark.parametrize("name", ["seaweed", *FURTHER])
async def test_in_and_out(
    name: str, s3: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_below_localhost: list[str]
) -> None:
    server = s3.named(name)
    bucket = new_bucket()
    async with client_of(server) as client:
        await client.create_bucket(Bucket=bucket)
        await client.put_object(Bucket=bucket, Key=KEY, Body=DATA)
        await client.put_object(Bucket=bucket, Key="d/x", Body=b"x")
    file = tmp_path / "file"
    file.write_bytes(DATA)
    stop = Stop()
    connections = Connections(settings=HttpSettings(), stop=stop)
    endpoint = endpoint_of(replace(server, url=server.url.replace("127.0.0.1", "localhost")), monkeypatch)
    store = ObjectStore(endpoint.model_copy(update={"style": "virtual", "part_mb": 5}))

    def get(signed: Any) -> bytes:
        with connections.request("GET", signed.url, signed.headers) as answer:
            assert answer.status == 200, answer.text()
            room = bytearray(len(DATA) + 1)
            have = 0
            while count := answer.read_into(memoryview(room)[have:]):
                have += count
            return bytes(room[:have])

    def put(signed: Any) -> str:
        handle = os.open(file, os.O_RDONLY)
        try:
            with connections.request("PUT", signed.url, signed.headers, FilePart(handle, 0, len(DATA))) as answer:
                assert answer.status == 200, answer.text()
                return answer.headers["etag"]
        finally:
            os.close(handle)

    try:
        found = await objects.look(store, Location("s3", bucket, KEY), directory=False)
        assert found.get is not None and f"//{bucket}.localhost:" in found.get.url
        assert await anyio.to_thread.run_sync(get, found.get) == DATA
        page = await objects.page(store, Location("s3", bucket, "d"), after=None, limit=10)
        assert page.names == ["x"] and page.objects[0].get is not None
        assert await anyio.to_thread.run_sync(get, page.objects[0].get) == b"x"
        # One PUT, and an upload of one part.
        single = Location("s3", bucket, "out/single é")
        await anyio.to_thread.run_sync(put, await objects.sign_put(store, single, span=60, checksum={}))
        parts = Location("s3", bucket, "out/parts")
        begun = await multiparts.begin(store, parts, size=len(DATA))
        (signed,) = await multiparts.sign_parts(
            store, parts, upload=begun.id, numbers=[1], algorithm=begun.algorithm, checksums=[]
        )
        etag = await anyio.to_thread.run_sync(put, signed)
        await multiparts.complete(
            store,
            parts,
            upload=begun.id,
            etags=[etag],
            algorithm=begun.algorithm,
            checksums=[],
            size=len(DATA),
            asked_before=None,
        )
        for at in (single, parts):
            assert (await objects.look(store, at, directory=False)).size == len(DATA)
    finally:
        connections.close()
        await store.close()
    assert set(names_below_localhost) == {f"{bucket}.localhost"}
