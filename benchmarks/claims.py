"""How soon a task that was accepted is in the hands of an idle agent, with many agents that poll.

Usage: python benchmarks/claims.py [--quick] [--agents 100] [--tasks 1000] [--rate 20]

`tesgate serve` as users run it, with its embedded PostgreSQL (fsync on) and no agent of its own, and scripted agents
(`scripted_agent.py`) in a process of their own, each with a held poll. Tasks come one after the other, `--rate` of them
a second, so that nearly all agents are idle; each ends at once. *from the answer*: from the moment in which the client
has the answer to its POST to the moment in which the agent has read the plan, both by this machine's wall clock (the
plan may be there first: that counts as 0). *from the request*: from before the POST was sent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.api import end  # noqa: E402
from benchmarks.processes import cpu_seconds  # noqa: E402

TASK = {"executors": [{"image": "busybox", "command": ["true"]}], "resources": {"cpu_cores": 1, "ram_gb": 0.1}}


def measure(url: str, given: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Wall clock before the request and at the answer, by task."""
    asked: dict[str, tuple[float, float]] = {}
    with httpx.Client(base_url=f"{url}/ga4gh/tes/v1", timeout=60, trust_env=False) as client:
        began = time.monotonic()
        for number in range(given.tasks):
            time.sleep(max(0.0, began + number / given.rate - time.monotonic()))
            before = time.time()
            answer = client.post("/tasks", json=TASK)
            answer.raise_for_status()
            asked[answer.json()["id"]] = (before, time.time())
        deadline = time.monotonic() + 60
        while client.get("/tasks", params={"state": "COMPLETE", "page_size": 1}).json()["tasks"][0]["id"] != max(asked):
            assert time.monotonic() < deadline, "the last task did not end"
            time.sleep(0.1)
    return asked


def row(what: str, seconds: list[float]) -> None:
    """p50, p99 and the longest, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    print(f"{what:28} {cuts[49] * 1e3:8.1f} {cuts[98] * 1e3:8.1f} {max(seconds) * 1e3:8.1f}", flush=True)


def run(data: Path, given: argparse.Namespace) -> None:
    settings = {"TESGATE_AUTH__MODE": "none", "TESGATE_TELEMETRY__LOG_LEVEL": "warning"}
    environment = {**os.environ, **settings}
    command = [sys.executable, "-m", "tesgate.cli"]
    gateway = subprocess.Popen(
        [*command, "serve", "--port", "0", "--no-agent", "--data-dir", str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert gateway.stdout is not None
        found = re.search(r"listens on (\S+)", gateway.stdout.readline())
        assert found
        url = found[1]
        token = data.parent / "token"
        words = [*command, "token", "create", "agents", "--kind", "agent", "--data-dir", str(data)]
        token.write_text(subprocess.run(words, check=True, capture_output=True, text=True, env=environment).stdout)
        agents = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.scripted_agent", "--url", url, "--token-file", str(token)),
                *("--agents", str(given.agents), "--slots", "4", "--seconds", "0"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            deadline = time.monotonic() + 60
            while len(httpx.get(f"{url}/tesgate/v1/agents").json()["agents"]) < given.agents:
                assert time.monotonic() < deadline, "the agents did not register"
                time.sleep(0.2)
            time.sleep(2)  # all polls are held
            idle = cpu_seconds(gateway.pid, alone=True)
            time.sleep(given.idle)
            idle = (cpu_seconds(gateway.pid, alone=True) - idle) / given.idle
            asked = measure(url, given)
            said, _ = agents.communicate(timeout=60)
        finally:
            end(agents)
    finally:
        end(gateway)
    begun = {task: at for task, _, at in json.loads(said)["begun"]}
    assert set(asked) <= set(begun), "some tasks never began"
    print(f"{given.agents} agents, {len(asked)} tasks, {given.rate:g} a second; load {os.getloadavg()[0]:.1f}")
    print(f"{'':28} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    row("from the answer", [max(0.0, begun[task] - answered) for task, (_, answered) in asked.items()])
    row("from the request", [begun[task] - before for task, (before, _) in asked.items()])
    row("(the POST itself)", [answered - before for before, answered in asked.values()])
    print(f"the gateway, idle: {idle * 100:.1f} % of a core", flush=True)


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds in which the idle gateway is looked at")
    given = parser.parse_args()
    if given.quick:
        given.tasks, given.idle = 200, 3.0
    with tempfile.TemporaryDirectory(prefix="tesgate-claims-") as made:
        os.chmod(made, 0o711)
        run(Path(made) / "data", given)


if __name__ == "__main__":
    main()
