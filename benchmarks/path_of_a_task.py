"""Where the milliseconds of one task go: its stops from POST to removal, beside the bare engine in the same run.

Usage: python benchmarks/path_of_a_task.py [--quick] [--tasks 20] [--image busybox:latest]

Starts a gateway of its own (embedded PostgreSQL, an agent on the Docker engine) in a temporary directory, runs `true`
one task after the other, and prints the median time of each stop since the client began to send the POST. Clocks: the
client and exec read the machine's, the rows have PostgreSQL's, all on one host.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tesgate.store.database import Database
from tesgate.store.embedded import EmbeddedPostgres

TERMINAL = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")

STOPS = (
    ("POST answered", "api/tes.py, services/tasks.py, store/tasks.py insert_task (commit 1)"),
    ("attempt and room taken", "control/dispatcher.py, store/attempts.py assign (commit 2)"),
    ("executor started", "services/attempts.py poll -> runner/attempt.py, step.py, runtime/docker.py create + start"),
    ("executor ended", "runner/exec (the result file)"),
    ("first report applied", "runner/reporter.py -> store/attempts.py report (commit 3, not waited for)"),
    ("finished", "runner/attempt.py -> store/attempts.py finish (commit 4)"),
    ("client sees COMPLETE", "api/tes.py, store/tasks.py get_state"),
    ("container and scratch removed", "runner/agent.py forget (off the critical path)"),
)


def seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def one(client: httpx.AsyncClient, database: Database, image: str, agent: Path) -> list[float]:
    """The stops of one task, in seconds since the POST began."""
    began = time.time()
    document = {"executors": [{"image": image, "command": ["true"]}]}
    task_id = (await client.post("/tasks", json=document)).json()["id"]
    answered = time.time()
    while (await client.get(f"/tasks/{task_id}")).json()["state"] not in TERMINAL:
        await asyncio.sleep(0.002)
    seen = time.time()
    full = (await client.get(f"/tasks/{task_id}", params={"view": "FULL"})).json()
    assert full["state"] == "COMPLETE", full
    while list((agent / "attempts").iterdir()):
        await asyncio.sleep(0.002)
    removed = time.time()
    events = {
        row["kind"]: row["at"].timestamp()
        for row in await database.fetch("SELECT kind, at FROM task_event WHERE task_id = $1", task_id)
    }
    row = await database.fetchrow("SELECT reported_at FROM attempt WHERE task_id = $1", task_id)
    assert row is not None
    executor = full["logs"][0]["logs"][0]
    reported = row["reported_at"].timestamp()
    return [
        moment - began
        for moment in (
            answered,
            events["assign"],
            seconds(executor["start_time"]),
            seconds(executor["end_time"]),
            reported,
            events["finish"],
            seen,
            removed,
        )
    ]


async def bare(socket: str, image: str) -> float:
    """create, start, wait of the same container by the engine's API alone; removal is not counted."""
    async with httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://docker", timeout=60
    ) as engine:
        began = time.time()
        made = await engine.post("/containers/create", json={"Image": image, "Cmd": ["true"]})
        name = made.json()["Id"]
        await engine.post(f"/containers/{name}/start")
        await engine.post(f"/containers/{name}/wait")
        took = time.time() - began
        await engine.delete(f"/containers/{name}", params={"force": "1"})
    return took


async def measure(given: argparse.Namespace, data: Path, process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        found = re.search(r"listens on (\S+)", line)
        if found:
            url = found[1]
            break
    async with (
        EmbeddedPostgres(data) as embedded,
        Database(embedded.dsn, min_size=1, max_size=1) as database,
        httpx.AsyncClient(base_url=f"{url}/ga4gh/tes/v1", timeout=60) as client,
    ):
        rows: list[Any] = []
        alone: list[float] = []
        for index in range(given.tasks + 2):
            row = await one(client, database, given.image, data / "agent")
            plain = await bare(given.socket, given.image)
            if index >= 2:  # the first ones warm the caches
                rows.append(row)
                alone.append(plain)
    before = 0.0
    print(f"{'stop':32} {'at ms':>8} {'took ms':>8}  where")
    for index, (name, where) in enumerate(STOPS):
        at = statistics.median(row[index] for row in rows) * 1000
        print(f"{name:32} {at:8.1f} {at - before:8.1f}  {where}")
        before = at
    engine = statistics.median(alone) * 1000
    whole = statistics.median(row[6] for row in rows) * 1000
    print(f"\nbare engine (create, start, wait) {engine:.1f} ms")
    print(f"POST to COMPLETE seen by the client {whole:.1f} ms: {whole / engine:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--quick", action="store_true", help="5 tasks")
    parser.add_argument("--image", default="busybox:latest")
    parser.add_argument("--socket", default="/var/run/docker.sock")
    given = parser.parse_args()
    given.tasks = given.tasks or (5 if given.quick else 20)
    with tempfile.TemporaryDirectory(prefix="tesgate-path-") as made:
        os.chmod(made, 0o711)  # the embedded server's own user has to pass
        data = Path(made) / "data"
        command = [sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--runtime", "docker"]
        with subprocess.Popen(
            [*command, "--data-dir", str(data)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                asyncio.run(measure(given, data, process))
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
                record = data / "agent.json"
                if record.exists():
                    os.kill(int(re.search(r'"pid": (\d+)', record.read_text())[1]), signal.SIGTERM)  # type: ignore[index]
                    time.sleep(1)


if __name__ == "__main__":
    main()
