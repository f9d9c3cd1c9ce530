"""Faults among several gateways, and between a gateway and its database."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.cutting import Cutting
from tests.faults.deployment import deployment
from tests.replicas.fleet import wait_for

pytestmark = pytest.mark.slow


def test_two_of_three_gateways_are_killed(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """The third takes over; one agent's own gateway is among the dead, and it finds it again when it is back."""
    with deployment(tmp_path / "d", external, random.Random(11)) as here:
        a, b, c = [here.replica(name) for name in "abc"]
        here.agent("one", b)
        here.agent("two", c)
        works = here.mix.make(24)
        here.oracle.submit(works)
        here.moment(0.3, 1.0)
        a.kill()
        b.kill()
        here.cancel_all(works)
        wait_for(
            "the third to follow everything",
            lambda: (
                not here.fleet.rows(
                    "SELECT 1 FROM task WHERE phase IN ('assigned', 'started') AND replica_id IS DISTINCT FROM $1",
                    here.fleet.id_of(c),
                )
            ),
        )
        b.start()
        here.finish()


def test_connections_are_lost_around_commits(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """What was sent was carried out or not: nobody knows, and all is well either way."""
    rng = random.Random(12)
    with Cutting.before(external, rng) as proxy, deployment(tmp_path / "d", external, rng) as here:
        here.fleet.agent_token()
        here.fleet.database_url = proxy.url
        a = here.replica("a")
        here.agent("one", a)
        proxy.answers_lost, proxy.statements_lost = 0.04, 0.02
        works = here.mix.make(16)
        here.oracle.submit(works)
        here.cancel_all(works)
        wait_for("enough cuts", lambda: proxy.cuts > 12 or not here.oracle.open(), 60)
        proxy.answers_lost = proxy.statements_lost = 0.0
        here.fleet.database_url = external
        assert proxy.cuts > 3
        here.finish()


def test_a_database_that_hangs_and_a_gateway_that_is_stopped(bubblewrap: Any, external: str, tmp_path: Path) -> None:
    """Nothing answers for longer than the trust window; then one of two gateways is stopped for as long."""
    rng = random.Random(13)
    with Cutting.before(external, rng) as proxy, deployment(tmp_path / "d", external, rng) as here:
        here.fleet.agent_token()
        b = here.replica("b")
        here.fleet.database_url = proxy.url
        a = here.replica("a")
        here.fleet.database_url = external
        here.agent("one", a)
        here.oracle.submit(here.mix.make(8, kinds=["plain", "copy"]))
        proxy.hang()
        known = a.log.read_text().count("trust window")
        wait_for("a to let go", lambda: a.log.read_text().count("trust window") > known, 30)
        proxy.flow()
        here.oracle.submit(here.mix.make(8, kinds=["plain", "copy"]))
        b.signal(signal.SIGSTOP)
        seen = here.fleet.rows("SELECT epoch FROM replica WHERE id = $1", here.fleet.id_of(b))
        wait_for(
            "b's to be a's",
            lambda: (
                not here.fleet.rows(
                    "SELECT 1 FROM task WHERE phase IN ('assigned', 'started') AND replica_id = $1", here.fleet.id_of(b)
                )
            ),
        )
        b.signal(signal.SIGCONT)
        here.finish()
        assert here.fleet.rows("SELECT epoch FROM replica WHERE id = $1", here.fleet.id_of(b)) == seen
