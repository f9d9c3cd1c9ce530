"""An attempt whose inputs and outputs are in a bucket of a real S3 server, behind a proxy that breaks things."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio

from tesgate.runner.plan import Input, Output, UrlPolicy
from tesgate.runner.report import OutputFile
from tesgate.runner.transfer.connect import HttpSettings
from tesgate.runner.transfer.policy import AddressPolicy
from tesgate.runner.transfer.s3 import ObjectStorage
from tesgate.runner.transfer.stage import Prepared, Stager
from tests.transfer.s3_proxy import Fault, proxy_of
from tests.transfer.s3_signing import Signing, client_of

__all__ = ["Objects", "Stand", "random_bytes"]


class Stand:
    """One server with a proxy before it, for all tests: clients and buckets take long to make."""

    def __init__(self, url: str) -> None:
        self._stack = ExitStack()
        self.proxy = self._stack.enter_context(proxy_of(url))
        self.direct: Any = client_of(url)
        self.through: Any = client_of(self.proxy.url)
        self.bucket = f"runner-{secrets.token_hex(6)}"
        self.direct.create_bucket(Bucket=self.bucket)

    def close(self) -> None:
        for client in (self.direct, self.through):
            client.close()
        self._stack.close()


class Objects:
    """One test's keys in the bucket; the runner's requests go through `proxy`."""

    def __init__(self, base: Path, stand: Stand) -> None:
        self.attempt = base / "attempt"
        for part in ("rw", "ro"):
            (self.attempt / part).mkdir(parents=True)
        self.proxy = stand.proxy
        self.proxy.reset()
        self.signing = Signing(stand.direct, stand.through)
        self.straight = stand.direct
        self.bucket = stand.bucket
        self.below = f"{secrets.token_hex(6)}/"
        self.settings = HttpSettings(read_timeout=2.0, connect_timeout=5.0, first_pause=0.01, max_pause=0.05, tries=4)
        self.names: list[str] = []
        self.prepared: Prepared | None = None

    def stager(self, inputs: list[Input] | None = None) -> Stager:
        policy = AddressPolicy(UrlPolicy(allowed_hosts=["127.0.0.1"]))
        storage = ObjectStorage(ask=self.signing, settings=self.settings, inputs=inputs or [], policy=policy)
        return Stager(roots=[], policy=UrlPolicy(), storages=[storage])

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.below}{quote(key)}"

    def store(self, key: str, data: bytes = b"text", **more: Any) -> bytes:
        """Put an object there, past the proxy."""
        self.straight.put_object(Bucket=self.bucket, Key=self.below + key, Body=data, **more)
        return data

    def stored(self, key: str) -> bytes:
        data: bytes = self.straight.get_object(Bucket=self.bucket, Key=self.below + key)["Body"].read()
        return data

    def remove(self, key: str) -> None:
        self.straight.delete_object(Bucket=self.bucket, Key=self.below + key)

    def stored_keys(self) -> list[str]:
        pages = self.straight.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.below)
        return [each["Key"].removeprefix(self.below) for page in pages for each in page.get("Contents", [])]

    def uploads(self) -> list[str]:
        """Keys of uploads that are not completed."""
        listed = self.straight.list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
        keys = [str(each["Key"]) for each in listed]
        return [key.removeprefix(self.below) for key in keys if key.startswith(self.below)]

    def fault(self, kind: str, path: str = "", **more: Any) -> Fault:
        """Have requests below this test's prefix broken; `path` is a pattern of what follows it."""
        fault = Fault(kind, path=f"/{self.below[:-1]}.*{path}", **more)
        self.proxy.faults.append(fault)
        return fault

    # in

    def stage(self, key: str, **more: Any) -> Path:
        """Stage one input and return where it lies."""
        place = ("rw" if more.get("writable") else "ro") + "/data/thing"
        self.notes = self.stage_all(Input("/data/thing", place, url=self.url(key), **more))
        return self.attempt / place

    def stage_all(self, *inputs: Input) -> list[str]:
        return anyio.run(self.stager(list(inputs)).stage_in, list(inputs), str(self.attempt))

    # out

    def write(self, path: str, data: bytes = b"text") -> Path:
        """Write what a task would have left at a container path."""
        file = self.attempt / "rw" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    async def prepare(self, *outputs: Output) -> Prepared:
        prepared = await self.stager().prepare_outputs(
            list(outputs), [], str(self.attempt), "tg-x-1", journal=self.names.extend
        )
        self.prepared = prepared
        return prepared

    def put(self, *outputs: Output, lease: Callable[[], float] = lambda: 30.0) -> list[OutputFile]:
        """Store outputs, all of stage-out."""

        async def run() -> list[OutputFile]:
            prepared = await self.prepare(*outputs)
            self.notes = prepared.notes
            return await self.stager().publish(prepared, lease)

        return anyio.run(run)

    def output(self, path: str, key: str, kind: str = "FILE", prefix: str | None = None) -> Output:
        return Output(path, self.url(key), kind, prefix)


def random_bytes(size: int) -> bytes:
    """Bytes that are the same in each run, and nowhere alike."""
    return hashlib.shake_128(str(size).encode()).digest(size)
