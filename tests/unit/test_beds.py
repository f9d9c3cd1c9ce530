"""What the beds share: the cache that several runs on one machine use, and the list of what must be installed."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from tests import beds
from tests.beds import ftp, image, snakemake

SETUP = Path(beds.__file__).with_name("setup.sh")


def is_held(lock: Path) -> bool:
    """Whether somebody has the lock; each opened file counts by itself, so this process counts as well."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="the cache among everybody's files is root's")
def test_a_cache_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "beds"
    monkeypatch.delenv("TESGATE_BEDS", raising=False)
    monkeypatch.setattr(beds, "ROOTS_CACHE", place)
    before = os.umask(0)
    try:
        assert beds.cache_directory() == place
    finally:
        os.umask(before)
    assert place.stat().st_mode & 0o022 == 0
    os.chown(place, 54321, -1)
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()
    os.chown(place, 0, -1)
    place.chmod(0o777)
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o755)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(beds.BedUnavailable, match="TESGATE_BEDS"):
        beds.cache_directory()


def test_wheels_are_copied_while_no_other_run_can_replace_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def context(*_: object) -> NoReturn:
        held.append(is_held(tmp_path / "image.lock"))
        raise beds.BedUnavailable("far enough")

    monkeypatch.setenv("TESGATE_BEDS", str(tmp_path))
    monkeypatch.setattr("shutil.which", lambda program: program)
    monkeypatch.setattr(image, "_tool", lambda _: SimpleNamespace(fetch=lambda folder: folder, BuildError=OSError))
    monkeypatch.setattr(image, "_base", lambda *_: "base")
    monkeypatch.setattr(image, "_context", context)
    with pytest.raises(beds.BedUnavailable, match="far enough"), image.serving("/nowhere.sock", tmp_path / "wheel"):
        pass
    assert held == [True]
    assert not is_held(tmp_path / "image.lock")


def test_an_archive_is_made_and_loaded_while_no_other_run_can_remove_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def made(place: Path) -> Path:
        held.append(is_held(tmp_path / "snakemake-image.lock"))
        return place / "archive"

    def load(*_: object) -> NoReturn:
        held.append(is_held(tmp_path / "snakemake-image.lock"))
        raise beds.BedUnavailable("far enough")

    monkeypatch.setenv("TESGATE_BEDS", str(tmp_path))
    monkeypatch.setattr(snakemake, "environment", lambda _: tmp_path)
    monkeypatch.setattr(snakemake, "_image", made)
    monkeypatch.setattr(snakemake, "_load", load)
    with pytest.raises(beds.BedUnavailable, match="far enough"), snakemake.serving("/nowhere.sock"):
        pass
    assert held == [True, True]


def test_a_package_that_cannot_be_unpacked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = ftp._run

    def run(command: list[str], directory: Path) -> None:
        if command[0] == "apt-get":
            (directory / "vsftpd.deb").write_text("not a package")
        else:
            really(command, directory)

    monkeypatch.setattr("shutil.which", lambda program: program)
    monkeypatch.setattr(ftp, "_run", run)
    with pytest.raises((beds.BedUnavailable, FileNotFoundError), match="dpkg-deb"):
        ftp._unpacked(tmp_path, "vsftpd")
    assert list(tmp_path.iterdir()) == []


def test_what_the_engines_need_is_looked_for_by_itself(tmp_path: Path) -> None:
    for name in ("dockerd", "podman", "runc", "id"):
        (tmp_path / name).write_text("#!/bin/sh\necho 1000\n")  # as an ordinary user, it installs nothing
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["/bin/sh", SETUP], capture_output=True, text=True, check=True, env={"PATH": str(tmp_path)})
    said, _, packages = done.stderr.partition("only root may install them: ")
    assert said.startswith("beds: not installed"), done.stderr
    missing = set(packages.split())
    assert {"slirp4netns", "fuse-overlayfs"} <= missing
    assert not {"docker.io", "podman", "runc"} & missing
