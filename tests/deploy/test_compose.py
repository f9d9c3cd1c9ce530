"""examples/compose with the image, by a real docker-compose: a task from end to end, and a gateway that is killed."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.beds import BedUnavailable
from tests.beds.image import Image, environment, postgres_service
from tests.beds.images import BUSYBOX
from tests.e2e.harness import ENDED, sh, wait_for
from tests.runner.test_exec import ROOT, cannot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SOME_USER = "1000730000:0"
"""As OpenShift gives them out: in no passwd file, in group 0."""


class Site:
    """A copy of the example, under a project name of its own."""

    def __init__(self, image: Image, program: str, place: Path) -> None:
        self.image, self.place = image, place / "compose"
        self.project = f"tesgate-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.data, self.scratch = place / "srv" / "data", place / "srv" / "scratch"
        shutil.copytree(ROOT / "examples" / "compose", self.place, ignore=shutil.ignore_patterns("secrets", ".env"))
        user = {"user": SOME_USER}
        services = {
            "postgres": postgres_service(image.base, place / "start"),
            "migrate": user,
            "gateway": {**user, "environment": {"TESGATE_CONTROL__CANCEL_GRACE": "1"}},
        }
        (self.place / "override.yaml").write_text(json.dumps({"services": services}))
        self.compose = [program, "-p", self.project, "-f", "compose.yaml", "-f", "override.yaml"]
        self.environment = {
            **environment(image.socket),
            "COMPOSE": " ".join(self.compose),
            "DOCKER_SOCKET": image.socket,
            "TESGATE_IMAGE": image.name,
            "TESGATE_LISTEN": "127.0.0.1:0",
            "AGENT_CPUS": "4",
            "COMPOSE_HTTP_TIMEOUT": "180",
        }

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=300, check=False, cwd=self.place, env=self.environment
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}{self.logs()}"
        return done

    def logs(self) -> str:
        done = self.run(*self.compose, "logs", "--no-color", "--tail=20", check=False)
        return done.stdout[-6000:] + done.stderr[-1000:]

    def container(self, service: str) -> str:
        labels = [
            f"com.docker.compose.{name}={word}" for name, word in (("project", self.project), ("service", service))
        ]
        filters = [part for label in labels for part in ("--filter", f"label={label}")]
        return self.image.docker("ps", "--quiet", *filters).stdout.strip()

    def remove(self) -> None:
        self.run(*self.compose, "down", "--volumes", "--timeout", "10", check=False)
        for agent in ("agent-1", "agent-2"):
            label = f"label=tesgate.scratch={self.scratch}/{agent}"
            left = self.image.docker("ps", "-aq", "--filter", label, check=False).stdout.split()
            if left:
                self.image.docker("rm", "--force", "--volumes", *left, check=False)


@pytest.fixture
def site(image: Image) -> Iterator[Site]:
    program = shutil.which("docker-compose") or cannot(
        "docker-compose is not installed (apt-get install docker-compose)"
    )
    place = Path(f"/tmp/tesgate-compose-{os.getpid()}-{secrets.token_hex(3)}")
    place.mkdir(mode=0o755)  # not below pytest's directories: other users must reach it
    try:
        try:
            made = Site(image, program, place)
        except BedUnavailable as exc:
            cannot(exc.reason)
        try:
            yield made
        finally:
            made.remove()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_prepared_by_sudo_it_belongs_to_the_user(tmp_path: Path) -> None:
    place, base, user = tmp_path / "compose", tmp_path / "srv" / "tesgate", 54321
    shutil.copytree(ROOT / "examples" / "compose", place, ignore=shutil.ignore_patterns("secrets", ".env"))
    # In the place of Compose, which test_compose has: all that is asked of it here is an agent's token.
    (tmp_path / "compose.sh").write_text("echo a-token\n")
    settings = {"COMPOSE": f"sh {tmp_path}/compose.sh", "DOCKER_SOCKET": "/dev/null", "SUDO_UID": str(user)}
    for _ in range(2):
        subprocess.run(["./prepare.sh", base], check=True, cwd=place, env={**os.environ, **settings}, umask=0o077)
    mine = [place / ".env", place / "secrets", *(place / "secrets").iterdir()]
    assert len(mine) == 8
    assert {path.stat().st_uid for path in mine} == {user}
    assert (place / ".env").stat().st_mode & 0o777 == 0o644
    assert (place / "secrets").stat().st_mode & 0o777 == 0o700
    made = [base, base / "data", base / "scratch", base / "scratch" / "agent-1", base / "scratch" / "agent-2"]
    assert [path.stat().st_mode & 0o777 for path in made] == [0o755] * 5
    assert {path.stat().st_uid for path in made[1:]} == {10001}


def test_compose(site: Site) -> None:
    site.run("./prepare.sh", str(site.data.parent))
    assert site.run("./prepare.sh", str(site.data.parent)).stdout == ""  # again: all is there
    words = {path.name: path.read_text().strip() for path in (site.place / "secrets").iterdir()}
    assert set(words) == {"postgres_password", "database_url", "secret_key", "tokens", "agent_1", "agent_2"}
    assert (site.place / "secrets").stat().st_mode & 0o077 == 0
    site.run(*site.compose, "up", "--detach")
    gateway, agents = site.container("gateway"), [site.container(name) for name in ("agent-1", "agent-2")]
    docker = site.image.docker

    def base() -> str:
        return f"http://{docker('port', gateway, '8000/tcp').stdout.split()[0]}/ga4gh/tes/v1"

    def state(container: str) -> Any:
        return json.loads(docker("inspect", container).stdout)[0]["State"]

    token = words["tokens"].split(":")[1]
    with httpx.Client(headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=20) as client:
        url = base()
        assert state(gateway)["Health"]["Status"] == "healthy"  # the agents waited for it
        assert client.get(url + "/tasks", headers={"authorization": "Bearer wrong"}).status_code == 401

        def submit(command: str, result: str) -> str:
            task = {
                "inputs": [{"url": f"file://{site.data}/in", "path": "/work/in"}],
                "outputs": [{"url": f"file://{site.data}/{result}", "path": "/work/out/result"}],
                "executors": [sh(command, image=BUSYBOX)],
                # More than one of the two has left when the other runs.
                "resources": {"cpu_cores": 3, "ram_gb": 0.5},
            }
            answer = client.post(url + "/tasks", json=task)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        def end(task: str) -> dict[str, Any]:
            def ended() -> dict[str, Any] | None:
                with contextlib.suppress(httpx.TransportError):
                    found: dict[str, Any] = client.get(f"{url}/tasks/{task}", params={"view": "FULL"}).json()
                    return found if found.get("state") in ENDED else None
                return None

            found = wait_for(f"the end of {task}", ended, 90, pause=0.2)
            assert found is not None and found["state"] == "COMPLETE", f"{found}{site.logs()}"
            return found

        (site.data / "in").write_text("what is outside\n")
        # Each needs most of an agent, so they run on both; and both are there while the gateway is gone.
        slow = "sleep 4; cp /work/in /work/out/result"
        tasks = [submit(slow, f"slow-{number}") for number in range(2)]
        wait_for(
            "both tasks to run",
            lambda: all(client.get(f"{url}/tasks/{task}").json()["state"] == "RUNNING" for task in tasks),
            60,
        )
        docker("kill", gateway)
        assert not state(gateway)["Running"]
        docker("start", gateway)
        url = base()  # the port is another one now
        found = [end(task) for task in tasks]
        assert [len(task["logs"]) for task in found] == [1, 1]
        assert all((site.data / f"slow-{number}").read_text() == "what is outside\n" for number in range(2))
        end(submit("tr a-z A-Z < /work/in > /work/out/result", "quick"))
        assert (site.data / "quick").read_text() == "WHAT IS OUTSIDE\n"
        assert (site.data / "quick").stat().st_uid == 10001
        logs = [docker("logs", agent).stderr for agent in agents]
        assert all('"attempt": ' in log for log in logs), logs

    # Told to end, all do so in time and of their own will; and nothing that they wrote is a secret.
    site.run(*site.compose, "stop", "--timeout", "60", "gateway", "agent-1", "agent-2")
    assert [state(container)["ExitCode"] for container in (gateway, *agents)] == [0, 0, 0]
    said = site.logs()
    assert not [name for name, word in words.items() if word in said]
