"""Benches: an agent on a real runtime against the scripted gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.runner.bench import Bench

BUSYBOX = "tesgate-test/busybox:latest"


@pytest.fixture
def bench(tmp_path: Path, bubblewrap: Any) -> Iterator[Bench]:
    """A bench on bubblewrap."""
    made = Bench(tmp_path, "bubblewrap")
    yield made
    made.close()


@pytest.fixture
def docker_bench(tmp_path: Path, docker: Any) -> Iterator[Bench]:
    """A bench on Docker; no container of it outlives the test."""
    made = Bench(tmp_path, "docker", image=BUSYBOX, options=["--docker-socket", docker.socket])
    yield made
    made.close()
    made.remove_containers()


@pytest.fixture
def bare_bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench whose agent runs no executors: enough for sessions, locks and tombstones."""
    made = Bench(tmp_path, "none")
    yield made
    made.close()
