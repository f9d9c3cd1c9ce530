"""Journal and scratch root: torn lines, full disks, locks, directories that are whole or not there."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tesgate.runner import clock, wire
from tesgate.runner.agent import Agent
from tesgate.runner.attempts import Attempts
from tesgate.runner.journal import RESERVED, Journal
from tesgate.runner.plan import Executor, Plan, RunAs
from tesgate.runner.record import Final, Record
from tesgate.runner.report import OutputFile, PollAnswer, StopOrder
from tesgate.runner.scratch import Scratch, ScratchError, ScratchLocked
from tesgate.runner.stageout import LISTED_BYTES, StageOut
from tesgate.runner.step import Step


def _plan(name: str = "tg-test-t1-1") -> Plan:
    return Plan(task="t1", attempt=1, external_name=name, executors=[Executor("i", ["true"])], token="secret")


def test_entries_come_back_in_their_order(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    journal.append("begun")
    journal.append("starting", executor=0, sync=True)
    journal.append("starting", executor=1)
    journal.close()
    again = Journal(str(tmp_path / "journal"))
    assert [entry["what"] for entry in again.entries] == ["begun", "starting", "starting"]
    assert again.find("starting") == again.find("starting", executor=1)
    assert again.find("starting", executor=0) == again.entries[1]
    assert again.find("ended") is None
    assert stat.S_IMODE(os.stat(again.path).st_mode) == 0o600


@pytest.mark.parametrize("torn", [b'{"what":"star', b'{"what":"x"', b"\xff\xfe\n", b"[]\n", b'{"no":1}\n', b"\0" * 20])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path))
    journal.append("begun")
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = Journal(str(path))
    assert [entry["what"] for entry in again.entries] == ["begun"]
    again.append("next")
    again.close()
    assert [entry["what"] for entry in Journal(str(path)).entries] == ["begun", "next"]


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"))
    journal.append("begun")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(OSError, match="full"):
        journal.append("starting")
    monkeypatch.undo()
    journal.append("later")
    journal.close()
    assert [entry["what"] for entry in Journal(str(tmp_path / "journal")).entries] == ["begun", "later"]


def test_no_journal_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "journal").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Journal(str(tmp_path / "journal"))


def test_one_agent_a_scratch(tmp_path: Path) -> None:
    first = Scratch(str(tmp_path / "s"))
    with pytest.raises(ScratchLocked, match="another agent already works in"):
        Scratch(str(tmp_path / "s"))
    instance = first.instance
    assert first.holds_lock()
    first.close()
    second = Scratch(str(tmp_path / "s"))
    assert second.instance == instance
    assert stat.S_IMODE(os.stat(second.root).st_mode) == 0o700
    second.close()


def test_a_scratch_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ScratchError, match="cannot be used"):
        Scratch(str(tmp_path / "file" / "s"))


def test_an_attempt_begins_once(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    made = scratch.begin(_plan())
    assert made is not None
    path, journal = made
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path + "/plan.json").st_mode) == 0o600
    assert scratch.begin(_plan()) is None
    assert scratch.names() == ["tg-test-t1-1"]
    assert [name for name in os.listdir(scratch.attempts) if name.startswith(".")] == []
    journal.close()
    plan, again = scratch.load("tg-test-t1-1")
    assert plan == _plan()
    assert again.find("begun") is not None
    again.close()
    scratch.close()


def test_the_user_of_a_range_is_in_the_plan_and_given_back_where_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(str(tmp_path))
    wide = RunAs(policy="fixed", uid=5000, last_uid=5001)
    made = scratch.begin(replace(_plan("tg-a"), run_as=wide))
    assert made is not None
    made[1].close()
    plan, journal = scratch.load("tg-a")
    journal.close()
    assert plan.run_as.last_uid is None
    assert os.readlink(tmp_path / "users" / str(plan.run_as.uid)) == "tg-a"

    def full(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("tesgate.runner.scratch._write", full)
        with pytest.raises(OSError, match="full"):
            scratch.begin(replace(_plan("tg-b"), run_as=wide))
    assert len(os.listdir(tmp_path / "users")) == 1
    scratch.close()


def test_a_disk_without_inodes_costs_the_attempt_and_not_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, nothing = Scratch(str(tmp_path)), SimpleNamespace()
    agent = Agent(settings=nothing, scratch=scratch, client=nothing, tools=nothing)  # type: ignore[arg-type]
    agent._attempts = Attempts(scratch=scratch, tools=nothing, group=nothing)  # type: ignore[arg-type]
    real = os.open

    def full(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "no inodes")
        return real(path, flags, *more, **others)

    def no_link(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "no inodes")

    monkeypatch.setattr(os, "open", full)
    monkeypatch.setattr(os, "symlink", no_link)
    plan = replace(_plan(), run_as=RunAs(policy="fixed", uid=5000, last_uid=5001))
    assert agent._obey(PollAnswer(start=[plan]))
    assert agent._attempts.refused == {("t1", 1)}
    assert not agent._obey(PollAnswer(stop=[StopOrder("t2", 1, 1.0)]))
    monkeypatch.undo()
    assert agent._obey(PollAnswer(stop=[StopOrder("t2", 1, 1.0)]))
    assert scratch.entombed("t2", 1)
    assert scratch.names() == []
    scratch.close()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".new-x", "-x", "x\n"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    scratch = Scratch(str(tmp_path))
    with pytest.raises(ScratchError):
        scratch.begin(_plan(name))
    with pytest.raises(ScratchError):
        scratch.entomb(name or "/", 1)
    scratch.close()


def test_removal_gets_into_locked_directories_and_follows_no_link(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path / "s"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    made = scratch.begin(_plan())
    assert made is not None
    inner = Path(made[0]) / "rw" / "locked"
    inner.mkdir()
    (inner / "file").touch()
    (inner / "link").symlink_to(outside)
    inner.chmod(0)
    scratch.remove("tg-test-t1-1")
    scratch.remove("tg-test-t1-1")
    assert os.listdir(scratch.attempts) == []
    assert (outside / "kept").exists()
    scratch.close()


def test_tombstones(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    assert not scratch.entombed("t1", 2)
    scratch.entomb("t1", 2)
    scratch.entomb("t1", 2)
    assert scratch.entombed("t1", 2)
    assert not scratch.entombed("t1", 1)
    os.utime(tmp_path / "tombstones" / "t1-2", (0, 0))
    scratch.sweep()
    assert not scratch.entombed("t1", 2)
    scratch.close()


def test_exec_is_placed_by_its_content(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path))
    path = scratch.install(b"program")
    assert scratch.install(b"program") == path
    assert scratch.install(b"another") != path
    assert Path(path).read_bytes() == b"program"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755
    scratch.close()


def test_text_takes_the_room_of_its_bytes_and_names_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal(path)
    name = os.fsdecode(b"/out/\xff\xe9") + "\u2028\x85\0"
    before = os.path.getsize(path)
    journal.append("ended", text="\ufffd" * 10_000)
    assert os.path.getsize(path) - before < 30_500
    journal.append("temporaries", names=[name])
    journal.close()
    again = Journal(path)
    assert [entry["what"] for entry in again.entries] == ["ended", "temporaries"]
    assert again.entries[1]["names"] == [name]
    again.close()


def _set_aside(journal: Journal) -> int:
    found = os.stat(journal.path)
    return found.st_blocks * 512 - found.st_size


def test_the_room_that_is_set_aside_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"))
    if _set_aside(journal) < RESERVED:
        pytest.skip("this file system sets nothing aside")
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:5]))
    with pytest.raises(OSError, match="full") as caught:
        journal.append("starting")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert _set_aside(journal) >= RESERVED
    for _ in range(5):
        journal.append("ended", text="x" * (RESERVED // 2))
        assert _set_aside(journal) >= RESERVED // 2
    journal.close()


def test_a_full_disk_takes_the_end_without_its_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"))
    record = Record(plan=_plan(), journal=journal, metadata={})
    record.started(0)
    real = Journal._append

    def full(self: Journal, what: str, sync: bool, facts: dict[str, Any]) -> Any:
        if len(str(facts)) > 1000:
            raise OSError(errno.ENOSPC, "full")
        return real(self, what, sync, facts)

    monkeypatch.setattr(Journal, "_append", full)
    outputs = [OutputFile("file:///" + "x" * 2000, "/x", 1)]
    record.ended(0, "exited", 3, None, {"stdout": "x" * 2000, "stderr": ""})
    record.published(outputs)
    record.final(Final("finish", state="COMPLETE", outputs=outputs, published=True))
    journal.close()
    again = Record(plan=_plan(), journal=Journal(journal.path), metadata={})
    assert again.find_published() == []
    final = again.find_final()
    assert final is not None
    assert (final.state, final.published, final.outputs) == ("COMPLETE", True, [])
    ended = again.journal.find("ended", executor=0)
    assert ended is not None
    assert ended["report"]["exit_code"] == 3
    again.journal.close()


def test_the_mark_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "original"
    mark.touch()  # the host lost its power before it was written
    Scratch(str(tmp_path)).close()
    assert mark.read_text() == f"{mark.stat().st_ino}\n"
    mark.unlink()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("tesgate.runner.scratch._sync_directory", lambda path: None)
        patch.setattr(os, "fsync", full)
        Scratch(str(tmp_path)).close()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("original")]
    Scratch(str(tmp_path)).close()
    mark.write_text("1\n")
    with pytest.raises(ScratchError, match="is a copy"):
        Scratch(str(tmp_path))


def test_a_disk_that_does_not_answer_is_as_full_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch(str(tmp_path))
    before = scratch.has_space()

    def fail(path: str) -> Any:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(os, "statvfs", fail)
    assert scratch.has_space() == before
    scratch.close()


def test_damaged_moments_go_by_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = clock.now().split()[0]
    assert 50 < clock.since({"up": boot + " 1\0\0", "at": time.time() - 60}) < 100

    def fail() -> str:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(clock, "boot_id", fail)
    assert clock.now().startswith(" ")
    assert 50 < clock.since({"up": clock.now(), "at": time.time() - 60}) < 100


def test_the_list_of_outputs_is_cut_by_the_bytes_of_its_message() -> None:
    notes: list[str] = []
    here: Any = SimpleNamespace(_record=SimpleNamespace(note=notes.append))
    outputs = [OutputFile("file:///" + "\ufffd" * 4000, "/" + "é" * 2000, 1)] * 800
    listed = StageOut.listed(here, outputs)
    assert LISTED_BYTES - 50_000 < len(json.dumps([wire.encode(item) for item in listed])) <= LISTED_BYTES
    assert len(notes) == 1
    assert StageOut.listed(here, outputs[:10]) == outputs[:10]


def test_what_cannot_be_looked_at_counts_as_living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = SimpleNamespace(_dir=str(tmp_path), index=0)
    assert not Step._exec_lives(step)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "0").mkdir()
    assert not Step._exec_lives(step)

    def fail(*args: Any) -> int:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(os, "open", fail)
    assert Step._exec_lives(step)


def test_what_is_kept_holds_its_engine(tmp_path: Path) -> None:
    """Whoever took another engine could never remove the containers of what is kept."""
    scratch = Scratch(str(tmp_path))
    scratch.record_socket("/run/podman/podman.sock")
    scratch.record_runtime("docker")
    assert (scratch.recall_socket(), scratch.recall_runtime()) == (None, None)
    (tmp_path / "kept/tg-a").mkdir(parents=True)
    assert (scratch.recall_socket(), scratch.recall_runtime()) == ("/run/podman/podman.sock", "docker")
    scratch.close()
