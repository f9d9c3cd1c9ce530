"""py-tes 1.1 as people use it, against a gateway that runs what it is given."""

from __future__ import annotations

import pytest
import requests
import tes

from tests.beds.images import BUSYBOX
from tests.e2e.harness import Gateway, wait_for

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore::DeprecationWarning:tes")]


def task_of(gateway: Gateway, *command: str, name: str = "py-tes") -> tes.Task:
    url = gateway.write("py-tes.in", "file\n")
    return tes.Task(
        name=name,
        description="made by py-tes",
        executors=[tes.Executor(image=BUSYBOX, command=list(command), env={"A": "b"}, stdout="/out/said")],
        inputs=[tes.Input(path="/in/content", content="text"), tes.Input(path="/in/file", url=url, type="FILE")],
        outputs=[tes.Output(path="/out/said", url=gateway.url(f"{name}.out"), type="FILE")],
        resources=tes.Resources(cpu_cores=1, ram_gb=0.25, disk_gb=0.5),
        volumes=["/shared"],
        tags={"by": "py-tes"},
    )


def test_every_call(gateway: Gateway) -> None:
    client = tes.HTTPClient(f"http://127.0.0.1:{gateway.port}", timeout=10)
    info = client.get_service_info()
    assert info.type["artifact"] == "tes" and info.type["version"].startswith("1.1")

    sent = task_of(gateway, "cat", "/in/file", "/in/content")
    task_id = client.create_task(sent)
    assert client.wait(task_id, timeout=40).state == "COMPLETE"
    minimal, basic, full = (client.get_task(task_id, view) for view in ("MINIMAL", "BASIC", "FULL"))
    assert (minimal.id, minimal.executors) == (task_id, None)
    assert basic.inputs[0].content is None and not basic.logs[0].logs[0].stdout
    assert full.inputs[0].content == "text" and full.executors == sent.executors
    assert full.logs[0].logs[0].stdout == "file\ntext" == gateway.read("py-tes.out")
    assert full.logs[0].logs[0].exit_code == 0
    assert full.logs[0].outputs[0].size_bytes == 9
    assert full.creation_time <= full.logs[0].start_time <= full.logs[0].end_time

    failed = client.create_task(task_of(gateway, "false", name="failed"))
    slow = client.create_task(task_of(gateway, "sleep", "60", name="slow"))
    client.cancel_task(slow)
    client.cancel_task(slow)
    wait_canceled(client, slow)
    assert client.wait(failed, timeout=40).state == "EXECUTOR_ERROR"
    assert client.get_task(failed, "FULL").logs[0].logs[0].exit_code == 1

    seen, token = [], None
    while token is not None or not seen:
        page = client.list_tasks(view="BASIC", page_size=2, page_token=token)
        assert len(page.tasks) <= 2
        seen += [(item.id, item.state) for item in page.tasks]
        token = page.next_page_token
    assert seen == [(slow, "CANCELED"), (failed, "EXECUTOR_ERROR"), (task_id, "COMPLETE")]

    with pytest.raises(requests.HTTPError, match="404"):
        client.get_task("01h00000000000000000000000", "MINIMAL")
    with pytest.raises(requests.HTTPError, match="400"):
        client.create_task(tes.Task(executors=[tes.Executor(image="", command=["x"])]))


def wait_canceled(client: tes.HTTPClient, task_id: str) -> None:
    """py-tes takes CANCELING for an end, so its `wait` is asked again."""
    wait_for("CANCELED", lambda: client.wait(task_id, timeout=40).state == "CANCELED")
