"""Outputs: what is found in the container's view, how it is named, and how it becomes visible."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.access import AccessAnswer, AccessRequest
from tesgate.runner.gateway import Gone
from tesgate.runner.plan import Mount, Output
from tesgate.runner.report import OutputFile, Root
from tesgate.runner.transfer.s3 import ObjectStorage
from tesgate.runner.transfer.stage import LeaseLost, StagingError, host_path
from tests.transfer.conftest import Bed


def listed(files: list[OutputFile]) -> list[tuple[str, str, int]]:
    return [(file.url, file.path, file.size_bytes) for file in files]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_host_path_is_the_longest_mount() -> None:
    mounts = [
        Mount("rw/data", "/data"),
        Mount("ro/data/in.bam", "/data/in.bam", read_only=True, directory=False),
        Mount("ro/deep", "/data/deep/er"),
    ]
    assert host_path("/data/x", mounts) == "rw/data/x"
    assert host_path("/data/in.bam", mounts) == "ro/data/in.bam"
    assert host_path("/data/in.bam2", mounts) == "rw/data/in.bam2"
    assert host_path("/data/deep/er/x", mounts) == "ro/deep/x"
    assert host_path("/database", mounts) == "rw/database"
    assert host_path("//work/./x/", mounts) == "rw/work/x"


def test_a_file_is_stored_and_listed(bed: Bed) -> None:
    bed.write("/work/out.txt", "hello")
    url = f"file://{bed.root}/new/dir/o%20ut.txt"
    assert listed(bed.store(bed.output("/work/out.txt", url))) == [(url, "/work/out.txt", 5)]
    assert bed.tree() == {"new": None, "new/dir": None, "new/dir/o ut.txt": "hello"}
    assert bed.notes == []


def test_nothing_is_visible_before_publish_and_nothing_is_left_after_discard(bed: Bed) -> None:
    bed.write("/work/out.txt", "hello")
    (bed.root / "old").write_text("old")
    prepared = bed.prepare(bed.output("/work/out.txt", "a/b/out.txt"), bed.output("/work/out.txt", "old"))
    assert sorted(bed.tree()) == [".tesgate-tg-x-1-0.part", ".tesgate-tg-x-1-1.part", "old"]
    assert prepared.temporaries == [f"{bed.root}/.tesgate-tg-x-1-{n}.part" for n in (0, 1)]
    anyio.run(bed.stager().discard, prepared.temporaries)
    assert bed.tree() == {"old": "old"}
    anyio.run(bed.stager().discard, prepared)


def test_discard_touches_only_temporary_files_in_roots(bed: Bed) -> None:
    (bed.root / "precious").write_text("x")
    (bed.outside / ".tesgate-tg-x-1-0.part").write_text("x")
    names = [f"{bed.root}/precious", f"{bed.outside}/.tesgate-tg-x-1-0.part", f"{bed.root}/no/.tesgate-tg-x-1-0.part"]
    anyio.run(bed.stager().discard, names)
    assert bed.tree() == {"precious": "x"}
    assert os.listdir(bed.outside) == [".tesgate-tg-x-1-0.part"]


def test_the_journal_gets_the_names_before_a_byte_is_written(bed: Bed) -> None:
    bed.write("/work/out.txt", "hello")
    seen: list[Any] = []

    async def run() -> None:
        await bed.stager().prepare_outputs(
            [bed.output("/work/out.txt", "x")],
            [],
            str(bed.attempt),
            "tg-x-1",
            journal=lambda names: seen.append((names, os.listdir(bed.root))),
        )

    anyio.run(run)
    assert seen == [([f"{bed.root}/.tesgate-tg-x-1-0.part"], [])]


def test_without_lease_nothing_becomes_visible(bed: Bed) -> None:
    for name in "abc":
        bed.write(f"/work/{name}", name)
    outputs = [bed.output(f"/work/{name}", f"new/{name}") for name in "abc"]
    prepared = bed.prepare(*outputs)
    before = sorted(bed.tree())
    with pytest.raises(LeaseLost):
        bed.publish(prepared, lambda: 0.0)
    assert sorted(bed.tree()) == before
    left = [3.0, 2.0, 0.0]
    with pytest.raises(LeaseLost):
        bed.publish(prepared, lambda: left.pop(0))
    assert [name for name in bed.tree() if ".part" not in name] == ["new", "new/a", "new/b"]
    bed.publish(prepared)
    assert bed.tree() == {"new": None, "new/a": "a", "new/b": "b", "new/c": "c"}


def test_a_shorter_output_leaves_no_tail_of_a_longer_one(bed: Bed) -> None:
    (bed.root / "x").write_text("a much longer old file")
    bed.write("/work/x", "short")
    for link in (True, False):
        bed.write("/work/x", "short")
        bed.store(bed.output("/work/x", "x"), link_outputs=link)
        assert bed.tree() == {"x": "short"}


def test_a_second_run_after_a_crash_ends_the_same(bed: Bed) -> None:
    bed.write("/work/x", "text")
    bed.store(bed.output("/work/x", "x"))  # crashed before it could say so
    prepared = bed.prepare(bed.output("/work/x", "x"))  # crashed before publish
    assert len(prepared.files) == 1
    assert listed(bed.store(bed.output("/work/x", "x"))) == [(f"{bed.root}/x", "/work/x", 4)]
    assert bed.tree() == {"x": "text"}


def test_two_names_of_one_file_leave_no_temporary(bed: Bed) -> None:
    bed.write("/work/x", "text")
    prepared = bed.prepare(bed.output("/work/x", "x"))
    os.link(bed.root / ".tesgate-tg-x-1-0.part", bed.root / "x")
    bed.publish(prepared)
    assert bed.tree() == {"x": "text"}


def test_outputs_of_one_file_system_are_moved_not_copied(bed: Bed) -> None:
    source = bed.write("/work/x", "text")
    source.chmod(0o4777)
    bed.store(bed.output("/work/x", "x"))
    assert (bed.root / "x").samefile(source)
    mask = os.umask(0)
    os.umask(mask)
    assert mode(bed.root / "x") == 0o777 & ~mask
    assert (bed.root / "x").stat().st_uid == os.geteuid()


def test_the_users_of_a_shared_directory_keep_their_group(bed: Bed) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root has other groups to give")
    os.chown(bed.root, -1, 4243)
    bed.root.chmod(0o2775)
    for link in (True, False):
        bed.write("/work/x")
        bed.store(bed.output("/work/x", "x"), link_outputs=link)
        assert (bed.root / "x").stat().st_gid == 4243


def test_two_outputs_never_become_one_file(bed: Bed) -> None:
    source = bed.write("/work/x", "text")
    os.link(source, bed.rw / "work" / "y")
    bed.store(bed.output("/work/x", "x"), bed.output("/work/y", "y"), bed.output("/work/x", "again"))
    inodes = {(bed.root / name).stat().st_ino for name in ("x", "y", "again")}
    assert len(inodes) == 3


def test_inputs_are_copied_never_moved(bed: Bed) -> None:
    (bed.root / "in").write_text("original")
    bed.stage(f"{bed.root}/in")
    bed.mounts = [Mount("ro/data/thing", "/data/thing", read_only=True, directory=False)]
    bed.store(bed.output("/data/thing", "out"))
    (bed.root / "out").write_text("changed")
    assert (bed.root / "in").read_text() == "original"


def test_executables_stay_executable(bed: Bed) -> None:
    bed.write("/work/run").chmod(0o700)
    bed.write("/work/data").chmod(0o600)
    mask = os.umask(0)
    os.umask(mask)
    for link in (True, False):
        bed.store(bed.output("/work/run", "run"), bed.output("/work/data", "data"), link_outputs=link)
        assert mode(bed.root / "run") == 0o777 & ~mask
        assert mode(bed.root / "data") == 0o666 & ~mask
        (bed.root / "run").unlink()
        (bed.root / "data").unlink()


def test_missing_outputs_are_noted_and_fail_nothing(bed: Bed) -> None:
    bed.write("/work/there")
    (bed.rw / "work" / "dangling").symlink_to("/usr/lib/libx.so")
    stored = bed.store(
        bed.output("/work/x.txt", "x.txt"),
        bed.output("/work/none*", "", prefix="/work"),
        bed.output("/work/d", "d", "DIRECTORY"),
        bed.output("/work/there/x", "y"),
        bed.output("/work/dangling", "z"),
        bed.output("/nowhere/*", "", prefix="/nowhere"),
    )
    assert stored == []
    assert bed.tree() == {}
    assert bed.notes[0] == "output /work/x.txt was declared but does not exist; nothing was stored for it."
    assert bed.notes[1] == "output /work/none* matches nothing; nothing was stored for it."
    assert "only the image has it" in bed.notes[4]
    assert len(bed.notes) == 6


def test_directories_are_stored_whole(bed: Bed) -> None:
    bed.write("/work/d/a", "a")
    bed.write("/work/d/sub/b c", "b")
    (bed.rw / "work/d/empty/inner").mkdir(parents=True)
    for kind, path, url in (("DIRECTORY", "/work/d/", f"file://{bed.root}/o/"), ("FILE", "/work/d", f"{bed.root}/o")):
        stored = bed.store(Output(path, url, kind))
        assert bed.tree(bed.root / "o") == {"a": "a", "empty": None, "empty/inner": None, "sub": None, "sub/b c": "b"}
        spelled = "b%20c" if url.startswith("file") else "b c"
        base = url.rstrip("/")
        assert listed(stored) == [(f"{base}/a", "/work/d/a", 1), (f"{base}/sub/{spelled}", "/work/d/sub/b c", 1)]


def test_a_directory_that_is_a_file_is_stored_as_one(bed: Bed) -> None:
    bed.write("/work/d", "file")
    assert listed(bed.store(bed.output("/work/d", f"file://{bed.root}/x/", "DIRECTORY"))) == [
        (f"file://{bed.root}/x", "/work/d", 4)
    ]
    assert bed.tree() == {"x": "file"}


def test_a_file_with_a_directory_url_goes_into_it(bed: Bed) -> None:
    bed.write("/work/o ut", "file")
    assert listed(bed.store(bed.output("/work/o ut", f"file://{bed.root}/x/"))) == [
        (f"file://{bed.root}/x/o%20ut", "/work/o ut", 4)
    ]


def test_a_file_inside_a_directory_output_is_stored_once(bed: Bed) -> None:
    """What cwl-tes sends with every task."""
    bed.write("/uQMmjL/md5", "sum")
    bed.write("/uQMmjL/other", "x")
    target = f"file://{bed.root}/tmpx/"
    (bed.root / "tmpx").mkdir()
    stored = bed.store(Output("/uQMmjL/md5", f"{target}md5"), Output("/uQMmjL", target, "DIRECTORY"))
    assert sorted(listed(stored)) == [
        (f"{target}md5", "/uQMmjL/md5", 3),
        (f"{target}other", "/uQMmjL/other", 1),
    ]
    assert bed.notes == []
    assert bed.tree() == {"tmpx": None, "tmpx/md5": "sum", "tmpx/other": "x"}


def test_two_outputs_with_one_url(bed: Bed) -> None:
    bed.write("/work/a", "a")
    bed.write("/work/b", "b")
    assert len(bed.store(bed.output("/work/a", "x"), bed.output("/work/b", "x"))) == 1
    assert bed.tree() == {"x": "a"}
    assert "same url" in bed.notes[0]


def test_what_nextflow_sends(bed: Bed) -> None:
    """The outputs of the recorded request (facts/nextflow.md)."""
    for name in (".command.out", ".command.err", ".exitcode", "b.n", "part_1.txt", "part_2.txt", "d_b/x/y"):
        bed.write(f"/work/{name}", name)
    work = f"{bed.root}/work dir"
    stored = bed.store(
        *(Output(f"/work/{name}", f"{work}/{name}") for name in (".command.out", ".command.err", ".command.log")),
        Output("/work/.exitcode", f"{work}/.exitcode"),
        Output("/work/b.n", f"{work}/b.n"),
        Output("/work/part_*.txt", work, path_prefix="/work"),
        Output("/work/d_b", f"{work}/d_b", "DIRECTORY"),
        Output("/work/absent.txt", f"{work}/absent.txt"),
    )
    names = [".command.out", ".command.err", ".exitcode", "b.n", "part_1.txt", "part_2.txt", "d_b/x/y"]
    assert listed(stored) == [(f"{work}/{name}", f"/work/{name}", len(name)) for name in names]
    assert len(bed.notes) == 2


@pytest.mark.parametrize(
    ("path", "prefix", "expected"),
    [
        ("/work/*.txt", "/work", {"a.txt", "b.txt"}),
        ("/work/*.txt", "/work/", {"a.txt", "b.txt"}),
        ("/work/*.txt", "/", {"work/a.txt", "work/b.txt"}),
        ("/work/**.txt", "/work", {"a.txt", "b.txt", "d/c.txt", "d/e/f.txt"}),
        ("/work/{a,d/c}.t*", "/work", {"a.txt", "d/c.txt"}),
        ("/work/*/*.txt", "/work/d", {"c.txt"}),
        ("/work/d*", "/work", {"d/c.txt", "d/e/f.txt"}),
        ("/work/**", "/work", {"a.txt", "b.txt", "d/c.txt", "d/e/f.txt"}),
        ("/work/{a,b}.txt", "/work", {"a.txt", "b.txt"}),
    ],
)
def test_patterns_and_their_prefix(bed: Bed, path: str, prefix: str, expected: set[str]) -> None:
    for name in ("a.txt", "b.txt", "d/c.txt", "d/e/f.txt"):
        bed.write(f"/work/{name}", name)
    stored = bed.store(Output(path, f"file://{bed.root}/o/", path_prefix=prefix))
    assert {name for name, text in bed.tree(bed.root / "o").items() if text is not None} == expected
    assert sorted(file.url for file in stored) == sorted(f"file://{bed.root}/o/{name}" for name in expected)
    assert bed.notes == []


def test_a_pattern_without_prefix_and_one_with_a_wrong_one(bed: Bed) -> None:
    bed.write("/work/d/a.txt")
    bed.store(bed.output("/work/d/*.txt", "one"), bed.output("/work/d/*.txt", "two", prefix="/elsewhere"))
    assert set(bed.tree()) == {"one", "one/a.txt", "two", "two/a.txt"}
    assert "no path_prefix" in bed.notes[0]
    assert "does not begin with path_prefix" in bed.notes[1]


def test_braces_alone_as_nextflow_sends_them(bed: Bed) -> None:
    bed.write("/work/x_a.txt", "a")
    bed.write("/work/x_b.txt", "b")
    bed.store(Output("/work/x_{a,b}.txt", f"{bed.root}/w/x_{{a,b}}.txt"))
    assert bed.tree() == {"w": None, "w/x_a.txt": "a", "w/x_b.txt": "b"}


@pytest.mark.parametrize("name", ["a[1].txt", "what?", "x*", "{a,b}", "back\\slash"])
def test_a_name_that_looks_like_a_pattern_wins_as_it_is(bed: Bed, name: str) -> None:
    bed.write(f"/work/{name}", "exact")
    bed.write("/work/a1.txt")
    bed.store(Output(f"/work/{name}", f"{bed.root}/stored"))
    assert bed.tree() == {"stored": "exact"}


def test_a_quoted_name_is_found(bed: Bed) -> None:
    bed.write("/work/a*b", "exact")
    bed.store(bed.output("/work/a\\*b", "stored"))
    assert bed.tree() == {"stored": "exact"}


def test_links_are_followed_as_the_container_saw_them(bed: Bed) -> None:
    bed.write("/work/real/x", "x")
    bed.write("/other/y", "y")
    work = bed.rw / "work"
    (work / "relative").symlink_to("real/x")
    (work / "absolute").symlink_to("/other/y")
    (work / "above").symlink_to("../../../../other/y")
    (work / "directory").symlink_to("/other")
    (work / "image").symlink_to("/etc/passwd")
    (work / "loop").symlink_to(".")
    (work / "self").symlink_to("self")
    bed.store(bed.output("/work", "o", "DIRECTORY"), bed.output("/work/directory/y", "through"))
    assert bed.tree() == {
        "o": None,
        "o/above": "y",
        "o/absolute": "y",
        "o/directory": None,
        "o/directory/y": "y",
        "o/real": None,
        "o/real/x": "x",
        "o/relative": "x",
        "through": "y",
    }
    notes = "\n".join(bed.notes)
    assert "output /work/image is a symbolic link to /etc/passwd, which is not among the files" in notes
    assert "output /work/loop leads back to a directory" in notes
    assert "output /work/self is a symbolic link that leads to itself" in notes
    assert len(bed.notes) == 3


def test_links_never_reach_the_host(bed: Bed) -> None:
    secret = bed.outside / "x"
    secret.write_text("secret")
    work = bed.rw / "work"
    work.mkdir()
    (work / "absolute").symlink_to(secret)
    (work / "relative").symlink_to(os.path.relpath(secret, work))
    (work / "attempt").symlink_to("../../plan.json")
    (bed.attempt / "plan.json").write_text("token")
    (bed.rw / "up").symlink_to("..")
    names = ["/work/absolute", "/work/relative", "/work/attempt", "/up/plan.json", "/work/../../plan.json"]
    assert bed.store(*(bed.output(name, f"o{n}") for n, name in enumerate(names))) == []
    assert bed.tree() == {}
    (work / "z").symlink_to("/up/ro")
    assert bed.store(bed.output("/work/**", "all", prefix="/work")) == []


def test_mounts_are_seen_through(bed: Bed) -> None:
    bed.write("/work/out", "out")
    (bed.rw / "work" / "in.txt").write_text("")  # what the engine makes where it mounts a file
    ro = bed.attempt / "ro" / "work"
    (ro / "ref").mkdir(parents=True)
    (ro / "in.txt").write_text("in")
    (ro / "ref" / "r").write_text("r")
    bed.mounts = [
        Mount("rw/work", "/work"),
        Mount("ro/work/in.txt", "/work/in.txt", read_only=True, directory=False),
        Mount("ro/work/ref", "/work/deep/ref", read_only=True),
    ]
    bed.store(bed.output("/work", "o", "DIRECTORY"), bed.output("/work/deep/*", "p", prefix="/work/deep"))
    assert bed.tree(bed.root / "o") == {
        "deep": None,
        "deep/ref": None,
        "deep/ref/r": "r",
        "in.txt": "in",
        "out": "out",
    }
    assert bed.tree(bed.root / "p") == {"ref": None, "ref/r": "r"}


def test_special_files_are_noted(bed: Bed) -> None:
    bed.write("/work/d/x")
    os.mkfifo(bed.rw / "work/d/fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bed.rw / "work/d/sock"))
    bed.store(bed.output("/work/d", "o"), bed.output("/work/d/fifo", "f"))
    assert bed.tree() == {"o": None, "o/x": "text"}
    assert [note.split()[1] for note in bed.notes] == ["/work/d/fifo", "/work/d/sock"]


def test_names_that_are_not_utf8_are_kept(bed: Bed) -> None:
    bed.write("/work/d/x")
    raw = os.fsencode(str(bed.rw / "work/d")) + b"/caf\xe9"
    Path(os.fsdecode(raw)).write_text("latin")
    for url, spelled in ((f"file://{bed.root}/o", "caf%E9"), (f"{bed.root}/p", "caf\ufffd")):
        stored = bed.store(Output("/work/d", url, "DIRECTORY"))
        assert b"caf\xe9" in os.listdir(os.fsencode(str(bed.root / url[-1])))
        assert (f"{url}/{spelled}", "/work/d/caf\ufffd", 5) in listed(stored)
        for file in stored:
            f"{file.url}{file.path}".encode()


def test_targets_outside_the_roots_are_refused(bed: Bed) -> None:
    bed.write("/work/x")
    (bed.root / "out").symlink_to(bed.outside)
    (bed.root / "up").symlink_to("../allowed-sibling")
    bed.extra_roots.append(Root("nested", str(bed.root / "nested"), writable=False))
    (bed.root / "nested").mkdir()
    (bed.root / "into").symlink_to("nested")
    for url in (
        f"{bed.outside}/x",
        f"{bed.sibling}/x",
        f"{bed.root}/../secret/x",
        f"file://{bed.root}/..%2Fsecret/x",
        f"{bed.root}/out/x",
        f"{bed.root}/up/x",
        f"{bed.root}/nested/x",
        f"{bed.root}/into/x",
        "https:///x",
        "s3://b/k",
    ):
        for kind in ("FILE", "DIRECTORY"):
            with pytest.raises(StagingError) as caught:
                bed.prepare(Output("/work/x", url, kind))
            assert not caught.value.transient
    assert os.listdir(bed.outside) == os.listdir(bed.sibling) == os.listdir(bed.root / "nested") == []


def test_a_pattern_cannot_climb_out_of_its_url(bed: Bed) -> None:
    bed.write("/work/x")
    bed.write("/up/x")
    (bed.root / "o").mkdir()
    with pytest.raises(StagingError, match=r"'\.\.'"):
        bed.prepare(Output("/work/../up/*", f"{bed.root}/o", path_prefix="/work"))


def test_links_in_the_target_are_replaced_or_followed_inside(bed: Bed) -> None:
    (bed.root / "real").mkdir()
    (bed.root / "real" / "file").write_text("old")
    (bed.root / "directory").symlink_to("real")
    (bed.root / "file").symlink_to("real/file")
    bed.write("/work/x", "new")
    bed.write("/work/d/y", "y")
    bed.store(bed.output("/work/x", "file"), bed.output("/work/d", "directory"))
    assert not (bed.root / "file").is_symlink()
    assert bed.tree(bed.root / "real") == {"file": "old", "y": "y"}
    assert (bed.root / "directory").is_symlink()


def test_files_and_directories_in_each_others_way(bed: Bed) -> None:
    bed.write("/work/x")
    bed.write("/work/d/y")
    (bed.root / "dir").mkdir()
    (bed.root / "file").write_text("x")
    for path, url in (("/work/x", "dir"), ("/work/x", "file/x"), ("/work/d", "file")):
        with pytest.raises(StagingError) as caught:
            bed.prepare(bed.output(path, url))
        assert not caught.value.transient
    prepared = bed.prepare(bed.output("/work/x", "later"))
    (bed.root / "later").mkdir()
    with pytest.raises(StagingError, match="has become a directory"):
        bed.publish(prepared)


def test_a_link_that_appears_before_publish_is_not_followed(bed: Bed) -> None:
    bed.write("/work/x")
    prepared = bed.prepare(bed.output("/work/x", "new/x"))
    (bed.root / "new").symlink_to(bed.outside)
    with pytest.raises(StagingError):
        bed.publish(prepared)
    assert os.listdir(bed.outside) == []


def test_a_failure_leaves_no_temporary_files(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcdef":
        bed.write(f"/work/{name}")

    def full(*arguments: Any) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(StagingError) as caught:
        bed.prepare(bed.output("/work/*", "o", prefix="/work"), link_outputs=False)
    assert caught.value.transient
    assert bed.tree() == {}


def test_a_cancel_leaves_no_temporary_files(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.write("/work/x")
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 1)

    async def run() -> float:
        stager = bed.stager(link_outputs=False)
        async with anyio.create_task_group() as group:
            group.start_soon(stager.prepare_outputs, [bed.output("/work/x", "x")], [], str(bed.attempt), "tg")
            with anyio.fail_after(60):
                while not os.listdir(bed.root):
                    await anyio.sleep(0.005)
            begun = anyio.current_time()
            group.cancel_scope.cancel()
        return anyio.current_time() - begun

    assert anyio.run(run) < 1
    assert bed.tree() == {}


def test_durable_outputs_are_flushed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    bed.write("/work/x")
    for link in (True, False):
        flushed.clear()
        bed.store(bed.output("/work/x", "x"), durable=True, link_outputs=link)
        assert flushed == [(bed.root / "x").stat().st_ino, bed.root.stat().st_ino]
        bed.write("/work/x")


def test_many_files_keep_few_descriptors_open(bed: Bed) -> None:
    for n in range(300):
        bed.write(f"/work/d/{n % 7}/{n}", str(n))
    before = len(os.listdir("/proc/self/fd"))
    assert len(bed.store(bed.output("/work/d", "o"))) == 300
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_copies_of_inputs_stay_in_the_scratch_too(bed: Bed) -> None:
    (bed.root / "in").write_text("x")
    (bed.root / "in").chmod(0o600)
    staged = bed.stage(f"{bed.root}/in")
    bed.mounts = [Mount("ro/data", "/data", read_only=True)]
    bed.store(bed.output("/data/thing", "out"))
    assert not (bed.root / "out").samefile(staged)


def test_directories_that_link_to_each_other_end(bed: Bed) -> None:
    bed.write("/work/a/x", "x")
    bed.write("/work/b/y", "y")
    (bed.rw / "work/a/l").symlink_to("../b")
    (bed.rw / "work/b/m").symlink_to("../a")
    bed.store(bed.output("/work/a", "o", "DIRECTORY"))
    assert bed.tree(bed.root / "o") == {"l": None, "l/y": "y", "x": "x"}
    assert bed.notes == ["output /work/a/l/m leads back to a directory that it lies in; it was not stored."]


def test_a_file_may_be_an_output_here_and_in_a_store(bed: Bed) -> None:
    """What the one does to its inode (a link, a mode) is no change to the other."""
    bed.write("/work/x", "hello")
    stored: list[str] = []

    def ask(request: AccessRequest) -> AccessAnswer:
        stored.extend(question.url for question in request.store)
        raise Gone("the file was found unchanged, that is all there is to see")

    more = {"storages": [ObjectStorage(ask=ask, settings=bed.http)]}
    prepared = bed.prepare(bed.output("/work/x", "x"), Output("/work/x", "s3://b/x"), **more)
    with pytest.raises(Gone):
        bed.publish(prepared, **more)
    assert (stored, bed.tree()) == (["s3://b/x"], {"x": "hello"})
