"""An ordinary user serves, runs a task, is killed and comes back: on bubblewrap, and on Docker by way of its group."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.harness import Gateway, sh, wait_for
from tests.users.people import Person, myself_or_nobody

pytestmark = pytest.mark.slow

BARE = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LC_ALL": "C", "PYTHONUTF8": "0"}
"""Neither a home nor a place for temporary files nor a locale."""


def person_for(runtime: str, engine: str) -> Person:
    groups = []
    if runtime == "docker":
        status = os.stat(engine)
        if os.geteuid() == 0 and (status.st_gid == 0 or not status.st_mode & 0o020):
            pytest.skip(f"{engine} belongs to no group that an ordinary user could join")
        groups.append(status.st_gid)
    try:
        return myself_or_nobody(*groups)
    except LookupError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["bubblewrap", "docker"])
def gateway(request: pytest.FixtureRequest) -> Generator[Gateway]:
    """Not below pytest's directory, which is closed to others."""
    bed = request.getfixturevalue(request.param)
    engine = getattr(bed, "socket", "/var/run/docker.sock")
    person = person_for(request.param, engine)
    base = Path(tempfile.mkdtemp(prefix="tesgate-ordinary-"))
    base.chmod(0o755)
    made = Gateway(base, request.param, socket=engine)
    made.environment.update(BARE)
    made.before = person.command()
    if person.uid != os.geteuid():
        person.own(base)
    try:
        yield made
        made.assert_nothing_left()
    finally:
        made.close()
        shutil.rmtree(base, ignore_errors=True)


def without_words(gateway: Gateway) -> None:
    """Standard input is closed, standard output and error are a full disk: it serves without words."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gateway.port = probe.getsockname()[1]
    command = [*gateway.before, sys.executable, "-m", "tesgate.cli", "serve", "--port", str(gateway.port)]
    command += ["--data-dir", str(gateway.data), "--runtime", gateway.runtime, "--no-agent"]
    with open("/dev/full", "wb") as full:
        gateway.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <&-', "sh", *command], stdout=full, stderr=full, env=gateway.environment
        )
    address = f"http://127.0.0.1:{gateway.port}/healthz"
    wait_for("the gateway to answer", lambda: gateway.client.get(address).status_code == 200, 60)
    gateway.process.terminate()
    # 120: Python could not flush its streams at the end, which is what a full disk is.
    assert gateway.process.wait(30) in (0, 120)


def test_an_ordinary_user(gateway: Gateway) -> None:
    person = gateway.files.stat().st_uid
    assert person != 0
    if gateway.runtime == "bubblewrap":
        without_words(gateway)
    gateway.start().ready()
    assert gateway.data.stat().st_uid == person

    result = gateway.run(
        sh("echo done > /out/result"), outputs=[{"path": "/out/result", "url": gateway.url("result"), "type": "FILE"}]
    )
    assert result["state"] == "COMPLETE", result
    assert gateway.read("result") == "done\n"
    assert (gateway.files / "result").stat().st_uid == person

    # A second one on the same data directory is refused by name.
    assert gateway.process is not None
    second = subprocess.run(
        [*gateway.before, sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--data-dir", str(gateway.data)],
        capture_output=True,
        text=True,
        env=gateway.environment,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2, second.stderr
    assert f"another gateway (process {gateway.process.pid}) uses {gateway.data}; stop it" in second.stderr
    assert "Traceback" not in second.stderr

    # Everything is killed while a command runs: lock, socket, pid files and records that it leaves are no obstacle.
    task = gateway.submit(
        {
            "executors": [sh("echo $$ >> /count/starts; sleep 3")],
            "volumes": ["/count"],
            "outputs": [{"path": "/count/starts", "url": gateway.url("starts"), "type": "FILE"}],
        }
    )
    gateway.wait(task, "RUNNING", "COMPLETE")
    agent = wait_for("the agent to live", gateway.agent)
    postgres = gateway.postmaster().pid
    gateway.kill()
    agent.kill()
    os.kill(postgres, signal.SIGKILL)
    gateway.start()
    assert gateway.wait(task)["state"] == "COMPLETE"
    assert len(gateway.read("starts").splitlines()) == 1

    if gateway.runtime == "bubblewrap":
        ends_in_order(gateway)


def ends_in_order(gateway: Gateway) -> None:
    """The terminal is closed; Ctrl-C, twice."""
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    assert gateway.process.wait(30) == 0
    assert '"tesgate has ended"' in gateway.log_path.read_text()
    gateway.start()
    gateway.process.send_signal(signal.SIGINT)
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(30) == 0
    assert "Traceback" not in gateway.log_path.read_text()
    gateway.start().ready()
