"""PostgreSQL is stopped for ten seconds while two gateways work: all wait, and all goes on."""

from __future__ import annotations

import secrets
import tempfile
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.errors import StoreError
from tests.beds.postgres import FAST
from tests.replicas.fleet import Fleet, Replica, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

AWAY = 10.0
PATIENCE = 20.0
"""Seconds that a request waits for the database before it is answered 503. Only where the server's start takes another
ten is anybody told so."""


@pytest.fixture
def server() -> Generator[EmbeddedPostgres]:
    """A PostgreSQL that can be stopped, unlike the one that the tests share. It loses nothing that was committed."""
    with tempfile.TemporaryDirectory(prefix="tesgate-outage-") as directory:
        Path(directory).chmod(0o711)
        made = EmbeddedPostgres(Path(directory), settings={**FAST, "synchronous_commit": "on"})
        try:
            anyio.run(made.start)
        except StoreError as error:
            pytest.skip(str(error))
        yield made
        anyio.run(made.stop)


@dataclass
class Client:
    """Posts and asks without a pause until it is told to end."""

    replica: Replica
    ended: threading.Event
    ids: list[str] = field(default_factory=list)
    statuses: list[tuple[int, float]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def run(self) -> None:
        with httpx.Client(base_url=self.replica.client.base_url, timeout=60, trust_env=False) as client:
            while not self.ended.is_set():
                try:
                    self._once(client)
                except (httpx.HTTPError, AssertionError) as error:
                    self.faults.append(repr(error))

    def _once(self, client: httpx.Client) -> None:
        name = secrets.token_hex(6)
        task = self.replica._fleet.task("true", name)
        while True:
            # A POST whose outcome is unknown is sent again with its key, as clients should.
            answer = self._timed(client, "POST", "/tasks", json=task, headers={"Idempotency-Key": name})
            if answer.status_code == 200:
                break
            assert answer.headers["retry-after"]
        self.ids.append(answer.json()["id"])
        for _ in range(4):
            self._timed(client, "GET", f"/tasks/{self.ids[-1]}")
            self.ended.wait(0.1)

    def _timed(self, client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        began = time.monotonic()
        answer = client.request(method, path, **more)
        self.statuses.append((answer.status_code, time.monotonic() - began))
        return answer


def test_postgres_is_away_for_ten_seconds(server: EmbeddedPostgres, bubblewrap: Any, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, server.dsn)
    ended = threading.Event()
    threads: list[threading.Thread] = []
    try:
        a, b = fleet.replica("a"), fleet.replica("b")
        agent = fleet.agent("one", b)
        clients = [Client(replica, ended) for replica in (a, b, a)]
        threads = [threading.Thread(target=client.run) for client in clients]
        long_one = a.submit("while [ ! -e /count/go ]; do sleep 0.05; done")
        count = agent.begun(long_one)
        for thread in threads:
            thread.start()
        wait_for("some load", lambda: all(len(client.ids) > 1 for client in clients))
        anyio.run(server.stop)
        stopped = time.monotonic()
        (count / "go").touch()
        time.sleep(AWAY)  # the length of the outage, not a wait
        anyio.run(server.start)
        away = time.monotonic() - stopped
        wait_for("everybody to be served again", lambda: all(one.statuses[-1][0] == 200 for one in clients))
        before = [len(client.ids) for client in clients]
        wait_for("new tasks", lambda: all(len(one.ids) > known for one, known in zip(clients, before, strict=True)))
        ended.set()
        for thread in threads:
            thread.join()
        assert not [client.faults for client in clients if client.faults]
        statuses = [item for client in clients for item in client.statuses]
        assert {status for status, _ in statuses} <= {200, 503}
        assert all(took > PATIENCE - 2 for status, took in statuses if status == 503), "not before patience is over"
        assert max(took for _, took in statuses) < away + 10
        assert not a.is_dead() and not b.is_dead()
        # Nothing that was accepted is lost, and nothing began twice.
        ids = [task_id for client in clients for task_id in client.ids] + [long_one]
        (found,) = fleet.rows("SELECT count(*) AS tasks FROM task")
        assert found["tasks"] == len(set(ids)) == len(ids)
        for task_id in ids:
            fleet.check(a.wait(task_id))
        fleet.assert_nothing_left()
    finally:
        ended.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        fleet.close()
