"""Whole logs in an object store, end to end: read while the task writes, whole at the end, and nothing on the disk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator

import anyio
import pytest

from tesgate.config import S3Endpoint
from tesgate.storage.s3.store import ObjectStore
from tests.beds.s3 import Servers
from tests.e2e.harness import Gateway, gateway_of, sh, wait_for


@pytest.fixture
def gateway(bubblewrap: object, s3: Servers, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    base, bucket = tmp_path_factory.mktemp("workspace"), f"b-{uuid.uuid4().hex[:12]}"
    for name, word in (("id", s3.seaweed.access_key), ("secret", s3.seaweed.secret_key)):
        (base / name).write_text(word)
    endpoint = {
        "name": "weed",
        "url": s3.seaweed.url,
        "access_key_id": f"file:{base}/id",
        "secret_access_key": f"file:{base}/secret",
    }

    async def make_bucket() -> None:
        store = ObjectStore(S3Endpoint.model_validate(endpoint))
        await store.call("create_bucket", bucket)
        await store.close()

    anyio.run(make_bucket)
    settings = {"S3__ENDPOINTS": json.dumps([endpoint]), "WORKSPACE": f"s3://{bucket}/here"}
    with gateway_of(base, "bubblewrap", root_words=":mount", **settings) as started:
        yield started


def test_a_log_in_an_object_store(gateway: Gateway) -> None:
    """The task goes on when its log has been read."""
    script = (
        "echo early; for i in $(seq 600); do [ -e /gate/go-on ] && break; sleep 0.1; done; seq 50000; echo late >&2"
    )
    task_id = gateway.submit(
        {
            "executors": [sh(script)],
            "inputs": [{"path": "/gate", "url": gateway.url(""), "type": "DIRECTORY"}],
        }
    )
    wait_for("the log to be read early", lambda: gateway.log(task_id).text.startswith("early\n"))
    assert gateway.state(task_id) == "RUNNING"
    (gateway.files / "go-on").touch()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE"
    whole = "early\n" + "".join(f"{number}\n" for number in range(1, 50001))
    wait_for("the whole log", lambda: gateway.log(task_id).text == whole)
    assert gateway.log(task_id, Range="bytes=-6").text == "50000\n"
    answer = gateway.log(task_id, Range="bytes=6-7")
    assert (answer.status_code, answer.text) == (206, "1\n")
    assert answer.headers["content-range"] == f"bytes 6-7/{len(whole)}"
    wait_for("the other log", lambda: gateway.log(task_id, "stderr").text == "late\n")
    # Another process reads the same.
    gateway.terminate()
    gateway.start().ready()
    assert gateway.log(task_id).text == whole
    assert not (gateway.data / "workspace/logs").exists()
