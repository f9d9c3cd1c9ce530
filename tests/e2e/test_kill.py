"""``kill -9`` of the gateway, of the agent, of both and of PostgreSQL at each step of an attempt: nothing is lost,
nothing is done twice within an attempt, and nothing is left."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Web, only
from tests.e2e.harness import Gateway, sh, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

WHO = ("agent", "both", "gateway")
POINTS = (
    "after-begun",
    "during-stage-in",
    "before-launch:1",
    "after-launch:1",
    "after-result:1",
    "between-executors:1",
    "before-launch:2",
    "during-stage-out",
    "before-publish",
    "after-publish",
    "before-finish",
    "after-finish",
    "before-release",
)
ON_DOCKER = ("before-launch:1", "after-launch:1", "before-publish", "before-release")

_numbers = itertools.count(1)


def counted(gateway: Gateway, *works: str, **more: Any) -> tuple[dict[str, Any], str]:
    """A task whose executors each write a line when they start, stored as an output; and that output's name."""
    name = f"counts/{next(_numbers)}"
    line = 'echo "{} $(cat /proc/sys/kernel/random/uuid)" >> /count/starts; {}'
    task = {
        "executors": [sh(line.format(index, work)) for index, work in enumerate(works)],
        "inputs": [{"path": "/in/data", "content": "staged"}],
        "volumes": ["/count"],
        "outputs": [{"path": "/count/starts", "url": gateway.url(name), "type": "FILE"}],
        **more,
    }
    return task, name


def check(gateway: Gateway, task_id: str, name: str, executors: int = 2, attempts: int | None = 1) -> None:
    """COMPLETE; each executor began once in the attempt that ended the task, and that attempt was the only one."""
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    if attempts is not None:
        assert len(task["logs"]) == attempts, task["logs"]
    lines = gateway.read(name).splitlines()
    assert [line.split()[0] for line in lines] == [str(index) for index in range(executors)], lines
    assert [log["exit_code"] for log in task["logs"][-1]["logs"]] == [0] * executors


def kill(gateway: Gateway, who: str) -> None:
    """Kill the processes at one moment; none of them is started again yet, but for the agent by a living gateway."""
    agent = wait_for("the agent to live", gateway.agent)
    if who != "agent":
        gateway.kill()
    if who != "gateway":
        agent.kill()
        wait_for("the agent to be dead", lambda: (found := gateway.agent()) is None or found.pid != agent.pid)


def begun(gateway: Gateway, task_id: str) -> Path:
    """Where /count of the task's running attempt lies, when its executor has written its line."""
    attempts = gateway.data / "agent/attempts"
    return wait_for("the executor to begin", lambda: next(attempts.glob(f"*{task_id}-*/rw/count/starts"), None)).parent


@only(lambda gateway, point, **_: gateway == "bubblewrap" or point in ON_DOCKER)
@pytest.mark.parametrize("who", WHO)  # the fastest to vary: a restarted gateway has no back-off for its agent
@pytest.mark.parametrize("point", POINTS)
def test_at_each_point(gateway: Gateway, who: str, point: str) -> None:
    task, name = counted(gateway, "true", "cat /in/data")
    gateway.arm(who, point)
    task_id = gateway.submit(task)
    gateway.wait_struck()
    check(gateway, task_id, name)
    gateway.assert_nothing_left()


@pytest.mark.parametrize("who", WHO)
def test_during_stage_in(gateway: Gateway, web: Web, who: str) -> None:
    """Half of an input has come."""
    path = f"/held-{gateway.runtime}-{who}"
    web.bodies[path] = b"0123456789" * 20_000
    web.held.add(path)
    web.halfway.clear()
    web.let_go.clear()
    task, name = counted(gateway, "test $(wc -c < /in/held) = 200000")
    task["inputs"].append({"url": web.url(path), "path": "/in/held", "type": "FILE"})
    task_id = gateway.submit(task)
    assert web.halfway.wait(20)
    kill(gateway, who)
    web.held.clear()
    web.let_go.set()
    if who != "agent":
        gateway.start()
    check(gateway, task_id, name, executors=1)
    gateway.assert_nothing_left()


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("ends", ["while they are dead", "after they are back"])
def test_during_an_executor(gateway: Gateway, who: str, ends: str) -> None:
    task, name = counted(gateway, "while [ ! -e /count/go ]; do sleep 0.05; done", "true")
    task_id = gateway.submit(task)
    count = begun(gateway, task_id)
    kill(gateway, who)
    if ends == "while they are dead":
        (count / "go").touch()
        wait_for("the result", (count.parent.parent / "steps/0/result").exists)
    if who != "agent":
        gateway.start()
    if not (count / "go").exists():
        wait_for("another agent", gateway.agent)
        # The report that it runs may have died with the agent, or with the gateway.
        wait_for("the new one's report", lambda: gateway.state(task_id) == "RUNNING")
        (count / "go").touch()
    check(gateway, task_id, name)
    gateway.assert_nothing_left()


@pytest.mark.parametrize("who", WHO)
def test_while_it_is_cancelled(gateway: Gateway, who: str) -> None:
    """The wish to cancel outlives everybody: it was answered."""
    task, _ = counted(gateway, "trap '' TERM; while true; do sleep 0.1; done")
    task_id = gateway.submit(task)
    begun(gateway, task_id)
    gateway.cancel(task_id)
    kill(gateway, who)
    if who != "agent":
        gateway.start()
    ended = gateway.wait(task_id, "CANCELED")
    assert len(ended["logs"]) == 1
    gateway.assert_nothing_left()


def submit_burst(gateway: Gateway, tasks: Sequence[dict[str, Any]]) -> list[str | None]:
    """POST all at once; the ids that were answered. Repeatable: each has its own key."""
    ids: list[str | None] = [None] * len(tasks)

    def post(index: int) -> None:
        with contextlib.suppress(httpx.TransportError):
            with httpx.Client(base_url=gateway.client.base_url, timeout=20, trust_env=False) as client:
                answer = client.post(
                    "/tasks", json=tasks[index], headers={"Idempotency-Key": str(tasks[index]["name"])}
                )
                if answer.status_code == 200:
                    ids[index] = answer.json()["id"]

    threads = [threading.Thread(target=post, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ids


@only(lambda gateway, seed: gateway == "docker" or seed == 1)
@pytest.mark.parametrize("seed", [1, 2])
def test_both_while_a_dozen_is_in_flight(gateway: Gateway, seed: int) -> None:
    made = [counted(gateway, "sleep 0.3", "sleep 0.2", name=f"dozen-{seed}-{index}") for index in range(12)]
    ids = submit_burst(gateway, [task for task, _ in made])
    moment = random.Random(f"{gateway.runtime}{seed}").uniform(0.2, 2.5)
    time.sleep(moment)  # the moment of the kill, not a wait
    kill(gateway, "both")
    gateway.start()
    for task_id, (_, name) in zip(ids, made, strict=True):
        assert task_id is not None
        check(gateway, task_id, name)
    gateway.assert_nothing_left()


@only(lambda gateway: gateway == "bubblewrap")  # where forty are quick
def test_gateway_while_forty_are_posted(gateway: Gateway) -> None:
    """Whatever was answered is there; and what was not is posted again with its key and makes one task."""
    made = [counted(gateway, "true", name=f"forty-{index}") for index in range(40)]
    tasks = [task for task, _ in made]
    killer = threading.Timer(0.4, gateway.kill)
    killer.start()
    first = submit_burst(gateway, tasks)
    killer.join()
    gateway.start()
    again = submit_burst(gateway, tasks)
    assert None not in again
    assert all(one in (None, two) for one, two in zip(first, again, strict=True)), (first, again)
    for task_id, (_, name) in zip(again, made, strict=True):
        assert task_id is not None
        check(gateway, task_id, name, executors=1)
    (found,) = gateway.rows("SELECT count(*) FROM task WHERE name LIKE 'forty-%'")
    assert found["count"] == 40
    gateway.assert_nothing_left()


def test_sigterm_hands_over(gateway: Gateway) -> None:
    """The gateway ends within seconds whatever runs, and the one that is started then finishes the work."""
    task, name = counted(gateway, "while [ ! -e /count/go ]; do sleep 0.05; done", "true")
    task_id = gateway.submit(task)
    count = begun(gateway, task_id)
    agent = gateway.agent()
    assert gateway.terminate() < 18, "the held poll of 20 seconds is answered at once"
    assert agent is not None and agent.is_running()
    (count / "go").touch()
    gateway.start()
    check(gateway, task_id, name)
    assert not gateway.rows("SELECT id FROM task WHERE crashes > 0 AND id = $1", task_id)
    gateway.assert_nothing_left()


def test_postgres_while_eight_are_in_flight(gateway: Gateway) -> None:
    made = [counted(gateway, "sleep 0.5", "sleep 0.5", name=f"eight-{index}") for index in range(8)]
    ids = submit_burst(gateway, [task for task, _ in made])
    server = gateway.postmaster()
    time.sleep(0.7)  # the moment of the kill, not a wait
    os.kill(server.pid, signal.SIGKILL)
    wait_for("another PostgreSQL", lambda: (now := gateway.postmaster()).pid != server.pid and now.status == "ready")
    wait_for("the gateway to reach it", lambda: gateway.client.get("/tasks").status_code == 200)
    assert not gateway.is_dead()
    for task_id, (_, name) in zip(ids, made, strict=True):
        assert task_id is not None
        check(gateway, task_id, name)
    gateway.assert_nothing_left()
