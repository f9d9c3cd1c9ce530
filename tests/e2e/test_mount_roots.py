"""A file root of mode ``mount``, end to end on both runtimes: the client and the task see one directory."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from tests.beds.docker import USUAL_SOCKET
from tests.e2e.conftest import RUNTIMES
from tests.e2e.harness import Gateway, gateway_of, sh, wait_for

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", params=RUNTIMES)
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateway]:
    """One whose only root is mounted, and whose tasks are somebody in particular on Docker."""
    bed = request.getfixturevalue(request.param)
    base = tmp_path_factory.mktemp(f"mount-{request.param}")
    settings = {"RUNTIME__RUN_AS": "4321:4322"} if request.param == "docker" and os.geteuid() == 0 else {}
    socket = getattr(bed, "socket", USUAL_SOCKET)
    with gateway_of(base, request.param, socket=socket, root_words=":mount", **settings) as started:
        yield started


def directory(path: str, url: str) -> dict[str, Any]:
    return {"path": path, "url": url, "type": "DIRECTORY"}


def test_a_job_store_is_one_directory_for_client_and_task(gateway: Gateway) -> None:
    """As Toil has it: the input DIRECTORY is at the client's own path, and both write to it while the task runs."""
    store = gateway.files / "job store"
    (store / "jobs").mkdir(parents=True)
    store.chmod(0o777)
    (store / "jobs").chmod(0o777)
    script = f"""
        cd '{store}' && echo begun > jobs/from-task
        for i in $(seq 300); do [ -e jobs/from-client ] && break; sleep 0.1; done
        cat jobs/from-client; id -u; mv jobs/from-task jobs/renamed; ln -s jobs/renamed latest
    """
    task_id = gateway.submit({"executors": [sh(script)], "inputs": [directory(str(store), gateway.url("job store"))]})
    wait_for("the client to see what the task wrote", (store / "jobs/from-task").exists)
    assert (store / "jobs/from-task").read_text() == "begun\n"
    (store / "jobs/new").write_text("from the client\n")
    os.rename(store / "jobs/new", store / "jobs/from-client")
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    said, uid = task["logs"][0]["logs"][0]["stdout"].splitlines()
    assert said == "from the client"
    assert (store / "latest").read_text() == "begun\n"
    if "RUNTIME__RUN_AS" in str(gateway.environment) and gateway.runtime == "docker":
        assert uid == "4321"
        written = (store / "jobs/renamed").stat()
        assert (written.st_uid, written.st_gid) == (4321, 4322)
    assert any("mounted from a file root as it is" in line for line in task["logs"][0]["system_logs"])


def test_an_output_directory_is_written_in_place_and_listed(gateway: Gateway) -> None:
    """cwl-tes: a FILE inside the DIRECTORY, both below one URL, and stdout into it; outputs elsewhere are stored."""
    gateway.write("in/data.txt", "data\n")
    gateway.files.chmod(0o755)
    task = gateway.run(
        {
            **sh("cat /stage/data.txt; echo more > sub.txt; echo err >&2; [ -w /stage/data.txt ] && echo rw; exit 0"),
            "workdir": "/uQMmjL",
            "stdout": "/uQMmjL/md5",
        },
        inputs=[{"path": "/stage/data.txt", "url": gateway.url("in/data.txt"), "type": "FILE"}],
        outputs=[
            {"path": "/uQMmjL/md5", "url": gateway.url("out/deep/md5"), "type": "FILE"},
            directory("/uQMmjL", gateway.url("out/deep/")),
            {"path": "/uQMmjL/sub.txt", "url": gateway.url("elsewhere/s.txt"), "type": "FILE"},
        ],
    )
    assert task["state"] == "COMPLETE", task
    assert gateway.read("out/deep/md5").startswith("data\n")
    assert gateway.read("out/deep/sub.txt") == gateway.read("elsewhere/s.txt") == "more\n"
    assert {(found["url"], found["path"]) for found in task["logs"][0]["outputs"]} == {
        (gateway.url("out/deep/md5"), "/uQMmjL/md5"),
        (gateway.url("out/deep/sub.txt"), "/uQMmjL/sub.txt"),
        (gateway.url("elsewhere/s.txt"), "/uQMmjL/sub.txt"),
    }
    assert gateway.log(task["id"]).text == gateway.read("out/deep/md5")


def test_a_link_that_leads_out_is_not_mounted(gateway: Gateway) -> None:
    outside = gateway.data.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("secret")
    (gateway.files / "way-out").symlink_to(outside)
    task = gateway.run(sh("cat /in/secret"), inputs=[directory("/in", gateway.url("way-out"))])
    assert task["state"] == "SYSTEM_ERROR"
    assert "leads out of the agent's roots" in str(task["logs"])
    assert "logs" not in task["logs"][0] or not task["logs"][0]["logs"]
