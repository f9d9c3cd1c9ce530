"""Whole tasks on Podman, of root and of an ordinary user: files in and out, whoever writes them, cancel, a death."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.beds.images import USER
from tests.beds.podman import Podman
from tests.e2e.harness import Gateway, sh, wait_for


@pytest.fixture(scope="module", params=os.environ.get("TESGATE_TEST_PODMAN", "podman_rootless").split(","))
def bed(request: pytest.FixtureRequest) -> Podman:
    """The ordinary user's. Root's is nearer to Docker, and has the contract's tests: TESGATE_TEST_PODMAN=podman."""
    found: Podman = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def gateway(bed: Podman) -> Generator[Gateway]:
    """A gateway and its agent, both of the service's user. `image`: the commands are whoever their images say."""
    base = bed.place / "gateway"
    made = Gateway(base, "docker", socket=bed.socket, RUNTIME__RUN_AS="image")
    made.before = list(bed.become)
    for path in (base, made.files):
        os.chown(path, bed.uid, bed.uid)
    try:
        yield made.start().ready()
        made.assert_nothing_left()
    finally:
        made.close()
        shutil.rmtree(base, ignore_errors=True)


def test_files_go_in_and_out_whoever_the_command_is(bed: Podman, gateway: Gateway) -> None:
    gateway.write("in.txt", "given ")
    Path(gateway.path("in.txt")).chmod(0o600)
    os.chown(gateway.path("in.txt"), bed.uid, bed.uid)
    # The second image's user is another: in a rootless namespace a sub-id, whose closed directory is nobody else's.
    task = gateway.run(
        sh("cat /in/a /in/b > /out/both; echo kept > /srv/image.txt; id -u", workdir="/out"),
        sh(
            "cat /out/both /srv/image.txt > /out/again; id -u; umask 077; mkdir /out/closed; echo x > /out/closed/f",
            image=USER,
        ),
        inputs=[
            {"path": "/in/a", "url": gateway.url("in.txt"), "type": "FILE"},
            {"path": "/in/b", "content": "content\n", "type": "FILE"},
        ],
        outputs=[
            {"path": "/out", "url": gateway.url("result"), "type": "DIRECTORY"},
            {"path": "/srv/image.txt", "url": gateway.url("image.txt"), "type": "FILE"},
        ],
    )
    assert task["state"] == "COMPLETE", task
    assert len(task["logs"]) == 1, [log["system_logs"] for log in task["logs"]]
    assert [log["stdout"] for log in task["logs"][0]["logs"]] == ["0\n", "1234\n"]
    assert gateway.read("result/again") == "given content\nkept\n"
    assert gateway.read("result/closed/f") == "x\n"
    assert gateway.read("image.txt") == "kept\n"
    written = [path for path in gateway.files.rglob("*") if path.name != "in.txt"]
    if bed.uid:
        assert {path.stat().st_uid for path in written} == {bed.uid}
    limits = [line for line in task["logs"][0]["system_logs"] if "memory limit is not held" in line]
    assert bool(limits) == (bed.uid != 0 and not Path("/sys/fs/cgroup/cgroup.controllers").exists())


def test_an_error_is_the_commands_and_its_streams_are_there(gateway: Gateway) -> None:
    task = gateway.run(sh("echo out; echo err >&2; exit 3"))
    log = task["logs"][0]["logs"][0]
    assert (task["state"], log["exit_code"], log["stdout"], log["stderr"]) == ("EXECUTOR_ERROR", 3, "out\n", "err\n")
    assert gateway.log(task["id"]).text == "out\n"


def test_a_task_is_cancelled(gateway: Gateway) -> None:
    task = gateway.submit({"executors": [sh("sleep 600")]})
    gateway.wait(task, "RUNNING")
    wait_for("its container", gateway.containers)
    gateway.cancel(task)
    gateway.wait(task, "CANCELED")
    wait_for("no container", lambda: not gateway.containers())


def test_an_agents_death_is_no_ones_loss(bed: Podman, gateway: Gateway) -> None:
    task = gateway.submit(
        {
            "executors": [sh("echo $$ >> /count/starts; while [ ! -e /count/go ]; do sleep 0.1; done")],
            "volumes": ["/count"],
            "outputs": [{"path": "/count/starts", "url": gateway.url("starts"), "type": "FILE"}],
        }
    )
    gateway.wait(task, "RUNNING")
    inside = wait_for("the command to begin", lambda: list(gateway.scratch.glob("attempts/*/rw/count/starts")))[0]
    gateway.kill_agent()
    # A file of the host's root would be nobody's in a rootless namespace, where it could be given to nobody.
    (gateway.scratch / "go").touch()
    os.chown(gateway.scratch / "go", bed.uid, bed.uid)
    (gateway.scratch / "go").rename(inside.parent / "go")
    done = gateway.wait(task)
    assert (done["state"], len(done["logs"])) == ("COMPLETE", 1)
    assert len(gateway.read("starts").splitlines()) == 1
