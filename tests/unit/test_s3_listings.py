"""Stores whose listings and conditions are unlike those of the servers that tests run: one that answers as told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tesgate.config import S3Endpoint
from tesgate.model.ids import TaskIds
from tesgate.runner.access import Signed
from tesgate.storage.s3 import objects, reading, settling
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location
from tesgate.storage.s3.workspace import ObjectWorkspace


class Told:
    """Answers listings with pages, one after the other."""

    name = "told"
    endpoint = S3Endpoint(name="told", url="http://told")

    def __init__(self, *pages: dict[str, Any]) -> None:
        self.pages = list(pages)
        self.asked: list[dict[str, Any]] = []

    async def call(self, operation: str, bucket: str, **arguments: Any) -> Any:
        assert operation == "list_objects_v2"
        self.asked.append(arguments)
        return self.pages.pop(0)

    @asynccontextmanager
    async def signer(self, bucket: str) -> AsyncIterator[Told]:
        yield self

    def sign(self, method: str, key: str, *, span: float) -> Signed:
        return Signed(method, "http://told/" + key)

    def store(self) -> ObjectStore:
        return cast(ObjectStore, self)


def keys(*names: str, **more: Any) -> dict[str, Any]:
    return {"Contents": [{"Key": name, "Size": 1, "ETag": "x"} for name in names], **more}


BELOW = Location("s3", "bkt", "d")


async def test_an_empty_page_is_not_the_end() -> None:
    told = Told(keys(IsTruncated=True, NextContinuationToken="t"), keys("d/a", "d/b", IsTruncated=True))
    page = await objects.page(told.store(), BELOW, after=None, limit=2)
    assert (page.names, page.after) == (["a", "b"], "b")
    assert told.asked[1]["ContinuationToken"] == "t"


@pytest.mark.parametrize("answer", [keys(IsTruncated=True), keys("other/a", IsTruncated=True)])
async def test_a_listing_that_breaks_off_is_asked_for_again(answer: dict[str, Any]) -> None:
    with pytest.raises(StoreFault) as caught:
        await objects.page(Told(answer).store(), BELOW, after=None, limit=2)
    assert caught.value.passing


async def test_tasks_of_all_pages_are_found() -> None:
    def page(*tasks: str, **more: Any) -> dict[str, Any]:
        return {"CommonPrefixes": [{"Prefix": f"p/logs/{task}/"} for task in tasks], **more}

    told = Told(
        page("a", "b", IsTruncated=True), page(IsTruncated=True, NextContinuationToken="t"), page("c"), page("d")
    )
    workspace = ObjectWorkspace(store=told.store(), place=Location("s3", "bkt", "p"))
    assert await workspace.tasks(after="", limit=10) == ["a", "b", "c"]
    assert await workspace.tasks(after="c", limit=1) == ["d"]


async def test_what_another_replica_wrote_to_a_settled_log_is_settled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(settling, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    task = TaskIds()()
    item = {"Key": f"p/logs/{task}/1/0.stdout", "Size": 1, "LastModified": datetime.now(UTC) - timedelta(days=1)}
    told = Told(*[{"Contents": [item]}] * 3)
    workspace = ObjectWorkspace(store=told.store(), place=Location("s3", "bkt", "p"))
    asked = []
    for later in (0.0, 1.0, 2.5 * settling.REST, 4 * settling.REST, 8 * settling.REST):
        clock[0] = 1000.0 + later
        await workspace.settle(task)
        asked.append(len(told.asked))
    assert asked == [1, 1, 2, 2, 3]


async def test_a_slow_reader_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 4)
    task, data = TaskIds()(), b"0123456789"
    open_ones: set[Body] = set()

    class Counted(Told):
        async def call(self, operation: str, bucket: str, **arguments: Any) -> Any:
            if operation == "get_object":
                first, _, last = arguments["Range"][6:].partition("-")
                return {"Body": Body(data[int(first) : int(last) + 1], open_ones)}
            key = f"p/logs/{task}/1/0.stdout"
            return {"Contents": [{"Key": key, "Size": 10, "LastModified": datetime.now(UTC)}]}

    workspace = ObjectWorkspace(store=Counted().store(), place=Location("s3", "bkt", "p"))
    found = await workspace.open_range(task, 1, 0, "stdout", 1)
    chunks = []
    async for chunk in found.chunks():
        assert not open_ones
        chunks.append(chunk)
    assert chunks == [b"1234", b"5678", b"9"]


async def test_a_store_without_conditions_puts_logs_together_all_the_same() -> None:
    task = TaskIds()()
    held = {f"p/logs/{task}/1/0.stdout.d/{0:015d}-{2:015d}": b"ab"}

    class Plain(Told):
        async def call(self, operation: str, bucket: str, **arguments: Any) -> Any:
            if operation == "list_objects_v2":
                old = datetime.now(UTC) - timedelta(days=1)
                found = [name for name in held if name.startswith(arguments["Prefix"])]
                return {"Contents": [{"Key": name, "Size": len(held[name]), "LastModified": old} for name in found]}
            if operation == "get_object":
                return {"Body": Body(held[arguments["Key"]])}  # of the whole range
            if operation == "put_object":
                if "IfNoneMatch" in arguments:
                    raise StoreFault("NotImplemented", "endpoint told answered NotImplemented")
                held[arguments["Key"]] = arguments["Body"]
            if operation == "delete_object":
                del held[arguments["Key"]]

    await ObjectWorkspace(store=Plain().store(), place=Location("s3", "bkt", "p")).settle(task)
    assert held == {f"p/logs/{task}/1/0.stdout": b"ab"}


class Body:
    """Of an answer."""

    def __init__(self, data: bytes, open_ones: set[Body] | None = None) -> None:
        self.data = data
        self.open_ones: set[Body] = set() if open_ones is None else open_ones
        self.open_ones.add(self)

    async def __aenter__(self) -> Body:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.open_ones.discard(self)

    async def read(self) -> bytes:
        return self.data
