"""Whole logs by ranges, and the workspace below."""

from __future__ import annotations

import pytest

from tesgate.errors import NotFound
from tesgate.storage.workspace import FileWorkspace, OffsetGap
from tests.api.conftest import TES, task


async def test_ranges(client, context) -> None:
    id = (await client.post(f"{TES}/tasks", json=task())).json()["id"]
    url = f"{TES}/tasks/{id}/logs/1/0/stdout"
    missing = await client.get(url)
    assert missing.status_code == 404 and "executor 0" in missing.json()["msg"]
    assert await context.workspace.write_at(id, 1, 0, "stdout", 0, b"0123456789") == 10
    whole = await client.get(url)
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.headers["x-content-type-options"] == "nosniff"
    for header, content, where in (
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
    ):
        part = await client.get(url, headers={"Range": header})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, content, where), header
    for header in ("bytes=10-", "bytes=50-60", "bytes=-0"):
        beyond = await client.get(url, headers={"Range": header})
        assert beyond.status_code == 416 and beyond.headers["content-range"] == "bytes */10", header
        assert beyond.json()["status_code"] == 416
    for header in ("bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=a-b", "bytes=-"):
        assert (await client.get(url, headers={"Range": header})).status_code == 200, header
    head = await client.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")


async def test_wrong_places(client) -> None:
    id = (await client.post(f"{TES}/tasks", json=task())).json()["id"]
    for path, code in (
        (f"{id}/logs/1/0/stdin", 400),
        (f"{id}/logs/0/0/stdout", 400),
        (f"{id}/logs/x/0/stdout", 400),
        (f"{id}/logs/1/-1/stdout", 400),
        ("01h00000000000000000000000/logs/1/0/stdout", 404),
        ("..%2f..%2fetc/logs/1/0/stdout", 404),
    ):
        answer = await client.get(f"{TES}/tasks/{path}")
        assert answer.status_code == code, path
        assert set(answer.json()) == {"msg", "status_code"}


TASK = "01h00000000000000000000000"


async def test_the_workspace_repeats_and_refuses_holes(tmp_path) -> None:
    space = FileWorkspace(tmp_path, max_bytes=20)
    for _ in range(2):
        assert await space.write_at(TASK, 1, 0, "stderr", 0, b"hello ") == 6
    assert await space.write_at(TASK, 1, 0, "stderr", 6, b"world") == 11
    assert await space.write_at(TASK, 1, 0, "stderr", 3, b"lo") == 11
    with pytest.raises(OffsetGap) as caught:
        await space.write_at(TASK, 1, 0, "stderr", 12, b"x")
    assert caught.value.size == 11 and caught.value.status_code == 409
    assert await space.write_at(TASK, 1, 0, "stderr", 11, b"x" * 50) == 20
    assert await space.write_at(TASK, 1, 0, "stderr", 20, b"dropped") == 20
    assert await space.write_at(TASK, 1, 0, "stderr", 90, b"dropped") == 20
    found = await space.open_range(TASK, 1, 0, "stderr", 0, 11)
    assert [chunk async for chunk in found.chunks()] == [b"hello world"]
    assert found.file.closed
    assert (tmp_path / "logs" / TASK / "1" / "0.stderr").stat().st_mode & 0o777 == 0o600
    await space.remove(TASK)
    await space.remove(TASK)
    assert list((tmp_path / "logs").iterdir()) == []
    with pytest.raises(NotFound):
        await space.open_range(TASK, 1, 0, "stderr")


async def test_the_workspace_goes_nowhere_else(tmp_path) -> None:
    space = FileWorkspace(tmp_path / "root")
    (tmp_path / "root" / "logs" / TASK / "1").mkdir(parents=True)
    (tmp_path / "root" / "logs" / TASK / "1" / "0.stdout").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_text("s")
    with pytest.raises(OSError, match="symbolic"):
        await space.open_range(TASK, 1, 0, "stdout")
    with pytest.raises(OSError, match="symbolic"):
        await space.write_at(TASK, 1, 0, "stdout", 0, b"x")
    for place in (("../x", 1, 0, "stdout"), (TASK, -1, 0, "stdout"), (TASK, 1, 0, "../../x")):
        with pytest.raises(NotFound):
            await space.write_at(*place, 0, b"x")
