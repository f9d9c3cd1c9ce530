"""An agent that is gone for good: its attempts are lost, and tried again on whoever is there."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.beds.docker import USUAL_SOCKET
from tests.e2e.conftest import only
from tests.e2e.harness import Gateway, gateway_of, sh, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

LOST_AFTER = 6


@pytest.fixture(scope="module", params=["docker", "bubblewrap"])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    """Labels of containers, and variables of sandboxes, say what belongs to a scratch directory that is gone."""
    bed = request.getfixturevalue(request.param)
    base = tmp_path_factory.mktemp("lost")
    settings = {"socket": getattr(bed, "socket", USUAL_SOCKET), "CONTROL__AGENT_LOST_AFTER": str(LOST_AFTER)}
    with gateway_of(base, request.param, **settings) as started:
        yield started


def go_of(gateway: Gateway, task_id: str, number: int) -> Path:
    """The file that attempt `number` of the task waits for, when it waits."""
    there = gateway.data / "agent/attempts"
    return (
        wait_for("the attempt to begin", lambda: next(there.glob(f"*{task_id}-{number}/rw/v/begun"), None)).parent
        / "go"
    )


@only(lambda gateway: gateway == "docker")  # the runtime has no part in it
def test_a_held_poll_is_no_silence(gateway: Gateway) -> None:
    """Nothing happens for longer than an agent may be silent: its poll, which is held, arrives often enough."""

    def ticks() -> int:
        (agent,) = gateway.rows("SELECT state, session, silent_ticks FROM agent")
        assert (agent["state"], agent["session"]) == ("open", 1)
        return int(agent["silent_ticks"])

    for _ in range(3):  # the count rises, and a poll sets it back, again and again
        wait_for("a tick of silence", lambda: ticks() > 0)
        wait_for("a poll", lambda: ticks() == 0)


def test_a_wiped_disk_is_a_further_attempt(gateway: Gateway) -> None:
    """The scratch directory goes with the agent. The new one is another instance: nobody takes it for the old one."""
    executor = sh("touch /v/begun; while [ ! -e /v/go ]; do sleep 0.05; done; echo done > /v/out")
    output = {"path": "/v/out", "url": gateway.url("out"), "type": "FILE"}
    task_id = gateway.submit({"executors": [executor], "volumes": ["/v"], "outputs": [output]})
    first = go_of(gateway, task_id, 1)
    gateway.kill_agent()
    shutil.rmtree(gateway.data / "agent", ignore_errors=True)
    assert not first.exists()
    go_of(gateway, task_id, 2).touch()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE"
    assert ["has not been heard of" in " ".join(attempt["system_logs"]) for attempt in task["logs"]] == [True, False]
    assert gateway.read("out") == "done\n"
    gateway.assert_nothing_left()  # the first container too, which ran on without anybody
