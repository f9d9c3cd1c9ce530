"""Several gateways on one database with their agents, a mix of tasks and an oracle."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.oracle import Mix, Oracle, Witness, Work
from tests.replicas.fleet import Agent, Fleet, Replica

__all__ = ["Deployment", "deployment"]

SETTINGS = {"DEFAULTS__RAM_GB": "0.1", "RETRIES__MAX_ATTEMPTS": "20", "RETRIES__BACKOFF_FACTOR": "1"}


class Deployment:
    """Everything that a fault of several processes needs; made by `deployment`."""

    def __init__(self, base: Path, database_url: str, rng: random.Random, host: str = "127.0.0.1") -> None:
        self.rng = rng
        self.fleet = Fleet(base, database_url, migrate=False)
        self.witness = Witness(host)
        self.mix = Mix(files=self.fleet.files, witness=self.witness, runtime="bubblewrap", rng=rng)
        self.oracle = Oracle(self._urls, self.witness)

    def _urls(self) -> list[str]:
        living = [one for one in self.fleet.replicas.values() if not one.is_dead() and one.port]
        return [str(one.client.base_url).rstrip("/") for one in living]

    def replica(self, name: str, **settings: str) -> Replica:
        return self.fleet.replica(name, **{**SETTINGS, **settings})

    def agent(self, name: str, gateway: Replica) -> Agent:
        made = self.fleet.agents.get(name)
        if made is None:
            made = self.fleet.agents[name] = Agent(self.fleet, name, gateway)
            made.options = ["--network", "host"]
        return made.start()

    def moment(self, least: float, most: float) -> None:
        """The moment of the next fault: a length that the seed chooses, not a wait for anything."""
        time.sleep(self.rng.uniform(least, most))

    def cancel_all(self, works: Sequence[Work]) -> None:
        for work in works:
            if work.cancel:
                self.oracle.cancel(work)

    def finish(self, seconds: float = 90.0) -> None:
        """The three sentences."""
        self.oracle.wait(seconds)
        self.oracle.judge()
        self.fleet.assert_nothing_left()

    def close(self) -> None:
        self.oracle.close()
        self.fleet.close()
        self.witness.close()


@contextlib.contextmanager
def deployment(base: Path, database_url: str, rng: random.Random, *, host: str = "127.0.0.1") -> Iterator[Deployment]:
    """Nothing of it runs yet; everything that was started is ended at the end. The database is migrated.

    `host`: where executors find the witness.
    """
    base.mkdir(exist_ok=True)
    made = Deployment(base, database_url, rng, host)
    try:
        made.oracle.start()
        yield made
    finally:
        made.close()
