"""The follower of logs, with a gateway that says no."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.gateway import Conflict
from tesgate.runner.journal import Journal
from tesgate.runner.logs import LogFollower
from tesgate.runner.report import AttemptRef

pytestmark = pytest.mark.anyio


class _Gateway:
    """Takes what follows on what it has, and answers the rest with its own offset."""

    def __init__(self) -> None:
        self.stored = bytearray()
        self.asked = 0

    async def put_log(self, ref: Any, token: str, executor: int, name: str, offset: int, data: bytes) -> None:
        self.asked += 1
        await anyio.sleep(0)
        if offset > len(self.stored):
            conflict = Conflict("a hole would come about")
            conflict.offset = len(self.stored)
            raise conflict
        self.stored[offset:] = data

    async def pause(self, seconds: float) -> None:
        await anyio.sleep(seconds)


async def _follow(tmp_path: Path, content: bytes | None, size: int, tail: bytes, at: int) -> _Gateway:
    gateway = _Gateway()
    place = tmp_path / "steps" / "0" / "out"
    place.mkdir(parents=True)
    if content is not None:
        (place / "stdout").write_bytes(content)
    journal = Journal(str(tmp_path / "journal"))
    journal.append("logged", executor=0, stream="stdout", offset=at)
    logs = LogFollower(
        client=gateway,  # type: ignore[arg-type]
        ref=AttemptRef("t", 1),
        token="x",
        journal=journal,
        attempt_dir=str(tmp_path),
        cap=1000,
        tail_bytes=10,
        changed=lambda executor, stream, text: None,
        log=logging.LoggerAdapter(logging.getLogger("test"), {}),
    )
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            logs.end(0, "stdout", "steps/0/out/stdout", size, tail)
            group.start_soon(logs.run)
            assert await logs.drained(5.0)
            group.cancel_scope.cancel()
    journal.close()
    return gateway


async def test_it_goes_back_where_the_file_has_the_bytes(tmp_path: Path) -> None:
    gateway = await _follow(tmp_path, b"0123456789" * 10, 100, b"789", at=50)
    assert bytes(gateway.stored) == b"0123456789" * 10


@pytest.mark.parametrize("content", [None, b"", b"0123"])
async def test_where_only_the_tail_is_left_it_does_not_go_back_for_ever(tmp_path: Path, content: bytes | None) -> None:
    gateway = await _follow(tmp_path, content, 100, b"6789", at=50)
    assert gateway.asked < 5
    assert b"6789" not in gateway.stored
