"""The beginning of uploads where a store is slow: none is begun without a row that knows it."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest

from tesgate.config import DrsSettings, S3Endpoint, S3Settings
from tesgate.runner.access import AccessRequest, Upload
from tesgate.runner.plan import UrlPolicy
from tesgate.services.access import AccessService
from tesgate.services.drs import DrsAnswers
from tesgate.storage.drs.resolver import Resolver
from tesgate.storage.drs.web import JsonWeb
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.store.uploads import OpenAttempt, UploadRow, UploadStore


class Rows:
    """Takes note of uploads."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.intended: set[int] = set()

    async def attempt(self, task_id: str, number: int, instance: str, *, document: bool) -> OpenAttempt:
        given = {"outputs": [{"url": "s3://bkt/out", "path": "/x"}]}
        return OpenAttempt("o", None, False, 30.0, given if document else None)

    async def intend(self, task_id: str, number: int, endpoint: str, bucket: str, key: str) -> int:
        self.intended.add(int(key.rpartition("/")[2]))
        return int(key.rpartition("/")[2])

    async def insert(self, row: UploadRow, *, settles: int | None) -> bool:
        await anyio.sleep(0.01)
        self.noted.append(row.id)
        assert settles is not None
        self.intended.remove(settles)
        return True


async def test_an_upload_that_nobody_waits_for_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, begun = Rows(), []
    endpoints = Endpoints(S3Settings(endpoints=[S3Endpoint(name="a", url="http://127.0.0.1:9", profile="p")]))
    store = endpoints.named("a")
    assert store is not None

    async def call(operation: str, bucket: str, **arguments: Any) -> Any:
        begun.append(arguments["Key"])
        assert int(arguments["Key"].rpartition("/")[2]) in rows.intended
        await anyio.sleep(0.6)
        return {"UploadId": arguments["Key"], "ResponseMetadata": {"RetryAttempts": 0}}

    monkeypatch.setattr(store, "call", call)
    drs = Resolver(DrsSettings(), JsonWeb(UrlPolicy()))
    service = AccessService(uploads=cast(UploadStore, rows), endpoints=endpoints, drs=DrsAnswers(drs), deadline=2.0)
    question = AccessRequest(instance="i", begin=[Upload(f"s3://bkt/out/{at}", size=1) for at in range(100)])
    answer = await service.answer("t", 1, question)
    assert begun
    assert sorted(rows.noted) == sorted(begun) and not rows.intended
    assert all(each.fault is None or each.fault.kind == "passing" for each in answer.uploads)
    await drs.close()
