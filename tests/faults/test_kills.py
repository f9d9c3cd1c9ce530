"""Fifty tasks in flight while what carries them is killed, at moments that a seed chooses."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import LEAST, site

pytestmark = pytest.mark.slow


def test_both_are_killed_with_fifty_tasks_in_flight(bubblewrap: Any, tmp_path: Path) -> None:
    rng = random.Random(4)
    with site(tmp_path, rng, **LEAST) as here:
        works = here.mix.make(50)
        here.oracle.submit(works)
        for _ in range(2):
            here.moment(0.3, 1.5)
            here.kill_both()
            here.gateway.start()
        here.cancel_all(works)
        here.finish()


def test_postgres_is_killed_with_tasks_in_flight(bubblewrap: Any, tmp_path: Path) -> None:
    rng = random.Random(5)
    with site(tmp_path, rng, **LEAST) as here:
        works = here.mix.make(20)
        here.oracle.submit(works)
        here.moment(0.3, 1.5)
        here.kill_postgres()
        here.cancel_all(works)
        here.finish()
