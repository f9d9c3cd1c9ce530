"""A gateway with its agent, database and file root as processes of their own, which tests start, kill and look into."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import asyncpg
import httpx
import psutil

from tesgate.store.embedded_postmaster import Postmaster
from tests.beds.docker import USUAL_SOCKET
from tests.beds.images import BUSYBOX, engine_call
from tests.serving import ENDED, Api, Process, wait_for

__all__ = ["ENDED", "Gateway", "contents_below", "gateway_of", "sh", "wait_for"]

CRASHING = Path(__file__).parent / "crashing"
TEMPORARY = re.compile(r"\.part$|^\.tesgate|tg-[0-9a-z]{8}-")

SETTINGS = {
    # The machine has two processors, and most commands of these tests sleep.
    "AGENT__CPUS": "16",
    "AGENT__RAM_GB": "8",
    "DEFAULTS__RAM_GB": "0.25",
    "CONTROL__CANCEL_GRACE": "1",
    "RETRIES__BACKOFF_FIRST": "0.2",
    "TELEMETRY__LOG_FORMAT": "json",
}


LEFT_OVER = {
    "room": "SELECT id, used_cpu_milli, used_ram_bytes, used_disk_bytes FROM agent "
    "WHERE used_cpu_milli <> 0 OR used_ram_bytes <> 0 OR used_disk_bytes <> 0",
    "tasks": "SELECT id, state, phase FROM task WHERE phase <> 'ended' OR NOT released",
    "leases": "SELECT id, publisher FROM task WHERE publisher IS NOT NULL OR publish_until > now()",
    "attempts": "SELECT task_id, number FROM attempt WHERE NOT closed",
}
"""Queries for rows that should not be there when all tasks have ended."""


def contents_below(*places: Path) -> Iterator[tuple[Path, bytes]]:
    """Every regular file below some directories with what it holds; one that is removed meanwhile is left out."""
    for place in places:
        for directory, _, names in os.walk(place):
            for path in (Path(directory, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file() and not path.is_symlink():
                        yield path, path.read_bytes()


def sh(script: str, *, image: str = BUSYBOX, **more: Any) -> dict[str, Any]:
    """An executor that is a shell script."""
    return {"image": image, "command": ["sh", "-c", script], **more}


class Gateway(Process, Api):
    """``tesgate serve`` on a data directory of its own; the port stays the same over restarts."""

    def __init__(self, base: Path, runtime: str, *, socket: str = USUAL_SOCKET, **settings: str) -> None:
        """`settings`: names as in the environment, without the prefix, in place of `SETTINGS`."""
        base = base.resolve()
        self.data, self.files, self.runtime = base / "data", base / "files", runtime
        self.files.mkdir(parents=True)
        self.scratch = Path(settings.get("AGENT__SCRATCH") or self.data / "agent")
        self.socket = socket
        self.port = 0
        self.crash = base / "crash"
        self.log_path = base / "serve.log"
        self.before: list[str] = []
        """A program that turns itself into what follows, such as ``setpriv …``."""
        self.client = httpx.Client(timeout=20, trust_env=False)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TESGATE_")}
        for name, value in {**SETTINGS, "RUNTIME__DOCKER_SOCKET": socket, **settings}.items():
            environment["TESGATE_" + name] = value
        self.environment = {**environment, "E2E_CRASH": str(self.crash), "PYTHONPATH": str(CRASHING)}
        self.root_words = ""
        """What follows the path of the file root, such as ``:mount``."""
        self.wrapper: list[str] = []
        """Words before the command, such as ``ip netns exec NAME``."""

    # processes

    def begin(self) -> Path:
        """Start it, and do not wait; where it says that it listens."""
        out = self.log_path.with_suffix(".out")
        command = [*self.before, sys.executable, "-m", "tesgate.cli", "serve"]
        command += ["--port", str(self.port), "--runtime", self.runtime]
        command += ["--data-dir", str(self.data), "--file-root", str(self.files) + self.root_words]
        command = [*self.wrapper, *command]
        with out.open("wb") as stdout, self.log_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environment
            )
        return out

    def start(self) -> Gateway:
        """Start it, and return when it answers."""
        out = self.begin()
        process = self.process
        assert process is not None

        def listens() -> re.Match[str] | None:
            assert process.poll() is None, self.log_path.read_text()[-3000:]
            return re.search(r"listens on http://127\.0\.0\.1:(\d+)", out.read_text())

        self.port = int(wait_for("the gateway to listen", listens, 200)[1])
        self.client.base_url = httpx.URL(f"http://127.0.0.1:{self.port}/ga4gh/tes/v1")
        wait_for("the gateway to answer", lambda: self.client.get("/service-info").status_code == 200)
        return self

    def ready(self) -> Gateway:
        """Wait until its agent has registered."""
        wait_for("an agent", lambda: self.rows("SELECT 1 FROM agent WHERE state = 'open'"))
        return self

    def terminate(self, seconds: float = 60.0) -> float:
        """SIGTERM; how long it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(seconds) == 0, self.log_path.read_text()[-3000:]
        return time.monotonic() - began

    def agent(self) -> psutil.Process | None:
        """The living agent of the data directory."""
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(json.loads((self.data / "agent.json").read_text())["pid"]))
            if process.status() != psutil.STATUS_ZOMBIE and str(self.data) in " ".join(process.cmdline()):
                return process
        return None

    def kill_agent(self) -> None:
        """As by ``kill -9``; waits until it is gone."""
        process = wait_for("the agent to live", self.agent)
        process.kill()
        wait_for("the agent to be dead", lambda: (found := self.agent()) is None or found.pid != process.pid)

    def arm(self, who: str, point: str) -> None:
        """Have `who` (gateway, agent, both) killed when the agent next passes `point` (see ``runner.crash``)."""
        assert self.process is not None
        fresh = self.crash.with_suffix(".new")
        fresh.write_text(f"{who} {point} {self.process.pid}")
        fresh.rename(self.crash)

    def wait_struck(self) -> None:
        """Wait until the point was passed, and start the gateway again if it was killed. `serve` starts its agent."""
        done = Path(f"{self.crash}.done")
        wait_for("the crash point to be passed", done.exists)
        who = done.read_text().split()[0]
        done.unlink()
        if who != "agent":
            wait_for("the gateway to die", self.is_dead)
            self.start()

    def postmaster(self) -> Postmaster:
        """The embedded PostgreSQL. Raises OSError while it has not written its file."""
        found = Postmaster.read((self.data / "postgres").resolve())
        if found is None:
            raise FileNotFoundError(self.data / "postgres/postmaster.pid")
        return found

    def close(self) -> None:
        """End everything that was started: gateway (which stops PostgreSQL) and agent."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        if (agent := self.agent()) is not None:
            agent.terminate()
            try:
                agent.wait(10)
            except psutil.TimeoutExpired:
                agent.kill()
        cluster = (self.data / "postgres").resolve()
        if (server := Postmaster.read(cluster)) and server.is_alive(cluster):
            os.kill(server.pid, signal.SIGINT)
            wait_for("PostgreSQL to end", lambda: not server.is_alive(cluster))
        if cluster != self.data / "postgres":  # in /var/lib/tesgate, where its unprivileged user can reach it
            shutil.rmtree(cluster, ignore_errors=True)
        self.client.close()

    # the API

    def submit(self, task: dict[str, Any], **headers: str) -> str:
        """POST; the id."""
        answer = self.client.post("/tasks", json=task, headers=headers)
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    def run(self, *executors: dict[str, Any], **task: Any) -> dict[str, Any]:
        """Submit, wait, and the whole task."""
        return self.wait(self.submit({"executors": list(executors), **task}))

    def log(
        self, task_id: str, stream: str = "stdout", *, executor: int = 0, attempt: int = 1, **headers: str
    ) -> httpx.Response:
        """The whole log, by the extension route."""
        return self.client.get(f"/tasks/{task_id}/logs/{attempt}/{executor}/{stream}", headers=headers)

    # files

    def url(self, name: str) -> str:
        """The file URL of a name in the file root."""
        return "file://" + quote(str(self.files / name))

    def path(self, name: str) -> str:
        return str(self.files / name)

    def write(self, name: str, content: str | bytes) -> str:
        """Make a file in the file root; its URL."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.url(name)

    def read(self, name: str) -> str:
        return (self.files / name).read_text()

    # what lies below

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        """Ask the database itself, the embedded one or the one that the settings name."""
        return self.tables([query], *arguments)[0]

    def tables(self, queries: Sequence[str], *arguments: Any) -> list[list[dict[str, Any]]]:
        """The rows of each query, over one connection: each costs the server a process."""

        async def ask() -> list[list[dict[str, Any]]]:
            dsn = self.environment.get("TESGATE_DATABASE_URL") or (
                f"postgresql://tesgate@/tesgate?host={self.postmaster().socket_directory}&port=5432"
            )
            connection = await asyncpg.connect(dsn)
            try:
                return [[dict(row) for row in await connection.fetch(query, *arguments)] for query in queries]
            finally:
                await connection.close()

        return anyio.run(ask)

    def containers(self) -> list[str]:
        """Containers on the engine, or sandboxes' processes, that belong to this gateway."""
        if self.runtime == "docker":
            filters = quote(json.dumps({"label": [f"tesgate.scratch={self.scratch.resolve()}"]}))
            status, body = engine_call(self.socket, "GET", f"/containers/json?all=1&filters={filters}")
            assert status == 200, body
            return [name.lstrip("/") for found in json.loads(body) for name in found["Names"]]
        return list(self._sandboxes())

    def _sandboxes(self) -> Iterator[str]:
        mark = f"TESGATE_STEP={self.scratch.resolve()}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        yield entry.name
        records = self.scratch / "bubblewrap"
        if records.exists():
            yield from (str(path) for path in records.iterdir())

    def left_over(self) -> dict[str, Any]:
        """Everything that should not be there when all tasks have ended."""
        attempts = self.scratch / "attempts"
        rows = dict(zip(LEFT_OVER, self.tables(list(LEFT_OVER.values())), strict=True))
        found: dict[str, Any] = {
            **rows,
            "containers": self.containers(),
            "attempt directories": [path.name for path in attempts.iterdir()] if attempts.exists() else [],
            "temporary files": [str(path) for path in self.files.rglob("*") if TEMPORARY.search(path.name)],
        }
        return {name: what for name, what in found.items() if what}

    def assert_nothing_left(self, seconds: float = 60.0) -> None:
        """No container, room, lease, open row, scratch directory or temporary file is left, soon."""
        deadline = time.monotonic() + seconds
        while left := self.left_over():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@contextlib.contextmanager
def gateway_of(
    base: Path, runtime: str, *, socket: str = USUAL_SOCKET, root_words: str = "", **settings: str
) -> Iterator[Gateway]:
    """A started gateway with its agent; everything is ended, and looked for, at the end."""
    gateway = Gateway(base, runtime, socket=socket, **settings)
    gateway.root_words = root_words
    try:
        yield gateway.start().ready()
        gateway.assert_nothing_left()
    finally:
        gateway.close()
