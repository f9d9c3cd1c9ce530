"""The data directory: one gateway at a time, and keys that several processes agree on."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from tesgate.app.places import DataDir
from tesgate.config import Settings
from tesgate.errors import ConfigError


def read_key(path: Path, barrier: object, answers: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    answers.put(DataDir(path).secret_key(Settings()))  # type: ignore[attr-defined]


def test_processes_that_meet_at_the_first_start_get_one_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(4), context.Queue()
    processes = [context.Process(target=read_key, args=(tmp_path, barrier, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    keys = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600


def test_a_key_that_is_there_already_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process wins between our look and our write."""
    other = DataDir(tmp_path).secret_key(Settings())
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert DataDir(tmp_path).secret_key(Settings()) == other


def test_a_second_gateway_is_refused_by_name(tmp_path: Path) -> None:
    place = DataDir(tmp_path)
    with place.locked(), pytest.raises(ConfigError, match="another gateway"), DataDir(tmp_path).locked():
        pass
    with place.locked():
        pass


def test_a_short_key_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("short")
    with pytest.raises(ConfigError, match="openssl rand"):
        DataDir(tmp_path).secret_key(Settings(secret_key_file=tmp_path / "key"))


def test_an_empty_mark_of_the_original_is_written_anew(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    mark = tmp_path / "original"
    mark.touch()
    data.check_original()
    assert mark.read_text() == f"{mark.stat().st_ino}\n"
    mark.write_text("1\n")
    with pytest.raises(ConfigError, match="is a copy"):
        data.check_original()
