"""Requests that Nextflow and Sprocket were seen to send, and old clients themselves; the gateway runs them all."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.beds.clients import Clients
from tests.e2e.harness import ENDED, Gateway, gateway_of, wait_for

pytestmark = pytest.mark.timeout(240)

DRIVE = Path(__file__).resolve().parents[1] / "clients/drive.py"
STARTED = ("INITIALIZING", "RUNNING", "PAUSED", *ENDED)
"""Of nf-ga4gh."""


@pytest.fixture(scope="module")
def gateway(bubblewrap: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    """One on bubblewrap: what is looked at here, requests and staging, is the same on every runtime."""
    del bubblewrap
    settings = {"DIALECT__QUEUED_AS_INITIALIZING": "true"}
    with gateway_of(tmp_path_factory.mktemp("gateway"), "bubblewrap", **settings) as started:
        yield started


# Nextflow: a client of /v1 alone. It reads states by a GET without query, the exit code of a failure by one of FULL.


def nextflow_task(gateway: Gateway, work: str, script: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    """As nf-ga4gh 1.4 writes it: plain paths, control files without type."""
    project = work.partition("/")[0] + "/project dir"
    gateway.write(f"{work}/.command.sh", "not run by itself")
    gateway.write(f"{work}/.command.run", script)
    gateway.write(f"{project}/bin/hello.sh", "echo hello\n")
    gateway.write(f"{project}/data/b c.txt", "data\n")
    here = gateway.path
    inputs = {
        f"{work}/.command.sh": "/work/.command.sh",
        f"{work}/.command.run": "/work/.command.run",
        f"{project}/bin/hello.sh": here(f"{project}/bin/hello.sh"),
        f"{project}/data/b c.txt": "/work/b c.txt",
    }
    control = [".command.out", ".command.err", ".command.log", ".exitcode"]
    return {
        "name": "COUNT (b)",
        "inputs": [{"url": here(name), "path": path, "type": "FILE"} for name, path in inputs.items()],
        "outputs": [
            *({"url": here(f"{work}/{name}"), "path": f"/work/{name}"} for name in control),
            *outputs,
        ],
        "resources": {"cpu_cores": 1, "ram_gb": 0.25, "disk_gb": 1.0, "backend_parameters_strict": False},
        "executors": [
            {
                "image": "IMAGE",
                "command": [
                    "bash",
                    "-o",
                    "pipefail",
                    "-c",
                    "bash /work/.command.run 2>&1 | tee /work/.command.log",
                ],
                "workdir": "/work",
            }
        ],
        "tags": {"project": "p", "run": "r"},
    }


def nextflow_run(gateway: Gateway, task: dict[str, Any], endpoint: str = "") -> tuple[list[str], dict[str, Any]]:
    """Submit and poll as it does; all states that it saw, and FULL at the end."""
    base = f"http://127.0.0.1:{gateway.port}{endpoint}"
    posted = gateway.client.post(f"{base}/v1/tasks", json=task)
    assert posted.status_code == 200, posted.text
    task_id = posted.json()["id"]
    seen: list[str] = []

    def poll() -> bool:
        answer = gateway.client.get(f"{base}/v1/tasks/{task_id}")
        assert answer.status_code == 200 and set(answer.json()) == {"id", "state"}
        seen.append(answer.json()["state"])
        return seen[-1] in ENDED

    wait_for("the task to end", poll, 60)
    return seen, gateway.client.get(f"{base}/v1/tasks/{task_id}?view=FULL").json()


def glob(gateway: Gateway, work: str, pattern: str) -> dict[str, Any]:
    return {"url": gateway.path(work), "path": f"/work/{pattern}", "path_prefix": "/work", "type": "FILE"}


def test_nextflow(gateway: Gateway) -> None:
    work = "nf 1/work/ab/12 ü%20"
    script = f"""
set -e
bash "{gateway.path("nf 1/project dir/bin/hello.sh")}" > "b.n"
cat "b c.txt"
mkdir -p d_b deep/er globbed_1 && echo x > d_b/x && echo y > globbed_1/y
touch part_1.txt part_2.txt "part_3 with space.txt" one.csv two.tsv three.json deep/a.bam deep/er/b.bam top.bam
echo out > .command.out; echo 0 > .exitcode
"""
    named = [
        {"url": gateway.path(f"{work}/{name}"), "path": f"/work/{name}", "type": "FILE"}
        for name in ("b.n", "absent.txt", "d_b")
    ]
    globs = [glob(gateway, work, pattern) for pattern in ("part_*.txt", "globbed_?", "**.bam", "*.{csv,tsv}", "none_*")]
    seen, task = nextflow_run(gateway, nextflow_task(gateway, work, script, *named, *globs))
    assert task["state"] == "COMPLETE", task["logs"]
    assert set(seen) <= set(STARTED)
    stored = {
        str(path.relative_to(gateway.files / work)) for path in (gateway.files / work).rglob("*") if path.is_file()
    }
    assert stored == {
        ".command.sh",
        ".command.run",
        ".command.out",
        ".command.log",
        ".exitcode",
        "b.n",
        "d_b/x",
        "globbed_1/y",
        "part_1.txt",
        "part_2.txt",
        "part_3 with space.txt",
        "one.csv",
        "two.tsv",
        "top.bam",
        "deep/a.bam",
        "deep/er/b.bam",
    }
    assert gateway.read(f"{work}/b.n") == "hello\n" and gateway.read(f"{work}/.command.log") == "data\n"
    # What it sent of TES 1.1 worked, and is not shown to whoever knows 1.0.
    assert not any("path_prefix" in output for output in task["outputs"])
    assert any("absent.txt" in line for line in task["logs"][0]["system_logs"])


def test_nextflow_reads_why_a_task_failed(gateway: Gateway) -> None:
    work = "nf2/work/cd/34"
    script = "echo 'before the fault' > .command.out; echo wrong > .command.err; echo 7 > .exitcode; exit 7\n"
    # An endpoint that ends with a slash.
    _, task = nextflow_run(gateway, nextflow_task(gateway, work, script), "/")
    assert task["state"] == "EXECUTOR_ERROR"
    assert task["logs"][0]["logs"][0]["exit_code"] == 7
    assert gateway.read(f"{work}/.command.err") == "wrong\n" and gateway.read(f"{work}/.exitcode") == "7\n"
    assert all(isinstance(value, str) for value in task["logs"][0]["metadata"].values())


def test_nextflow_cancels(gateway: Gateway) -> None:
    base = f"http://127.0.0.1:{gateway.port}/v1/tasks"
    body = nextflow_task(gateway, "nf3/work/ef/56", "sleep 300\n")
    task_id = gateway.client.post(base, json=body).json()["id"]
    wait_for("RUNNING", lambda: gateway.client.get(f"{base}/{task_id}").json()["state"] == "RUNNING")
    answer = gateway.client.post(f"{base}/{task_id}:cancel", content=b"")
    assert (answer.status_code, answer.json()) == (200, {})
    seen: set[str] = set()

    def over() -> bool:
        seen.add(gateway.client.get(f"{base}/{task_id}").json()["state"])
        return "CANCELED" in seen

    wait_for("CANCELED", over)
    assert seen <= {"RUNNING", "CANCELED"}
    # Without an entry it would speak of an unknown reason.
    assert len(gateway.client.get(f"{base}/{task_id}?view=FULL").json()["logs"]) == 1


# Sprocket: a client of TES 1.1 that polls one list for all of its tasks.


def sprocket_task(gateway: Gateway, number: int, script: str) -> dict[str, Any]:
    out = gateway.url(f"sprocket/out {number}")
    return {
        "name": f"task-{number}",
        "inputs": [
            {"path": "/mnt/task/command", "content": script, "type": "FILE"},
            {
                "url": gateway.write("sprocket/in/with space/ü%.txt", "percent\n"),
                "path": "/mnt/task/inputs/0/ü%.txt",
                "type": "FILE",
            },
        ],
        "outputs": [
            {"url": f"{out}/work", "path": "/mnt/task/work", "type": "DIRECTORY"},
            {"url": f"{out}/stdout", "path": "/mnt/task/stdout", "type": "FILE"},
            {"url": f"{out}/stderr", "path": "/mnt/task/stderr", "type": "FILE"},
        ],
        "executors": [
            {
                "image": "IMAGE",
                "command": ["bash", "/mnt/task/command"],
                "workdir": "/mnt/task/work",
                "stdout": "/mnt/task/stdout",
                "stderr": "/mnt/task/stderr",
                "ignore_error": True,
            }
        ],
        "resources": {"cpu_cores": 1, "ram_gb": 0.25, "preemptible": False},
        "volumes": ["/mnt/disk"],
        "tags": {"crankshaft-task-group": "group-1"},
    }


def test_sprocket(gateway: Gateway) -> None:
    scripts = [
        "cat /mnt/task/inputs/0/*.txt; mkdir deep; echo made > 'deep/a b'; touch /mnt/disk/x; pwd >&2",
        "echo failed >&2; exit 5",
        "sleep 300",
    ]
    ids = [gateway.submit(sprocket_task(gateway, number, script)) for number, script in enumerate(scripts)]
    query = "tag_key=crankshaft-task-group&tag_value=group-1&page_size=2047&view=MINIMAL"

    def listed() -> dict[str, str]:
        answer = gateway.client.get(f"/tasks?{query}")
        assert answer.status_code == 200 and "next_page_token" not in answer.json()
        assert all(set(task) == {"id", "state"} for task in answer.json()["tasks"])
        return {task["id"]: task["state"] for task in answer.json()["tasks"]}

    wait_for("two ends", lambda: [listed()[one] in ENDED for one in ids] == [True, True, False], 60)
    # The outputs are there before the end is shown.
    assert gateway.read("sprocket/out 0/work/deep/a b") == "made\n"
    assert gateway.read("sprocket/out 0/stdout") == "percent\n"
    assert gateway.read("sprocket/out 0/stderr") == "/mnt/task/work\n"
    assert gateway.read("sprocket/out 1/stderr") == "failed\n"
    for one, code in zip(ids, (0, 5), strict=False):
        full = gateway.get(one)
        assert (full["state"], full["logs"][0]["logs"][0]["exit_code"]) == ("COMPLETE", code)
    answer = gateway.client.post(
        f"/tasks/{ids[2]}:cancel", content=b"null", headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()) == (200, {})
    wait_for("CANCELED", lambda: listed()[ids[2]] == "CANCELED")
    assert set(listed()) == set(ids)


def test_old_clients_themselves(gateway: Gateway, clients: Clients) -> None:
    """py-tes 0.4.2, and pydantic-tes with Pulsar's own reading of states, unchanged."""
    (gateway.files / "old").mkdir()
    command = [str(clients.python), "-W", "ignore", str(DRIVE), f"http://127.0.0.1:{gateway.port}", gateway.path("old")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["storage"] == [f"file://{gateway.files}"]
    assert seen["old"] == ["EXECUTOR_ERROR", "EXECUTOR_ERROR", 3, 5]
    assert seen["canceled"] == "CANCELED"
    assert {"CANCELED", "EXECUTOR_ERROR"} <= set(seen["listed"])
    statuses, said = seen["pulsar"]
    # Never `failed`, which QUEUED would have been.
    assert set(statuses) <= {"preprocessing", "running", "complete"} and statuses[-1] == "complete"
    assert said == "staged\n"
    assert gateway.read("old/old.out") == "text\n"
