"""Temporary files whose storage is away when their attempt ends: asked for again, and the disk is free meanwhile."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator

import anyio
import pytest

from tesgate.runner import attempt as attempts
from tesgate.runner.attempt import Attempt
from tesgate.runner.journal import Journal
from tesgate.runner.plan import Executor, Keep, Plan, RunAs
from tesgate.runner.record import Final, Record
from tesgate.runner.report import Root
from tesgate.runner.scratch import Scratch
from tesgate.runner.stageout import StageOut
from tesgate.runner.transfer import storing
from tesgate.runner.transfer.stage import Stager
from tesgate.runner.work import Tools

NAME = "tg-test-t1-1"
LOG = logging.getLogger("test")


class Place:
    """A root with a temporary file of an attempt, on a file system that can be away."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attempts, "SETTLE", 0.0)
        monkeypatch.setattr(attempts, "DISCARD_PAUSES", (0.01, 0.01))
        monkeypatch.setattr(storing, "_unlink", self._unlink)
        self.root = tmp_path / "root"
        self.root.mkdir()
        self.file = self.root / (".tesgate-%s-0.part" % NAME)
        self.file.touch()
        self.scratch = Scratch(str(tmp_path / "scratch"))
        self.fault = errno.ESTALE
        self.asked = 0

    def _unlink(self, name: str, parent: int) -> None:
        self.asked += 1
        if self.fault:
            raise OSError(self.fault, os.strerror(self.fault))
        os.unlink(name, dir_fd=parent)

    def stager(self, plan: Plan) -> Stager:
        return Stager(roots=[Root("data", str(self.root))], policy=plan.url_policy)

    def begin(self, *, keep: float = 0.0) -> tuple[Plan, Journal]:
        """An attempt that has failed with bytes in its directory, and that the gateway has forgotten."""
        plan = Plan(
            task="t1",
            attempt=1,
            external_name=NAME,
            executors=[Executor("i", ["true"])],
            token="secret",
            keep=Keep(seconds=keep),
            run_as=RunAs(policy="fixed", uid=61_000, gid=61_000, last_uid=61_000),
        )
        made = self.scratch.begin(plan)
        assert made is not None
        path, journal = made
        Path(path, "rw", "large").write_bytes(b"x" * 4096)
        Path(path, "steps", "0").mkdir()
        Path(path, "steps", "0", "result").write_text("{")
        Path(path, "rw", "out").symlink_to(self.root)
        Path(path, "link").symlink_to(self.root)
        journal.append("starting", executor=0)
        journal.append("temporaries", names=[str(self.file)])
        record = Record(plan=plan, journal=journal, metadata={})
        record.started(0)
        record.ended(0, "stopped", 1, None, {})
        record.final(Final("failed", cause="The storage did not answer."))
        journal.append("settled", message="failed")
        journal.append("forgotten")
        return plan, journal

    def attempt(self, plan: Plan, journal: Journal) -> Attempt:
        nothing: Any = SimpleNamespace()

        async def done(*_: Any) -> bool:
            return True

        tools = Tools(
            client=nothing,
            runtime=SimpleNamespace(name="docker", stop=done, remove=done),
            watch=nothing,
            exec_path="",
            stager=self.stager,
            host="",
            kept=SimpleNamespace(keep=done),  # type: ignore[arg-type]
            removals=anyio.CapacityLimiter(1),
        )
        path = self.scratch.path(NAME)
        return Attempt(plan=plan, path=path, journal=journal, scratch=self.scratch, tools=tools, agent="", log=LOG)

    async def until_asked_again(self) -> None:
        seen = self.asked
        with anyio.fail_after(30):
            while self.asked < seen + 3:
                await anyio.sleep(0.01)

    def left(self) -> list[str]:
        return sorted(os.listdir(self.scratch.path(NAME)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch)
    yield made
    made.scratch.close()


async def test_an_attempt_that_waits_for_a_storage_holds_no_disk(place: Place) -> None:
    users = Path(place.scratch.root, "users")
    plan, journal = place.begin()
    assert os.listdir(users) == ["61000"]
    async with anyio.create_task_group() as group:
        group.start_soon(place.attempt(plan, journal).run)
        await place.until_asked_again()
        assert place.left() == ["journal", "plan.json"]
        assert os.listdir(users) == []
        group.cancel_scope.cancel()
    # Another agent takes it up, and the storage is still away.
    async with anyio.create_task_group() as group:
        group.start_soon(place.attempt(*place.scratch.load(NAME)).run)
        await place.until_asked_again()
        assert place.left() == ["journal", "plan.json"]
        assert place.file.exists()
        place.fault = 0
    assert not place.file.exists()
    assert os.listdir(place.scratch.attempts) == []
    assert place.root.exists()


async def test_an_attempt_that_is_to_be_kept_stays_whole(place: Place) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(place.attempt(*place.begin(keep=3600.0)).run)
        await place.until_asked_again()
        assert {"rw", "steps", "plan.json", "journal"} < set(place.left())
        place.fault = 0
    assert not place.file.exists()
    assert "rw" in place.left()


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EROFS, errno.EISDIR])
async def test_what_no_patience_removes_is_said_once(
    place: Place, fault: int, caplog: pytest.LogCaptureFixture
) -> None:
    place.fault = fault
    attempt = place.attempt(*place.begin())
    with anyio.fail_after(30):
        await attempt.run()
    assert [record.message for record in caplog.records if "remove it by hand" in record.message] == [
        "the temporary file %s of an output stays there, remove it by hand: [Errno %d] %s"
        % (place.file, fault, os.strerror(fault))
    ]
    assert place.asked == 1
    assert os.listdir(place.scratch.attempts) == []


async def test_what_an_earlier_run_left_is_asked_for_after_the_outputs_are_published(place: Place) -> None:
    plan, journal = place.begin()

    def stage_out() -> StageOut:
        return StageOut(
            plan=plan,
            attempt_dir=place.scratch.path(NAME),
            record=Record(plan=plan, journal=journal, metadata={}),
            reporter=SimpleNamespace(),  # type: ignore[arg-type]  # without outputs nothing is asked of it
            client=SimpleNamespace(),  # type: ignore[arg-type]
            stager=place.stager(plan),
            log=logging.LoggerAdapter(LOG, {}),
        )

    first = stage_out()
    assert await first.store() == []
    journal.append("published", outputs=[])
    for one in (first, stage_out()):
        assert not await one.discard()
    place.fault = 0
    assert await stage_out().discard()
    assert not place.file.exists()
    journal.close()
