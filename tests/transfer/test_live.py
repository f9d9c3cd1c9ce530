"""Mounts of roots: what they are of, beneath the roots and nowhere else; and outputs that lie there."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from tesgate.runner.places import make_places
from tesgate.runner.plan import Mount, Output, Plan
from tesgate.runner.report import Root
from tesgate.runner.transfer.faults import PathRefused
from tesgate.runner.transfer.stage import Bound, StagingError
from tests.transfer.conftest import Bed


@pytest.fixture
def shared(bed: Bed) -> Path:
    """A root of mode ``mount`` beside the one that copies."""
    path = bed.base / "shared"
    path.mkdir()
    bed.extra_roots = [
        Root("shared", str(path), mode="mount"),
        Root("still", str(path / "still"), writable=False, mode="mount"),
    ]
    (path / "still").mkdir()
    return path


def live(target: str, host: Path, *, read_only: bool = False, directory: bool = True, make: bool = False) -> Mount:
    return Mount(f"live{host}", target, read_only=read_only, directory=directory, host=str(host), make=make)


def found(bed: Bed, *mounts: Mount) -> list[Bound]:
    return anyio.run(bed.stager().make_mounts, list(mounts))


def test_what_is_mounted_and_how_it_is_known_again(bed: Bed, shared: Path) -> None:
    (shared / "real/d").mkdir(parents=True)
    (shared / "link").symlink_to("real")
    (shared / "real/d/f").write_text("x")
    info = (shared / "real/d").stat()
    one, two = found(
        bed,
        live("/d", shared / "link/d"),
        live("/f", shared / "real/d/f", directory=False, read_only=True),
    )
    assert one == Bound("/d", str(shared / "real/d"), f"{info.st_dev}:{info.st_ino}", True, False)
    assert (two.path, two.directory, two.read_only) == (str(shared / "real/d/f"), False, True)


def test_directories_of_outputs_are_made(bed: Bed, shared: Path) -> None:
    (one,) = found(bed, live("/out", shared / "a/b", make=True))
    assert (shared / "a/b").is_dir()
    assert (shared / "a/b").stat().st_mode & 0o777 == 0o777 & ~_umask()
    (shared / "a/b/kept").write_text("x")
    assert found(bed, live("/out", shared / "a/b", make=True)) == [one]
    assert (shared / "a/b/kept").exists()


def _umask() -> int:
    old = os.umask(0)
    os.umask(old)
    return old


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_is_made_belongs_to_whom_the_commands_are(bed: Bed, shared: Path) -> None:
    anyio.run(bed.stager(owner=(1234, 2345)).make_mounts, [live("/out", shared / "a/b", make=True)])
    assert [((shared / name).stat().st_uid, (shared / name).stat().st_gid) for name in ("a", "a/b")] == [
        (1234, 2345)
    ] * 2
    assert shared.stat().st_uid == 0


def test_what_is_refused(bed: Bed, shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "out").symlink_to(bed.outside)
    (shared / "up").symlink_to("../secret")
    (shared / "copying").symlink_to(bed.root)
    (shared / "into").symlink_to("still")
    os.mkfifo(shared / "pipe")
    for mount, match in (
        (live("/d", bed.outside), "outside the agent's roots"),
        (live("/d", shared / "out"), "leads out of"),
        (live("/d", shared / "up"), "leads out of"),
        (live("/d", bed.root), "does not mount"),
        (live("/d", shared / "copying"), "does not mount"),
        (live("/d", shared / "still"), "read-only"),
        (live("/d", shared), "holds the root .*/still, which is not to be mounted so"),
        (live("/d", shared / "into"), "read-only"),
        (live("/d", shared / "into/new", make=True), "read-only"),
        (live("/d", shared / "out/new", make=True), "leads out of"),
        (live("/d", shared / "nothing"), "does not exist"),
        (live("/d", shared / "f"), "declare it as FILE"),
        (live("/d", shared / "f/new", make=True), "does not exist"),
        (live("/d", shared / "pipe", directory=False), "neither a file nor a directory"),
        (live("/d", shared / "../secret"), r"'\.\.'"),
    ):
        with pytest.raises(StagingError, match=match):
            found(bed, mount)
    bed.extra_roots.append(Root("private", str(shared / "reading/private"), writable=False))
    (shared / "reading/private").mkdir(parents=True)
    with pytest.raises(StagingError, match=r"holds the root .*/private"):
        found(bed, live("/d", shared / "reading", read_only=True))
    assert sorted(os.listdir(bed.outside)) == []
    assert sorted(os.listdir(shared / "still")) == []


def test_an_agent_that_does_not_know_such_mounts_refuses_them(bed: Bed, shared: Path) -> None:
    """It would take them for a place in the scratch; without `host` in the message that is what we are."""
    mount = live("/d", shared)
    mount.host = None
    with pytest.raises(PathRefused, match="does not lie below"):
        make_places(_plan([mount]), str(bed.attempt))


def _plan(mounts: list[Mount]) -> Plan:
    return Plan(task="t", attempt=1, external_name="tg-x-1", executors=[], token="", mounts=mounts)


def test_inside_a_scratch_mount_there_is_something_to_mount_over(bed: Bed, shared: Path) -> None:
    (shared / "f").write_text("x")
    (shared / "js").mkdir()
    mounts = [
        Mount("rw/work", "/work"),
        live("/work/js", shared / "js"),
        live("/work/in/f", shared / "f", directory=False),
        live("/alone", shared / "js"),
    ]
    make_places(_plan(mounts), str(bed.attempt), found(bed, *mounts))
    assert (bed.rw / "work/js").is_dir()
    assert (bed.rw / "work/in/f").read_text() == ""
    assert sorted(os.listdir(bed.rw)) == ["work"]


def test_outputs_that_lie_there_are_listed_and_others_are_copied_out(bed: Bed, shared: Path) -> None:
    (shared / "out/sub").mkdir(parents=True)
    (shared / "out/a").write_text("a")
    (shared / "out/sub/b").write_text("bb")
    (shared / "out/elsewhere").symlink_to(bed.outside)
    (bed.outside / "secret").write_text("secret")
    before = (shared / "out/a").stat()
    bed.mounts = [Mount("rw/work", "/work"), live("/work/out", shared / "out")]
    bed.write("/work/log", "log")
    files = bed.store(
        Output("/work/out", f"file://{shared}/out", "DIRECTORY", live=True),
        Output("/work/out/a", f"{shared}/out/a", live=True),
        bed.output("/work/out/sub/b", "copied"),
        bed.output("/work", "whole", "DIRECTORY"),
    )
    assert [(file.url, file.size_bytes) for file in files if str(shared) in file.url] == [
        (f"file://{shared}/out/a", 1),
        (f"file://{shared}/out/sub/b", 2),
    ]
    assert {name: text for name, text in bed.tree().items() if text} == {
        "copied": "bb",
        "whole/log": "log",
        "whole/out/a": "a",
        "whole/out/sub/b": "bb",
    }
    after = (shared / "out/a").stat()
    assert (after.st_ino, after.st_nlink, after.st_mtime_ns) == (before.st_ino, 1, before.st_mtime_ns)
    assert any("elsewhere" in note for note in bed.notes)


def test_streams_in_mounted_places_are_read_beneath_the_roots(bed: Bed, shared: Path) -> None:
    (shared / "log").write_text("said")
    (shared / "out").symlink_to(bed.outside / "secret")
    (bed.outside / "secret").write_text("secret")
    handle = bed.stager().open_live(f"live{shared}/log")
    assert os.read(handle, 10) == b"said"
    os.close(handle)
    with pytest.raises(PathRefused):
        bed.stager().open_live(f"live{shared}/out")
