"""Buckets on the S3 servers of the bed, and attempts that ask about them."""

from __future__ import annotations

import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from tesgate.config import DrsSettings, S3Endpoint, S3Settings
from tesgate.runner.access import AccessAnswer, AccessRequest, Signed
from tesgate.runner.plan import UrlPolicy
from tesgate.services.access import AccessService
from tesgate.services.drs import DrsAnswers
from tesgate.storage.drs.resolver import Resolver
from tesgate.storage.drs.web import JsonWeb
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.store.database import Database
from tesgate.store.uploads import UploadStore
from tests.beds.s3 import Server
from tests.store.rows import LEASE, Rows


@dataclass
class World:
    """The service on real rows, and a client of the server that goes around it."""

    rows: Rows
    server: Server
    client: Any
    bucket: str
    settings: S3Settings
    drs: DrsSettings = field(default_factory=DrsSettings)
    policy: UrlPolicy = field(default_factory=UrlPolicy)
    endpoints: Endpoints = field(init=False)
    service: AccessService = field(init=False)
    uploads: UploadStore = field(init=False)

    def __post_init__(self) -> None:
        self.uploads = UploadStore(database=self.rows.database)
        self.endpoints = Endpoints(self.settings)
        self.resolver = Resolver(self.drs, JsonWeb(self.policy))
        self._open = [*getattr(self, "_open", []), self.endpoints, self.resolver]
        # No test needs a quick machine: those of the deadline have one of their own.
        self.service = AccessService(
            uploads=self.uploads, endpoints=self.endpoints, drs=DrsAnswers(self.resolver), deadline=120.0
        )

    async def close(self) -> None:
        for one in self._open:
            await one.close()

    def url(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    async def put(self, *keys: str, body: bytes = b"hello") -> None:
        for key in keys:
            await self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    async def get(self, key: str) -> bytes:
        answer = await self.client.get_object(Bucket=self.bucket, Key=key)
        async with answer["Body"] as stream:
            return bytes(await stream.read())

    async def task(self, *, inputs: Any = (), outputs: Any = (), lease: bool = False) -> Asking:
        """An attempt that runs. `inputs` and `outputs` are URLs, or pairs of one and its type."""

        def items(urls: Any) -> list[dict[str, Any]]:
            pairs = [(url, "FILE") if isinstance(url, str) else url for url in urls]
            return [{"url": url, "path": f"/data/{at}", "type": type} for at, (url, type) in enumerate(pairs)]

        document = {
            "executors": [{"image": "busybox", "command": ["true"]}],
            "inputs": items(inputs),
            "outputs": items(outputs),
        }
        task_id = await self.rows.submit(document=document)
        given = next(one for one in await self.rows.dispatch() if one.task_id == task_id)
        await self.rows.attempts.acknowledge(given.agent_id, [(task_id, given.number)])
        await self.rows.attempts.report(task_id, given.number, self.rows.words(started=True), LEASE)
        asking = Asking(self, task_id, given.number)
        if lease:
            await asking.take_lease()
        return asking


@dataclass
class Asking:
    """One attempt's runner."""

    world: World
    task_id: str
    number: int

    async def __call__(self, **questions: Any) -> AccessAnswer:
        return await self.world.service.answer(self.task_id, self.number, AccessRequest(instance="agent1", **questions))

    async def take_lease(self) -> None:
        rows = self.world.rows
        said = await rows.attempts.publish(self.task_id, self.number, rows.words(started=True), LEASE)
        assert said is not None and said.leased

    async def lease_ends(self) -> None:
        await self.world.rows.lease_ends(self.task_id)


def client_of(server: Server, **more: Any) -> Any:
    """A client of botocore, to be entered."""
    return AioSession().create_client(
        "s3",
        endpoint_url=server.url,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=AioConfig(s3={"addressing_style": "path"}, signature_version="s3v4", retries={"total_max_attempts": 1}),
        **more,
    )


def endpoint_of(server: Server, monkeypatch: Any, **more: Any) -> S3Endpoint:
    """An endpoint that finds the server's keys in the environment."""
    monkeypatch.setenv("TEST_S3_ID", server.access_key)
    monkeypatch.setenv("TEST_S3_SECRET", server.secret_key)
    given: dict[str, Any] = {
        "name": server.name,
        "url": server.url,
        "access_key_id": "env:TEST_S3_ID",
        "secret_access_key": "env:TEST_S3_SECRET",
        **more,
    }
    return S3Endpoint(**given)


def new_bucket() -> str:
    return f"b-{uuid.uuid4().hex[:12]}"


async def made(database: Database) -> Rows:
    rows = await Rows.made(database)
    await rows.agent(cpus=1000)
    return rows


def send(signed: Signed, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Send a presigned request as a runner does, with nothing but what it says."""
    # Without it urllib sends that of a form, and moto takes it for one.
    sent = {"content-type": "application/octet-stream", **signed.headers, **headers}
    request = urllib.request.Request(signed.url, data=body, method=signed.method, headers=sent)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {name.lower(): value for name, value in error.headers.items()}
