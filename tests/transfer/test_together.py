"""Files of one directory are brought in together: nothing about each of them is another than if it came alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tesgate.runner.plan import Input
from tesgate.runner.transfer.faults import StagingError
from tesgate.runner.transfer.local import MOST, MOST_BYTES, LocalFile, together
from tesgate.runner.transfer.paths import RootDir
from tests.transfer.conftest import Bed
from tests.transfer.test_memory import flat

MANY = 3 * MOST + 5


def fill(directory: Path, count: int = MANY) -> list[str]:
    directory.mkdir(parents=True)
    names = [f"{index:04}" for index in range(count)]
    for name in names:
        (directory / name).write_text(name * 3)
    return names


def one_by_one(bed: Bed, names: list[str], part: str) -> list[Input]:
    return [
        Input(f"/in/{name}", f"{part}/in/{name}", url=f"{bed.root}/many/{name}", writable=part == "rw")
        for name in names
    ]


@pytest.mark.parametrize("directory", [True, False])
def test_writable_ones_are_never_the_originals(bed: Bed, directory: bool) -> None:
    names = fill(bed.root / "many")
    for part in ("ro", "rw"):
        if directory:
            inputs = [
                Input("/in", f"{part}/in", url=f"{bed.root}/many", type="DIRECTORY", writable=part == "rw"),
            ]
        else:
            inputs = one_by_one(bed, names, part)
        bed.stage_in(*inputs)
        staged = bed.attempt / part / "in"
        assert sorted(os.listdir(staged)) == names
        for name in names:
            assert (staged / name).read_text() == name * 3
            same = (staged / name).stat().st_ino == (bed.root / "many" / name).stat().st_ino
            if part == "rw":
                assert not same
                # What a task may do to its files, seen from the original.
                (staged / name).write_text("changed by the task")
                assert (bed.root / "many" / name).read_text() == name * 3


def test_each_file_has_its_own_mode_and_its_own_reason_to_be_a_copy(bed: Bed) -> None:
    names = fill(bed.root / "many", 12)
    for index, name in enumerate(names):
        os.chmod(bed.root / "many" / name, (0o644, 0o600, 0o750, 0o4755)[index % 4])
    bed.stage_in(Input("/in", "ro/in", url=f"{bed.root}/many", type="DIRECTORY"))
    for index, name in enumerate(names):
        staged, original = (bed.attempt / "ro/in" / name).stat(), (bed.root / "many" / name).stat()
        shared = staged.st_ino == original.st_ino
        # Only what every user may read, and what is not set-id, can be the original itself.
        assert not (shared and index % 4)
        expected = (0o644, 0o644, 0o755, 0o755)[index % 4]
        assert stat.S_IMODE(staged.st_mode) == expected


def test_what_an_earlier_try_left_is_replaced(bed: Bed) -> None:
    names = fill(bed.root / "many")
    left = bed.attempt / "ro/in"
    left.mkdir(parents=True)
    for name in names[::3]:
        (left / name).write_text("half of")
    bed.stage_in(*one_by_one(bed, names, "ro"))
    assert [(left / name).read_text() for name in names] == [name * 3 for name in names]


def test_a_link_among_them_is_followed_inside_and_refused_outside(bed: Bed) -> None:
    names = fill(bed.root / "many", 20)
    (bed.root / "elsewhere").write_text("inside")
    (bed.outside / "passwd").write_text("secret")
    (bed.root / "many" / names[7]).unlink()
    (bed.root / "many" / names[7]).symlink_to("../elsewhere")
    bed.stage_in(*one_by_one(bed, names, "rw"))
    assert (bed.rw / "in" / names[7]).read_text() == "inside"
    assert (bed.rw / "in" / names[8]).read_text() == names[8] * 3
    (bed.root / "many" / names[7]).unlink()
    (bed.root / "many" / names[7]).symlink_to(bed.outside / "passwd")
    with pytest.raises(StagingError, match="leads out of"):
        bed.stage_in(*one_by_one(bed, names, "rw"))
    assert (bed.rw / "in" / names[7]).read_text() == "inside"


def test_one_that_vanishes_after_the_listing_is_named(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    names = fill(bed.root / "many", 20)
    real = os.open

    def vanishing(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        gone = bed.root / "many" / names[11]
        if path == names[10] and flags & os.O_NONBLOCK and gone.exists():
            gone.unlink()
        return real(path, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", vanishing)
    with pytest.raises(StagingError, match=f"{names[11]} (vanished|does not exist)"):
        bed.stage_in(*one_by_one(bed, names, "rw"), concurrency=1)


def test_many_files_cost_little_memory_and_leave_no_descriptor(bed: Bed) -> None:
    names = fill(bed.root / "many", 400)
    before = set(os.listdir("/proc/self/fd"))
    with flat(32 << 20):
        bed.stage_in(Input("/in", "rw/in", url=f"{bed.root}/many", type="DIRECTORY", writable=True))
    assert len(os.listdir(bed.rw / "in")) == len(names)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_big_files_are_shared_out_and_directories_are_not_mixed() -> None:
    root = RootDir("data", "/data", "/data", True)

    def file(directory: str, number: int, size: int) -> LocalFile:
        return LocalFile(root, [directory, str(number)], ["rw", directory, str(number)], "shown", True, size)

    small = [file("a", number, 1) for number in range(MOST + 1)] + [file("b", 0, 1)]
    assert [len(run) for run in together(small)] == [MOST, 1, 1]
    big = [file("a", number, MOST_BYTES) for number in range(4)]
    assert [len(run) for run in together(big)] == [1, 1, 1, 1]
    assert [item for run in together(small + big) for item in run] == small + big
