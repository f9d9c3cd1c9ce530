"""Journal and scratch root: torn lines, full disks, locks, directories that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tesgate.runner.journal import Journal
from tesgate.runner.plan import Executor, Plan
from tesgate.runner.scratch import Scratch, ScratchError, ScratchLocked


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
