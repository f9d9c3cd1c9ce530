"""Who may join a deployment, and with which part: others are refused with a sentence, before they change anything."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.replicas.fleet import Agent, Fleet, Replica, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

REFUSED = 2
PROMPT = 18.0
"""Seconds; a poll that is held is answered after 20."""
SUPERSEDED = 7


@pytest.fixture
def stranger(fleet: Fleet) -> Generator[Replica]:
    made = Replica(fleet, f"stranger-{secrets.token_hex(3)}")
    yield made
    made.close()


@pytest.fixture
def leaves_no_trace(fleet: Fleet, a: Replica) -> Generator[None]:
    """Who is refused is no replica, and disturbs nobody."""
    before = fleet.rows("SELECT id, epoch FROM replica ORDER BY id")
    yield
    assert fleet.rows("SELECT id, epoch FROM replica ORDER BY id") == before
    assert a.client.get("/service-info").status_code == 200


def test_another_deployment_is_refused(fleet: Fleet, a: Replica, stranger: Replica) -> None:
    (row,) = fleet.rows("SELECT id FROM deployment")
    stranger.settings = {"DEPLOYMENT_ID": "elsewher"}
    before = fleet.rows("SELECT id, epoch FROM replica")
    code, said = stranger.refused()
    assert code == REFUSED
    assert fleet.rows("SELECT id, epoch FROM replica") == before
    assert f"belongs to the deployment {row['id']} and the configuration names elsewher" in said
    stranger.settings = {"DEPLOYMENT_ID": row["id"]}
    stranger.start()
    assert stranger.terminate() < PROMPT


@pytest.mark.usefixtures("leaves_no_trace")
def test_another_secret_key_is_refused(fleet: Fleet, stranger: Replica, tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_text(secrets.token_hex(32))
    for settings in ({"SECRET_KEY_FILE": str(other)}, {"SECRET_KEY_FILE": ""}):
        stranger.settings = settings
        code, said = stranger.refused()
        assert code == REFUSED
        assert "has another secret key: give this gateway the secret_key_file" in said
    assert str(fleet.key.read_text()) not in said


@pytest.mark.usefixtures("leaves_no_trace")
def test_a_newer_schema_is_refused(fleet: Fleet, stranger: Replica) -> None:
    fleet.rows(
        "INSERT INTO schema_migration (number, name, checksum, admits) VALUES (9999, 'from_the_future', '', 9999)"
    )
    try:
        code, said = stranger.refused()
    finally:
        fleet.rows("DELETE FROM schema_migration WHERE number = 9999")
    assert code == REFUSED
    assert "schema is newer than this version of tesgate (it has 9999_from_the_future): upgrade this tesgate" in said


def test_a_schema_that_is_not_there_is_not_made_unasked(tmp_path: Path, empty_database_url: str) -> None:
    fleet = Fleet(tmp_path, empty_database_url, migrate=False)
    code, said = Replica(fleet, "early").refused()
    assert code == REFUSED
    assert "run `tesgate migrate` once" in said
    assert not fleet.rows("SELECT 1 FROM pg_tables WHERE schemaname = 'public'")


@pytest.mark.usefixtures("leaves_no_trace")
def test_two_on_one_data_directory_are_refused(fleet: Fleet, a: Replica, stranger: Replica) -> None:
    stranger.data = a.data
    code, said = stranger.refused()
    assert code == REFUSED
    assert a.process is not None
    assert f"another gateway (process {a.process.pid}) uses {a.data}" in said


def test_a_copy_of_a_data_directory_ends_the_one_before(fleet: Fleet, a: Replica, stranger: Replica) -> None:
    """Where the lock does not help (another host, a copied volume) the newer epoch wins, and nobody acts twice."""
    stranger.data.mkdir()
    (stranger.data / "replica.id").write_text(fleet.id_of(a))
    stranger.start()
    wait_for("the older one to end", a.is_dead)
    assert a.process is not None
    assert a.process.returncode == SUPERSEDED
    assert stranger.terminate() < PROMPT


def test_a_signal_right_after_the_start_is_orderly(fleet: Fleet, stranger: Replica) -> None:
    """Whoever reads that it listens may end it."""
    for _ in range(2):
        with subprocess.Popen(
            stranger.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=fleet.environment()
        ) as process:
            assert process.stdout is not None
            assert b"listens on" in process.stdout.readline()
            process.terminate()
            assert process.wait(60) == 0
        (row,) = fleet.rows("SELECT left_at FROM replica WHERE id = $1", fleet.id_of(stranger))
        assert row["left_at"] is not None


def test_roles_may_be_split(fleet: Fleet, a: Replica) -> None:
    """One that answers, two that follow; one of those is killed."""
    a.terminate()
    api = fleet.replica("api", "--roles", "api")
    task_id = api.submit()
    agent = Agent(fleet, "split", api)
    controls: list[Replica] = []
    try:
        agent.start()
        assert fleet.replica_of(task_id) is None
        assert api.state(task_id) == "QUEUED"
        controls += [fleet.replica(f"control-{number}", "--roles", "control") for number in (1, 2)]
        fleet.check(api.wait(task_id))
        running = api.submit("while [ ! -e /count/go ]; do sleep 0.05; done")
        count = agent.begun(running)
        owner = next(control for control in controls if fleet.id_of(control) == fleet.replica_of(running))
        (other,) = (control for control in controls if control is not owner)
        owner.kill()
        wait_for("the other to adopt", lambda: fleet.replica_of(running) == fleet.id_of(other))
        canceled = api.submit("sleep 300")
        agent.begun(canceled)
        api.cancel(canceled)
        api.wait(canceled, "CANCELED", seconds=PROMPT)
        assert other.client.get("/tasks").status_code == 404
        (count / "go").touch()
        fleet.check(api.wait(running))
        fleet.assert_nothing_left()
        assert api.terminate() < PROMPT
        assert other.terminate() < PROMPT
    finally:
        agent.close()


def test_an_agent_that_is_held_is_not_taken_for_lost(fleet: Fleet, a: Replica, stranger: Replica) -> None:
    """Where agents are lost after a few seconds, their polls are held for less."""
    a.terminate()
    stranger.settings = {"CONTROL__AGENT_LOST_AFTER": "2"}
    stranger.start()
    agent = Agent(fleet, "idle", stranger)
    try:
        agent.start()
        instance = (agent.scratch / "instance").read_text().strip()

        def row() -> dict[str, object]:
            return fleet.rows("SELECT session, state, seen_at FROM agent WHERE id = $1", instance)[0]

        for _ in range(4):
            before = row()["seen_at"]
            wait_for("another poll", lambda: row()["seen_at"] != before)  # noqa: B023
        assert (row()["session"], row()["state"]) == (1, "open")
        assert stranger.terminate() < PROMPT
    finally:
        agent.close()
