"""Whole tasks whose data is on a real S3 server, through a gateway and its agent: in, out, killed, cancelled."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.beds.s3 import Servers
from tests.e2e.harness import Gateway, contents_below, gateway_of, sh, wait_for
from tests.transfer.s3_bed import Objects, Stand

pytestmark = pytest.mark.slow

LARGE = (17 << 20) + 5
"""More than one PUT is for."""
MAKE_LARGE = "dd if=/dev/urandom bs=1M count=17 2>/dev/null > /out/large; echo tail >> /out/large"


@pytest.fixture(scope="module")
def stand(s3: Servers) -> Iterator[Stand]:
    made = Stand(s3.seaweed.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def gateway(bubblewrap: Any, s3: Servers, stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose one endpoint is the proxy before SeaweedFS."""
    del bubblewrap
    endpoint = {
        "name": "bed",
        "url": stand.proxy.url,
        "access_key_id": "env:E2E_S3_ID",
        "secret_access_key": "env:E2E_S3_SECRET",
        "part_mb": 5,
        "request_checksum": "crc32",
    }
    os.environ["E2E_S3_ID"], os.environ["E2E_S3_SECRET"] = s3.seaweed.access_key, s3.seaweed.secret_key
    try:
        base = tmp_path_factory.mktemp("s3")
        with gateway_of(base, "bubblewrap", S3__ENDPOINTS=json.dumps([endpoint])) as started:
            yield started
    finally:
        del os.environ["E2E_S3_ID"], os.environ["E2E_S3_SECRET"]


@pytest.fixture
def objects(stand: Stand, tmp_path: Any) -> Objects:
    return Objects(tmp_path, stand)


def output(objects: Objects, path: str, key: str, **more: str) -> dict[str, str]:
    return {"path": path, "url": objects.url(key), "type": "FILE", **more}


def large_task(objects: Objects) -> dict[str, Any]:
    return {
        "executors": [sh(MAKE_LARGE + "; echo small > /out/small")],
        "volumes": ["/out"],
        "outputs": [output(objects, "/out/large", "large"), output(objects, "/out/small", "small")],
    }


def no_signature(gateway: Gateway) -> None:
    """Nothing that could be replayed is on any disk of ours."""
    assert b"X-Amz-" not in gateway.log_path.read_bytes()
    for path, content in contents_below(gateway.data / "agent"):
        if path.name in ("journal", "plan.json"):
            assert b"X-Amz-" not in content, path


def test_in_and_out(gateway: Gateway, objects: Objects) -> None:
    objects.store("in/one file.txt", b"hello\n")
    for index in range(25):
        objects.store(f"in/many/{index % 3}/{index}", b"%d\n" % index)
    script = (
        "cat '/in/one file.txt' /in/many/*/*; mkdir -p /out/tree /out/none; cp -r /in/many/. /out/tree; "
        "for i in 1 2 3; do echo $i > /out/part-$i.txt; done; " + MAKE_LARGE
    )
    task = gateway.run(
        {**sh(script), "stdout": "/out/words"},
        volumes=["/out"],
        inputs=[
            {"path": "/in/one file.txt", "url": objects.url("in/one file.txt"), "type": "FILE"},
            {"path": "/in/many", "url": objects.url("in/many"), "type": "DIRECTORY"},
        ],
        outputs=[
            output(objects, "/out/words", "out/words"),
            output(objects, "/out/tree", "out/tree", type="DIRECTORY"),
            output(objects, "/out/none", "out/none", type="DIRECTORY"),
            output(objects, "/out/part-*.txt", "out/parts", path_prefix="/out"),
            output(objects, "/out/large", "out/large"),
            output(objects, "/out/nothing", "out/nothing"),
        ],
    )
    assert task["state"] == "COMPLETE", task
    tree = [f"out/tree/{index % 3}/{index}" for index in range(25)]
    parts = [f"out/parts/part-{index}.txt" for index in (1, 2, 3)]
    expected = sorted([*tree, *parts, "out/words", "out/large"])
    assert [key for key in objects.stored_keys() if key.startswith("out/")] == expected
    words = objects.stored("out/words").split()
    assert sorted(words) == sorted([b"hello", *(b"%d" % index for index in range(25))])
    assert len(objects.stored("out/large")) == LARGE
    assert {item["url"] for item in task["logs"][0]["outputs"]} == {objects.url(key) for key in expected}
    assert {item["url"]: item["size_bytes"] for item in task["logs"][0]["outputs"]}[objects.url("out/large")] == str(
        LARGE
    )
    assert objects.uploads() == []
    no_signature(gateway)


def test_an_input_that_is_not_there(gateway: Gateway, objects: Objects) -> None:
    task = gateway.run(sh("true"), inputs=[{"path": "/in/x", "url": objects.url("nothing"), "type": "FILE"}])
    assert task["state"] == "SYSTEM_ERROR"
    assert any("does not exist" in line for line in task["logs"][0]["system_logs"]), task["logs"]


def test_killed_in_the_middle_of_an_upload(gateway: Gateway, objects: Objects) -> None:
    objects.fault("stall", method="PUT", path="large", skip=1, at=0)
    held = objects.proxy.held
    task_id = gateway.submit(large_task(objects))
    wait_for("a part to hang", held.is_set)
    (journal,) = gateway.data.glob(f"agent/attempts/*{task_id}-*/journal")
    assert b"s3-upload:" in journal.read_bytes()
    no_signature(gateway)
    assert objects.stored_keys() == []
    assert objects.uploads() == ["large"]
    gateway.kill_agent()
    objects.proxy.release.set()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    assert objects.stored_keys() == ["large", "small"]
    assert len(objects.stored("large")) == LARGE
    wait_for("no upload to be left", lambda: objects.uploads() == [])


@pytest.mark.parametrize("point", ["after-lease", "after-publish"])
def test_killed_at_a_point_of_stage_out(gateway: Gateway, objects: Objects, point: str) -> None:
    gateway.arm("agent", point)
    task_id = gateway.submit(large_task(objects))
    gateway.wait_struck()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    assert objects.stored_keys() == ["large", "small"]
    assert len(objects.stored("large")) == LARGE
    wait_for("no upload to be left", lambda: objects.uploads() == [])


def test_cancelled_in_the_middle_of_an_upload(gateway: Gateway, objects: Objects) -> None:
    objects.fault("stall", method="PUT", path="large", skip=1, at=0)
    task_id = gateway.submit(large_task(objects))
    wait_for("a part to hang", objects.proxy.held.is_set)
    gateway.cancel(task_id)
    assert gateway.wait(task_id)["state"] == "CANCELED"
    assert objects.stored_keys() == []
    wait_for("no upload to be left", lambda: objects.uploads() == [])
    gateway.assert_nothing_left()
