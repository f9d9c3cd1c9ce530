"""Finding processes by what they were started with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tesgate.runner.runtime import processes
from tesgate.runner.runtime.processes import find_by_environment, values_in_environments


@pytest.fixture
def two() -> Iterator[tuple[int, int]]:
    """Two with the same variable: `sleep`, and another program."""
    environment = {**os.environ, "LOOKED_FOR": "here"}
    with (
        subprocess.Popen(["sleep", "60"], env=environment) as sleep,
        subprocess.Popen(["tail", "-f", "/dev/null"], env=environment) as tail,
    ):
        yield sleep.pid, tail.pid
        sleep.kill()
        tail.kill()


def test_only_those_of_the_program_are_found_and_read(two: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, tail = two
    read: list[str] = []

    def spy(path: str, mode: str) -> object:
        read.append(path)
        return open(path, mode)

    monkeypatch.setattr(processes, "open", spy, raising=False)
    assert sleep in find_by_environment("LOOKED_FOR=here", program="sleep")
    assert "here" in values_in_environments("LOOKED_FOR", program="sleep")
    assert find_by_environment("LOOKED_FOR=elsewhere", program="sleep") == []
    assert read.count(f"/proc/{sleep}/environ") == 3
    # The gateway's own environment has the keys of its stores.
    assert not {f"/proc/{pid}/environ" for pid in (tail, os.getpid(), os.getppid())} & set(read)
