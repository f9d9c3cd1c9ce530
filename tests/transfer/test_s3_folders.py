"""Small files of one directory go to a store as one item: nothing about each is another than if it came alone."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from tesgate.runner.transfer import folder, s3sink
from tesgate.runner.transfer.faults import LeaseLost, StagingError
from tests.transfer.s3_bed import Objects


def fill(directory: Path, count: int) -> None:
    directory.mkdir(parents=True)
    for number in range(count):
        (directory / f"{number:06}").write_bytes(b"%d" % number)


def test_what_is_held_does_not_grow_with_files(objects: Objects) -> None:
    """A name, three numbers and a flag for each. An entry of its own had two kilobytes, which are 6 MiB here."""
    count = 3000
    fill(objects.attempt / "rw/out", count)

    async def prepare() -> None:
        objects.prepared = await objects.prepare(objects.output("/out", "here", "DIRECTORY"))

    tracemalloc.start()  # what this process has beside it is none of ours
    try:
        anyio.run(prepare)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    assert objects.prepared is not None
    assert sum(1 for item in objects.prepared.items for _ in item.files()) == count


def test_a_directory_of_more_than_one_folder(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "FULL", 7)
    monkeypatch.setattr("tesgate.runner.transfer.outputs.FULL", 7)
    monkeypatch.setattr(s3sink, "SINGLE", 6 << 20)
    fill(objects.attempt / "rw/out", 40)
    fill(objects.attempt / "rw/out/ä %+b", 3)
    objects.write("/out/000020x", bytes(6 << 20) + b"large")
    (objects.attempt / "rw/out/link").symlink_to("000003")
    (objects.attempt / "rw/out/nowhere").symlink_to("nothing")
    stored = objects.put(objects.output("/out", "here", "DIRECTORY"))
    expected = [f"here/{number:06}" for number in range(40)] + [f"here/ä %+b/{number:06}" for number in range(3)]
    assert sorted(objects.stored_keys()) == sorted([*expected, "here/000020x", "here/link"])
    paths = sorted(key.replace("here", "/out", 1) for key in objects.stored_keys())
    assert sorted(file.path for file in stored) == paths
    assert objects.stored("here/link") == b"3"
    assert objects.stored("here/000039") == b"39"
    (note,) = objects.notes
    assert note.startswith("output /out/nowhere is a symbolic link to nothing")


@pytest.mark.parametrize("second", ["file", "same", "above", "wildcard"])
def test_outputs_that_meet_are_stored_once(objects: Objects, second: str) -> None:
    fill(objects.attempt / "rw/out", 3)
    fill(objects.attempt / "rw/other", 2)
    objects.write("/other/here/000001", b"other")
    output, twice = {
        "file": (objects.output("/other/000001", "here/000001"), 1),
        "same": (objects.output("/other", "here", "DIRECTORY"), 2),
        "above": (objects.output("/other", "", "DIRECTORY"), 1),
        "wildcard": (objects.output("/other/0*", "here", "DIRECTORY", prefix="/other"), 2),
    }[second]
    objects.put(objects.output("/out", "here", "DIRECTORY"), output)
    assert [objects.stored(f"here/{number:06}") for number in range(3)] == [b"0", b"1", b"2"]
    assert len([note for note in objects.notes if "have the same url" in note]) == twice


def _write(file: Path) -> None:
    file.write_bytes(b"X")


def _replace(file: Path) -> None:
    file.with_name("new").write_bytes(file.read_bytes())
    file.with_name("new").rename(file)


def _link(file: Path) -> None:
    file.unlink()
    file.symlink_to("000001")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("change", [_write, _replace, _link, _pipe, Path.unlink])
def test_a_file_that_changes_before_it_is_published(objects: Objects, change: Callable[[Path], None]) -> None:
    fill(objects.attempt / "rw/out", 3)

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out", "here", "DIRECTORY"))
        change(objects.attempt / "rw/out/000000")
        with pytest.raises(StagingError, match="output /out/000000 changed while it was stored") as caught:
            await objects.stager().publish(prepared, lambda: 30.0)
        assert caught.value.transient

    anyio.run(run)
    assert objects.stored_keys() == []


def test_a_name_that_is_no_key_is_refused_before_anything_is_visible(objects: Objects) -> None:
    fill(objects.attempt / "rw/out", 3)
    long = objects.attempt / "rw/out" / "/".join(["d" * 200] * 5)
    fill(long, 1)
    with pytest.raises(StagingError, match="longer than 1024 bytes"):
        objects.put(objects.output("/out", "here", "DIRECTORY"))
    assert objects.stored_keys() == []


def test_another_lease_sends_only_what_is_missing(objects: Objects) -> None:
    fill(objects.attempt / "rw/out", 30)
    puts = objects.proxy.requests

    async def run() -> None:
        prepared = await objects.prepare(objects.output("/out", "here", "DIRECTORY"))
        stager = objects.stager()
        with pytest.raises(LeaseLost):
            await stager.publish(prepared, lambda: 0.0 if len(puts("PUT")) >= 12 else 30.0)
        before = len(objects.stored_keys())
        assert 0 < before < 30
        await stager.publish(prepared, lambda: 30.0)

    anyio.run(run)
    assert len(objects.stored_keys()) == 30
    assert len(puts("PUT")) < 45
