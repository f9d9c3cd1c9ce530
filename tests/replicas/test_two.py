"""Two gateways on one database, an agent that polls at one of them: either answers for both, and either may go."""

from __future__ import annotations

import signal
import time

import pytest

from tests.replicas.fleet import Agent, Fleet, Replica, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

GO = "while [ ! -e /count/go ]; do sleep 0.05; done"
PROMPT = 18.0
"""Seconds; a wake that is missed costs a poll of 20."""


def test_a_task_posted_at_one_runs_at_once_by_the_other(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    for _ in range(3):
        began = time.monotonic()
        task = a.wait(a.submit())
        assert time.monotonic() - began < PROMPT
        fleet.check(task)
    fleet.assert_nothing_left()


def test_any_replica_gives_the_same(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    task_id = a.submit(GO)
    count = agent.begun(task_id)
    wait_for("both to say that it runs", lambda: a.state(task_id) == b.state(task_id) == "RUNNING")
    (count / "go").touch()
    a.wait(task_id, "COMPLETE")
    for view in ("MINIMAL", "BASIC", "FULL"):
        assert a.get(task_id, view) == b.get(task_id, view)
    assert a.client.get("/tasks?view=FULL").json() == b.client.get("/tasks?view=FULL").json()
    first, second = a.submit(key="same", name="same"), b.submit(key="same", name="same")
    assert first == second
    fleet.check(b.wait(first))


def test_a_cancel_at_one_is_prompt_at_the_other(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    task_id = b.submit("sleep 300")
    agent.begun(task_id)
    began = time.monotonic()
    a.cancel(task_id)
    b.wait(task_id, "CANCELED")
    assert time.monotonic() - began < PROMPT
    fleet.assert_nothing_left()


def test_whoever_joins_is_woken_from_its_first_moment_on(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    """A has long thought that it is alone; the agent's poll is among the first requests that B answers."""
    for _ in range(2):
        b.terminate()
        # By now A's heartbeat says that nobody else lives.
        assert fleet.rows("SELECT 1 FROM replica WHERE id = $1 AND left_at IS NOT NULL", fleet.id_of(b))
        heartbeats(fleet, a, 2)
        b.start()
        slowest = 0.0
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            began = time.monotonic()
            fleet.check(a.wait(a.submit()))
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < PROMPT  # with the agent's own pause until it finds B again, of up to two seconds


def heartbeats(fleet: Fleet, replica: Replica, number: int) -> None:
    def seen() -> object:
        return fleet.rows("SELECT seen_at FROM replica WHERE id = $1", fleet.id_of(replica))[0]["seen_at"]

    for _ in range(number):
        before = seen()
        wait_for("a heartbeat", lambda: seen() != before)  # noqa: B023


def test_one_is_killed_while_tasks_wait_and_run(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    running = [a.submit(GO) for _ in range(4)]
    counts = [agent.begun(task_id) for task_id in running]
    canceled = a.submit("trap '' TERM; " + GO)
    agent.begun(canceled)
    big = {**fleet.task("true", "big"), "resources": {"cpu_cores": 14}}
    waiting = a.client.post("/tasks", json=big).json()["id"]
    a.cancel(canceled)
    a.kill()
    assert b.state(waiting) == "QUEUED"
    for count in counts[:2]:
        (count / "go").touch()
    for task_id in running[:2]:
        fleet.check(b.wait(task_id, "COMPLETE"))
    for task_id in running[2:]:
        wait_for("B to adopt", lambda task_id=task_id: fleet.replica_of(task_id) == fleet.id_of(b))  # type: ignore[misc]
        assert b.state(task_id) == "RUNNING"
    for count in counts[2:]:
        (count / "go").touch()
    for task_id in [*running[2:], waiting]:
        fleet.check(b.wait(task_id, "COMPLETE"))
    assert len(b.wait(canceled, "CANCELED")["logs"]) == 1
    fleet.assert_nothing_left()


def test_the_one_that_the_agent_polls_is_killed(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    """The work goes on; its reports come when the gateway is there again."""
    running = [b.submit(GO) for _ in range(3)]
    counts = [agent.begun(task_id) for task_id in running]
    b.kill()
    for task_id in running:
        wait_for("A to adopt", lambda task_id=task_id: fleet.replica_of(task_id) == fleet.id_of(a))  # type: ignore[misc]
    for count in counts:
        (count / "go").touch()
    waiting = a.submit()
    b.start()
    for task_id in [*running, waiting]:
        fleet.check(a.wait(task_id, "COMPLETE"))
    fleet.assert_nothing_left()


def test_sigterm_hands_over(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    running = [a.submit(GO) for _ in range(3)]
    counts = [agent.begun(task_id) for task_id in running]
    owners = {fleet.replica_of(task_id) for task_id in running}
    assert owners <= {fleet.id_of(a), fleet.id_of(b)}
    crashes = "SELECT sum(crashes) AS crashes FROM task WHERE id = ANY($1::text[])"
    before = fleet.rows(crashes, running)[0]["crashes"]
    assert a.terminate() < PROMPT
    for task_id in running:
        wait_for("B to follow", lambda task_id=task_id: fleet.replica_of(task_id) == fleet.id_of(b))  # type: ignore[misc]
    assert b.terminate() < PROMPT, "the held poll is answered"
    b.start()
    wait_for("B to follow again", lambda: {fleet.replica_of(task_id) for task_id in running} == {fleet.id_of(b)})
    assert fleet.rows(crashes, running)[0]["crashes"] == before
    for count in counts:
        (count / "go").touch()
    for task_id in running:
        fleet.check(b.wait(task_id, "COMPLETE"))
    fleet.assert_nothing_left()


def test_one_that_was_stopped_for_long_goes_on_cleanly(fleet: Fleet, a: Replica, b: Replica, agent: Agent) -> None:
    """Its tasks are another's by then: what it still meant to write changes nothing."""
    running = [a.submit(GO) for _ in range(4)]
    counts = [agent.begun(task_id) for task_id in running]
    a.signal(signal.SIGSTOP)
    for task_id in running:
        wait_for("B to adopt", lambda task_id=task_id: fleet.replica_of(task_id) == fleet.id_of(b))  # type: ignore[misc]
    b.cancel(running[0])
    for count in counts[1:3]:
        (count / "go").touch()
    for task_id in running[1:3]:
        fleet.check(b.wait(task_id, "COMPLETE"))
    b.wait(running[0], "CANCELED")
    events = "SELECT task_id, number, kind FROM task_event WHERE task_id = ANY($1::text[]) ORDER BY id"
    known = fleet.rows(events, running)
    a.signal(signal.SIGCONT)
    heartbeats(fleet, a, 3)
    assert not a.is_dead()
    assert fleet.rows(events, running) == known
    assert fleet.replica_of(running[3]) == fleet.id_of(b)
    (counts[3] / "go").touch()
    fleet.check(a.wait(running[3], "COMPLETE"))
    fleet.check(a.wait(a.submit()))
    assert a.get(running[0])["state"] == "CANCELED"
    fleet.assert_nothing_left()
