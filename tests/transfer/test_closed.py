"""Outputs that a task has closed to its own user, where the agent is that user and not root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tesgate.runner.transfer.paths import open_dir, open_file

USER = 65534


@pytest.fixture
def base(tmp_path: Path) -> Iterator[int]:
    """A directory of the user's, open; within it this process is the user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    inner = tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    for name in ("mine", "linked", "others"):
        (inner / name).write_text(name)
        (inner / name).chmod(0)
    os.link(inner / "linked", inner / "other-name")
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.chown(path, USER if path.name != "others" else 0, -1)
    inner.parent.chmod(0)
    handle = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    os.seteuid(USER)
    try:
        yield handle
    finally:
        os.seteuid(0)
        os.close(handle)


def test_what_is_the_agents_own_is_opened(base: int) -> None:
    with pytest.raises(PermissionError):
        open_dir(base, ["closed", "inner"])
    inner = open_dir(base, ["closed", "inner"], ours=True)
    with pytest.raises(PermissionError):
        open_file(inner, "mine")
    handle = open_file(inner, "mine", ours=True)
    assert os.read(handle, 10) == b"mine"
    assert os.fstat(handle).st_mode & 0o777 == 0o400
    # One that is somebody else's, or could lie elsewhere too, stays as it is.
    for name in ("others", "linked"):
        with pytest.raises(PermissionError):
            open_file(inner, name, ours=True)
        assert os.stat(name, dir_fd=inner).st_mode & 0o777 == 0
    os.close(handle)
    os.close(inner)
