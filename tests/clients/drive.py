"""Runs in the environment of the bed `clients`: py-tes 0.4.2 and pydantic-tes drive a real gateway, as their users do.

Arguments: the gateway's URL, a directory that it may write to. What was seen comes as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time

import tes
from pulsar.client.tes import tes_state_is_complete, tes_state_to_pulsar_status
from pydantictes.api import TesClient
from pydantictes.models import TesExecutor, TesResources, TesTask

SECONDS = 60

url, files = sys.argv[1:]
seen: dict[str, object] = {}

# Toil and the Snakemake plugin are built on this one.
old = tes.HTTPClient(url, timeout=20)
info = old.get_service_info()
# As Toil finds out whether the gateway has its job store.
seen["storage"] = [prefix for prefix in info.storage if ("file://" + os.path.abspath(files)).startswith(prefix)]
sent = tes.Task(
    name="old",
    executors=[tes.Executor(image="any", command=["sh", "-c", "cat /in/a; sleep 0.3; exit 3"], stdout="/out/o")],
    inputs=[tes.Input(path="/in/a", content="text\n", type="FILE")],
    outputs=[tes.Output(path="/out/o", url=f"{files}/old.out", type="FILE")],
    resources=tes.Resources(cpu_cores=1, ram_gb=0.25),
    tags={"of": "py-tes"},
)
one = old.create_task(sent)
ended = old.wait(one, timeout=SECONDS)
full = old.get_task(one, "FULL")
assert old.get_task(one, "BASIC").executors == sent.executors
seen["old"] = [ended.state, full.state, full.logs[0].logs[0].exit_code, full.logs[0].outputs[0].size_bytes]

# A cancelled task: what is CANCELING in TES 1.1 must neither break nor end the poll.
slow = old.create_task(
    tes.Task(executors=[tes.Executor(image="any", command=["sh", "-c", "trap '' TERM; echo begun; sleep 60"])])
)
deadline = time.monotonic() + SECONDS
while old.get_task(slow, "MINIMAL").state != "RUNNING":
    assert time.monotonic() < deadline
    time.sleep(0.05)
old.cancel_task(slow)
seen["canceled"] = old.wait(slow, timeout=SECONDS).state
seen["listed"] = [task.state for task in old.list_tasks(view="FULL", page_size=10).tasks]

# Pulsar: the first poll follows the POST at once, and one that it takes for complete ends the job.
client = TesClient(url + "/")
assert client.service_info().type.version == "1.0.0"
command = "mkdir -p /pulsar_staging/x; echo staged > /pulsar_staging/x/y"
made = client.create_task(
    TesTask(
        name="pulsar-1",
        executors=[
            TesExecutor(image="any", command=["sh", "-c", command], workdir="/"),
            TesExecutor(image="any", command=["sh", "-c", "cat /pulsar_staging/x/y"], workdir="/"),
        ],
        resources=TesResources(ram_gb=0.25),
        volumes=["/pulsar_staging/"],
    )
)
statuses = []
while True:
    task = client.get_task(made, "FULL")
    status = tes_state_to_pulsar_status(task.state)
    if status not in statuses:
        statuses.append(status)
    if tes_state_is_complete(task.state):
        break
    assert time.monotonic() < deadline + SECONDS
    time.sleep(0.02)
assert client.list_tasks().tasks[0].id == made.id
seen["pulsar"] = [statuses, task.logs[0].logs[1].stdout]
json.dump(seen, sys.stdout)
