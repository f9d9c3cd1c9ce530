"""One contract for the workspace of files and that of objects, the latter on both S3 servers."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import pytest_asyncio

from tesgate.app.workspace import claim_workspace, keeps_logs
from tesgate.errors import ConfigError, NotFound, Unavailable
from tesgate.model.ids import TaskIds
from tesgate.storage.s3 import prefix, settling
from tesgate.storage.s3 import workspace as module
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import parse
from tesgate.storage.s3.workspace import ObjectWorkspace
from tesgate.storage.workspace import FileWorkspace, OffsetGap, Workspace
from tests.beds.s3 import FURTHER, Server, Servers
from tests.storage.s3_world import endpoint_of, new_bucket

KINDS = ("files", "seaweed", "moto", *FURTHER)


class World:
    """A workspace, and others that stand for further replicas on the same place."""

    def __init__(self, make: Callable[..., Workspace], store: ObjectStore | None = None, bucket: str = "") -> None:
        self.another = make
        self.store = store
        self.bucket = bucket
        self.ids = TaskIds()
        self.one = make()

    async def keys(self, prefix: str = "") -> list[str]:
        assert self.store is not None
        answer = await self.store.call("list_objects_v2", self.bucket, Prefix=prefix)
        return [item["Key"] for item in answer.get("Contents") or []]


async def read(workspace: Workspace, task: str, start: int = 0, stop: int | None = None, **more: Any) -> bytes:
    found = await workspace.open_range(task, 1, more.get("step", 0), more.get("stream", "stdout"), start, stop)
    data = b"".join([chunk async for chunk in found.chunks()])
    assert len(data) == found.length
    return data


@asynccontextmanager
async def world_of(
    kind: str, servers: Servers | None, path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    if kind == "files":
        yield World(lambda max_bytes=1 << 30, **more: FileWorkspace(path, max_bytes=max_bytes))
        return
    server: Server = servers.named(kind)
    bucket = new_bucket()
    # One client for all of a test: making one takes botocore longer than most tests.
    store = ObjectStore(endpoint_of(server, monkeypatch))
    place = parse(f"s3://{bucket}/some/prefix")
    try:
        await store.call("create_bucket", bucket)
        yield World(lambda **more: ObjectWorkspace(store=store, place=place, **more), store, bucket)
    finally:
        await store.close()


@pytest_asyncio.fixture(params=KINDS)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    servers = None if request.param == "files" else request.getfixturevalue("s3")
    async with world_of(request.param, servers, tmp_path, monkeypatch) as made:
        yield made


@pytest_asyncio.fixture(params=KINDS[1:])
async def objects(
    request: pytest.FixtureRequest, s3: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    async with world_of(request.param, s3, tmp_path, monkeypatch) as made:
        yield made


async def test_written_as_it_comes_and_read_by_every_replica(world: World) -> None:
    other = world.another()
    task = world.ids()
    with pytest.raises(NotFound):
        await other.open_range(task, 1, 0, "stdout")
    whole = b""
    for size in (10, 1, 70_000, 5, 5, 1_000_000, 3):
        data = random.randbytes(size)
        writer = random.choice((world.one, other))
        assert await writer.write_at(task, 1, 0, "stdout", len(whole), data) == len(whole) + size
        whole += data
        assert await read(other, task) == await read(world.one, task) == whole
    assert await read(other, task, -70_000, -1) == whole[-70_000:-1]
    assert await read(other, task, 5, 70_020) == whole[5:70_020]
    for start, stop in ((len(whole), None), (5, 5), (2**62, None)):
        found = await other.open_range(task, 1, 0, "stdout", start, stop)
        assert (found.length, found.size) == (0, len(whole))
        found.close()
    for step, stream in ((1, "stdout"), (0, "stderr"), (10, "stdout")):
        with pytest.raises(NotFound):
            await read(other, task, step=step, stream=stream)

    # What is appended later is not in what is open.
    found = await world.one.open_range(task, 1, 0, "stdout")
    await world.one.write_at(task, 1, 0, "stdout", len(whole), b" second")
    assert b"".join([chunk async for chunk in found.chunks()]) == whole


async def test_repeats_change_nothing_and_holes_are_refused(world: World) -> None:
    other = world.another()
    task = world.ids()
    with pytest.raises(OffsetGap) as gap:
        await world.one.write_at(task, 1, 0, "stdout", 5, b"x")
    assert gap.value.size == 0
    assert gap.value.headers["upload-offset"] == "0"
    assert await world.one.write_at(task, 1, 0, "stdout", 0, b"0123456789") == 10
    for workspace in (world.one, other):
        assert await workspace.write_at(task, 1, 0, "stdout", 0, b"0123") == 10
        assert await workspace.write_at(task, 1, 0, "stdout", 4, b"456789") == 10
    assert await other.write_at(task, 1, 0, "stdout", 8, b"89abc") == 13
    assert await world.one.write_at(task, 1, 0, "stdout", 10, b"abcdef") == 16
    with pytest.raises(OffsetGap) as gap:
        await other.write_at(task, 1, 0, "stdout", 17, b"x")
    assert gap.value.size == 16
    assert await read(other, task) == b"0123456789abcdef"

    # What lies beyond the bound is dropped.
    task, bounded = world.ids(), world.another(max_bytes=10)
    assert await bounded.write_at(task, 1, 0, "stdout", 0, b"0123456") == 7
    assert await bounded.write_at(task, 1, 0, "stdout", 7, b"789abc") == 10
    assert await bounded.write_at(task, 1, 0, "stdout", 13, b"def") == 10
    assert await read(bounded, task) == b"0123456789"

    # It goes nowhere else.
    for parts in (("../x", 1, 0, "stdout"), (task, -1, 0, "stdout"), (task, 1, 0, "../x"), ("", 1, 0, "stdout")):
        with pytest.raises(NotFound):
            await world.one.write_at(*parts, 0, b"x")  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await world.one.open_range(*parts)  # type: ignore[arg-type]
    for word in ("..", "", "/", task[:-1]):
        await world.one.remove(word)


async def test_retention(world: World) -> None:
    tasks = sorted(world.ids() for _ in range(5))
    for task in tasks:
        for step in (0, 1):
            await world.one.write_at(task, 1, step, "stdout", 0, b"said")
    assert await world.one.tasks(after="", limit=3) == tasks[:3]
    assert await world.one.tasks(after=tasks[2], limit=3) == tasks[3:]
    assert await world.one.tasks(after=tasks[4], limit=3) == []
    other = world.another()
    await other.remove(tasks[1])
    await other.remove(tasks[1])
    assert await other.tasks(after="", limit=10) == [tasks[0], *tasks[2:]]
    with pytest.raises(NotFound):
        await read(world.one, tasks[1])
    assert await read(world.one, tasks[2], step=1) == b"said"


# -- objects alone ---------------------------------------------------------------------------------------------


async def test_a_place_belongs_to_one_deployment(objects: World) -> None:
    """Whoever else is given it learns whose it is, and writes nothing over it."""
    first, second = objects.another(), objects.another()
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(objects.another().claim, "deploym1")
    assert await first.claim("deploym1") == "deploym1"
    assert await second.claim("deploym2") == "deploym1"
    assert await objects.keys() == ["some/prefix/deployment"]
    with pytest.raises(ConfigError, match="belongs to the deployment deploym1, and this one is deploym2"):
        await claim_workspace(second, "deploym2")
    await claim_workspace(first, "deploym1")

    held: list[int] = []

    async def hold() -> bool:
        held.append(1)
        return True

    theirs, ours = keeps_logs(second, "deploym2", hold), keeps_logs(first, "deploym1", hold)
    assert theirs is not None and ours is not None
    assert not await theirs() and held == []
    assert await ours() and held == [1]
    assert await first.tasks(after="", limit=10) == []


async def test_a_log_that_drips_is_few_objects(objects: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 1000)
    task, whole = objects.ids(), b""
    for number in range(40):
        line = b"line %d %s\n" % (number, b"x" * 80)
        await objects.one.write_at(task, 1, 0, "stdout", len(whole), line)
        whole += line
    keys = await objects.keys()
    assert len(keys) <= 5
    assert all(re.search(rf"^some/prefix/logs/{task}/1/0\.stdout\.d/\d+-\d+$", key) for key in keys)
    assert await read(objects.another(), task) == whole

    async def write(step: int) -> None:
        for at in range(0, 50, 10):
            await objects.one.write_at(task, 1, step, "stdout", at, b"%d" % step * 10)
            await objects.one.write_at(task, 1, step, "stdout", at, b"%d" % step * 10)

    async with anyio.create_task_group() as group:
        for step in range(1, 6):
            group.start_soon(write, step)
    for step in range(1, 6):
        assert await read(objects.one, task, step=step) == b"%d" % step * 50


async def test_a_write_that_lands_late_loses_nothing(objects: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica's PUT and DELETE that were under way while the runner had gone to another one and further."""
    task = objects.ids()
    late, other = objects.one, objects.another()
    await late.write_at(task, 1, 0, "stdout", 0, b"0123")
    await other.write_at(task, 1, 0, "stdout", 4, b"4567")
    await other.write_at(task, 1, 0, "stdout", 8, b"89")
    assert await late.write_at(task, 1, 0, "stdout", 4, b"45") in (6, 10)
    assert await read(late, task) == await read(other, task) == b"0123456789"
    assert await late.write_at(task, 1, 0, "stdout", 10, b"ab") == 12
    assert await read(other, task) == b"0123456789ab"

    # Somebody removes the objects of a running task: the runner is told to begin anew.
    task = objects.ids()
    await objects.one.write_at(task, 1, 0, "stdout", 0, b"0123")
    await objects.another().remove(task)
    monkeypatch.setattr(module, "TRUSTED", 0.0)
    with pytest.raises(OffsetGap) as gap:
        await objects.one.write_at(task, 1, 0, "stdout", 4, b"45")
    assert gap.value.size == 0
    await objects.one.write_at(task, 1, 0, "stdout", 0, b"012345")
    assert await read(objects.one, task) == b"012345"


async def test_a_log_that_rests_is_put_together(objects: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "PART", 5 << 20)
    task = objects.ids()
    small, large = b"small" * 100, random.randbytes(7 << 20)
    for at in range(0, len(small), 100):
        await objects.one.write_at(task, 1, 0, "stderr", at, small[at : at + 100])
    for at in range(0, len(large), 1 << 20):
        await objects.one.write_at(task, 1, 0, "stdout", at, large[at : at + (1 << 20)])
    reading = await objects.one.open_range(task, 1, 0, "stdout")
    await objects.one.settle(task)
    assert len(await objects.keys()) == 8, "nothing has rested yet"
    resting = objects.another(rest=-3600.0)
    base = f"some/prefix/logs/{task}/1/0."
    await resting.settle(task)
    assert await objects.keys() == [base + "stderr", base + "stdout"]
    assert b"".join([chunk async for chunk in reading.chunks()]) == large, "what was open is read on elsewhere"
    assert await read(objects.another(), task, -1000) == large[-1000:]
    assert await read(objects.another(), task, stream="stderr") == small
    # It goes on after all, here and in another replica, and is put together again.
    assert await objects.one.write_at(task, 1, 0, "stderr", 500, b"more") == 504
    assert await objects.another().write_at(task, 1, 0, "stderr", 504, b"!") == 505
    assert await read(resting, task, stream="stderr") == small + b"more!"
    await objects.another(rest=-3600.0).settle(task)
    assert await objects.keys() == [base + "stderr", base + "stdout"]
    assert await read(resting, task, stream="stderr") == small + b"more!"


@pytest.mark.parametrize("age", ["old", "young"])
async def test_an_upload_in_whose_middle_a_gateway_died(
    objects: World, age: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "PART", 5 << 20)
    task = objects.ids()
    await objects.one.write_at(task, 1, 0, "stdout", 0, random.randbytes(6 << 20))
    key = f"some/prefix/logs/{task}/1/0.stdout"
    assert objects.store is not None
    upload = (await objects.store.call("create_multipart_upload", objects.bucket, Key=key))["UploadId"]
    # Clocks of two processes; and moto says of all that they were begun in 2010.
    monkeypatch.setattr(prefix, "LEFT", -3600.0 if age == "old" else 1e12)
    await objects.another(rest=-3600.0).settle(task)
    answer = await objects.store.call("list_multipart_uploads", objects.bucket, Prefix=key)
    left = [item["UploadId"] for item in answer.get("Uploads") or []]
    # A young one may be another replica's that has not noticed yet that it is not its turn any more.
    assert left == ([] if age == "old" else [upload])
    assert await objects.keys() == [key]


async def test_foreign_and_broken_objects_are_left_out(objects: World) -> None:
    task = objects.ids()
    await objects.one.write_at(task, 1, 0, "stdout", 0, b"good")
    base = f"some/prefix/logs/{task}/1/0.stdout"
    for key, body in (
        (f"{base}.d/{4:015d}-{9:015d}", b"short"[:3]),
        (f"{base}.d/readme", b"x"),
        (f"{base}.d/{8:015d}-{9:015d}", b"x"),
        (f"{base}x", b"x"),
    ):
        assert objects.store is not None
        await objects.store.call("put_object", objects.bucket, Key=key, Body=body)
    assert await read(objects.another(), task) == b"good"
    assert await objects.another().write_at(task, 1, 0, "stdout", 4, b" more") == 9
    assert await read(objects.another(), task) == b"good more"


async def test_a_store_that_is_away_is_a_passing_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = endpoint_of(Server("gone", "http://127.0.0.1:9"), monkeypatch)
    workspace = ObjectWorkspace(store=ObjectStore(endpoint), place=parse("s3://logs/p"))
    task = TaskIds()()
    monkeypatch.setattr(prefix, "SPAN", 0.5)
    try:
        for call in (
            lambda: workspace.write_at(task, 1, 0, "stdout", 0, b"x"),
            lambda: workspace.open_range(task, 1, 0, "stdout"),
        ):
            with pytest.raises(Unavailable, match="workspace"):
                await call()
    finally:
        await workspace.aclose()
