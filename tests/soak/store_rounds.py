"""Rounds whose tasks have their data and their logs in an object store and on an FTP server, while everything fails."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.beds import ftp as ftp_bed
from tests.beds import s3 as s3_bed
from tests.e2e.harness import wait_for
from tests.faults.deployment import deployment
from tests.faults.oracle import Oracle, Work
from tests.faults.stores import KINDS, StoreMix, Stores, stores
from tests.faults.world import LEAST, site
from tests.replicas.fleet import Replica
from tests.soak.rounds import PATIENCE, kills

pytestmark = [pytest.mark.timeout(900)]

TASKS = 24


@contextmanager
def cancelling(oracle: Oracle, works: Sequence[Work], rng: random.Random) -> Iterator[None]:
    """Cancel what may be cancelled at any moment, one after the other, beside everything else."""
    doomed = [work for work in works if work.may_store]
    pauses = [rng.uniform(0.0, 3.0) for _ in doomed]
    faults: list[AssertionError] = []

    def cancel() -> None:
        for work, pause in zip(doomed, pauses, strict=True):
            time.sleep(pause)
            try:
                oracle.cancel(work, seconds=180)
            except AssertionError as error:
                faults.append(error)

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    yield
    thread.join(600)
    assert not faults and not thread.is_alive(), faults


def of_stores(made: Stores, rng: random.Random) -> list[Callable[[], None]]:
    """All that can go wrong with the stores, each for a while."""

    def for_a_while(begin: Callable[[], None], end: Callable[[], None], most: float) -> Callable[[], None]:
        def fault() -> None:
            begin()
            time.sleep(rng.uniform(0.5, most))
            end()

        return fault

    return [
        for_a_while(made.s3.away, made.s3.mend, 12),
        for_a_while(made.s3.busy, made.s3.mend, 12),
        lambda: made.s3.flaky(rng),
        lambda: made.s3.flaky(rng),
        for_a_while(made.ftp_away, made.ftp_back, 8),
        lambda: made.ftp_flaky(rng),
    ]


def ended(oracle: Oracle, works: Sequence[Work], made: Stores) -> None:
    """The three sentences, and what lies in the stores."""
    made.s3.mend()
    made.ftp_mend()
    oracle.wait(PATIENCE)
    oracle.judge()
    made.judge(works, oracle.ends())
    made.assert_nothing_left()


def test_one_gateway_with_its_data_in_stores(
    bubblewrap: Any, s3: s3_bed.Servers, ftp: ftp_bed.Servers, tmp_path: Path, rng: random.Random
) -> None:
    server = rng.choice([s3.seaweed, s3.seaweed, s3.moto])
    with (
        stores(tmp_path / "stores", server, ftp) as made,
        site(tmp_path / "site", rng, longest=4, **LEAST, **made.settings, CONTROL__JANITOR_INTERVAL="2") as here,
    ):
        mix = mix_of(made, here.gateway.files, here.witness, rng)
        works = mix.make(TASKS, kinds=KINDS)
        here.oracle.submit(works)
        faults = [*kills(here), *of_stores(made, rng), *of_stores(made, rng), lambda: here.kill_postgres()]
        with cancelling(here.oracle, works, rng):
            for _ in range(7):
                here.moment(0.1, 2.5)
                rng.choice(faults)()
            made.s3.mend()
            made.ftp_mend()
        here.cancel_all(works)
        ended(here.oracle, works, made)
        here.finish(PATIENCE)


def mix_of(made: Stores, files: Path, witness: Any, rng: random.Random) -> StoreMix:
    return StoreMix(stores=made, files=files, witness=witness, runtime="bubblewrap", rng=rng, longest=4)


def tell(gateway: Replica, agent: str, verb: str) -> None:
    """As ``tesgate agent drain``, until it is heard."""

    def told() -> bool:
        url = f"http://127.0.0.1:{gateway.port}/tesgate/v1/agents/{agent}:{verb}"
        return gateway.client.post(url).status_code == 200

    wait_for(f"an agent to be told to {verb}", told, 60)


SPANS = {
    # Long enough for a machine that is busy with other things, too.
    "CONTROL__HEARTBEAT": "1",
    "CONTROL__TRUST_WINDOW": "5",
    "CONTROL__ADOPT_AFTER": "8",
    "CONTROL__AGENT_LOST_AFTER": "6",
    "CONTROL__POLL_INTERVAL": "0.5",
    "CONTROL__DISPATCH_INTERVAL": "0.2",
    "CONTROL__PUBLISH_LEASE": "12",
    "CONTROL__JANITOR_INTERVAL": "2",
}


def test_agents_are_fenced_drained_and_come_back(
    bubblewrap: Any, s3: s3_bed.Servers, ftp: ftp_bed.Servers, external: str, tmp_path: Path, rng: random.Random
) -> None:
    """Two gateways share a workspace of objects; agents are stopped for longer than their lease, and go on."""
    with (
        stores(tmp_path / "stores", s3.seaweed, ftp) as made,
        deployment(tmp_path / "d", external, rng) as here,
    ):
        settings = {**SPANS, **made.settings}
        a, b = here.replica("a", **settings), here.replica("b", **settings)
        agents = [here.agent("one", a), here.agent("two", b), here.agent("three", b)]
        mix = mix_of(made, here.fleet.files, here.witness, rng)
        works = mix.make(TASKS, kinds=KINDS)
        here.oracle.submit(works)

        def fenced() -> None:
            victim = rng.choice(agents)
            victim.signal(signal.SIGSTOP)
            here.moment(0.5, 16.0)
            victim.signal(signal.SIGCONT)

        def killed() -> None:
            victim = rng.choice([*agents, a, b])
            victim.kill()
            here.moment(0.0, 6.0)
            victim.start()

        def stopped() -> None:
            victim = rng.choice([a, b])
            victim.signal(signal.SIGSTOP)
            here.moment(0.5, 5.0)
            victim.signal(signal.SIGCONT)

        def drained() -> None:
            victim = rng.choice(here.fleet.rows("SELECT id FROM agent"))["id"]
            tell(a, victim, "drain")
            here.moment(0.5, 4.0)
            tell(a, victim, "undrain")

        with cancelling(here.oracle, works, rng):
            for _ in range(7):
                here.moment(0.1, 2.0)
                rng.choice([fenced, fenced, killed, killed, stopped, drained, *of_stores(made, rng)])()
            made.s3.mend()
            made.ftp_mend()
        here.cancel_all(works)
        ended(here.oracle, works, made)
        here.finish(PATIENCE)
        here.oracle.assert_logs()
