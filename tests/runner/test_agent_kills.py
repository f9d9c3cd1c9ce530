"""The agent is killed at each of its named points: no executor runs twice, and nothing is left."""

from __future__ import annotations

import pytest

from tesgate.runner import crash
from tests.runner.bench import Bench
from tests.runner.gateway_fake import wait_for

AT = [
    "after-begun",
    "during-stage-in",
    "before-launch:1",
    "after-launch:1",
    "during-executor:1",
    "after-result:1",
    "between-executors:1",
    "before-launch:2",
    "after-launch:2",
    "during-executor:2",
    "after-result:2",
    "during-stage-out",
    "before-publish",
    "after-lease",
    "after-publish",
    "before-finish",
    "after-finish",
    "before-release",
]


def _killed_once(bench: Bench, point: str) -> None:
    bench.start(crash_at=point)
    # An executor must live longer than the agent's safety interval to be found running.
    held = [int(point[-1]) - 1] if point.startswith("during-executor") else []
    key = bench.gateway.assign(bench.counted(2, held=held))
    bench.wait_killed()
    for step in held:
        bench.release(step)
    assert key in bench.gateway.acknowledged or point == "after-begun" or bench.attempts()
    bench.start()
    message, body = bench.gateway.end_of(key)
    assert (message, body["state"]) == ("finish", "COMPLETE"), bench.log()
    assert bench.output("count.txt") == "run-0\nrun-1\n"
    assert [executor["exit_code"] for executor in body["snapshot"]["executors"]] == [0, 0]
    assert [output["size_bytes"] for output in body["outputs"]] == [12]
    assert body["published"]
    bench.nothing_left(key)
    for step in (0, 1):
        wait_for(lambda step=step: bench.gateway.log(key, step, "stdout"), "the logs of executor %d" % step)
        assert bench.gateway.log(key, step, "stdout") == b"run-%d\n" % step


@pytest.mark.parametrize("point", AT)
def test_killed_on_bubblewrap(bench: Bench, point: str) -> None:
    _killed_once(bench, point)


@pytest.mark.parametrize(
    "point",
    ["before-launch:1", "after-launch:1", "during-executor:2", "after-result:1", "before-finish", "after-finish"],
)
def test_killed_on_docker(docker_bench: Bench, point: str) -> None:
    _killed_once(docker_bench, point)


def test_killed_again_and_again(bench: Bench) -> None:
    """One attempt, a kill at every point in turn."""
    key = bench.gateway.assign(bench.counted(2, held=[0, 1]))
    for point in AT:
        if point.startswith("after-result"):
            bench.release(int(point[-1]) - 1)
        bench.start(crash_at=point)
        bench.wait_killed()
    bench.start()
    message, body = bench.gateway.end_of(key)
    assert (message, body["state"]) == ("finish", "COMPLETE")
    assert bench.output("count.txt") == "run-0\nrun-1\n"
    bench.nothing_left(key)


def test_every_point_is_killed_at() -> None:
    assert {point.partition(":")[0] for point in AT} == set(crash.POINTS)


def test_killed_while_the_gateway_is_away(bench: Bench) -> None:
    """Neither gateway nor agent is there when the executor ends; both come back."""
    bench.start(crash_at="during-executor")
    key = bench.gateway.assign(bench.counted(1, held=[0]))
    bench.wait_killed()
    bench.gateway.stop()
    bench.release(0)
    bench.start()
    bench.gateway.start()
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    assert bench.output("count.txt") == "run-0\n"
    bench.nothing_left(key)


def test_killed_while_it_stops(bench: Bench) -> None:
    """A wish to stop is journalled: the next start goes on stopping, and says so."""
    bench.start()
    key = bench.gateway.assign(bench.plan("trap '' TERM; echo begun; sleep 60"))
    wait_for(lambda: bench.gateway.log(key, 0, "stdout"), "the executor to begin")
    bench.gateway.refuse["stopped"] = [503] * 1000
    bench.gateway.cancel(key)
    wait_for(lambda: bench.gateway.of(key, "stopped"), "the agent to stop it")
    bench.kill()
    bench.gateway.refuse["stopped"] = []
    bench.start()
    assert bench.gateway.end_of(key)[0] == "stopped"
    bench.nothing_left(key)
