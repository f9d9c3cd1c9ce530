"""Gateways on one database and agents beside them, each a process of its own, as an operator starts them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import asyncpg
import httpx

from tests.beds.images import BUSYBOX
from tests.serving import ENDED, Api, Process, wait_for

__all__ = ["ENDED", "Agent", "Fleet", "Replica", "wait_for"]

LINE = "echo once >> /count/starts; "

SETTINGS = {
    "CONTROL__HEARTBEAT": "0.2",
    "CONTROL__TRUST_WINDOW": "1.2",
    "CONTROL__ADOPT_AFTER": "2.4",
    "CONTROL__CANCEL_GRACE": "1",
    "DEFAULTS__RAM_GB": "0.25",
    "RETRIES__BACKOFF_FIRST": "0.2",
    "TELEMETRY__LOG_FORMAT": "json",
}


class Replica(Process, Api):
    """One ``tesgate serve``; the data directory and the port stay the same over restarts."""

    def __init__(self, fleet: Fleet, name: str, *options: str, **settings: str) -> None:
        self._fleet = fleet
        self.data = fleet.base / name
        self.log = fleet.base / f"{name}.log"
        self.options = options
        self.settings = settings
        self.wrapper: list[str] = []
        """Words before the command, such as ``ip netns exec NAME``."""
        self.host = "127.0.0.1"
        self.port = 0
        self.program: Path | None = None
        """The directory of another tesgate package that it is started from."""
        # A connection that rests is dropped here first: the gateway could drop it while a request is on its way.
        self.client = httpx.Client(timeout=30, trust_env=False, limits=httpx.Limits(keepalive_expiry=2))

    def command(self) -> list[str]:
        return [
            *self.wrapper,
            *(sys.executable, "-m", "tesgate.cli", "serve", "--no-agent"),
            *("--port", str(self.port), "--data-dir", str(self.data), "--database-url", self._fleet.database_url),
            *("--file-root", str(self._fleet.files), *self.options),
        ]

    def begin(self) -> Replica:
        """Start it, and do not wait."""
        environment = self._fleet.environment(self.program, **self.settings)
        with self.log.open("ab") as log, self.log.with_suffix(".out").open("wb") as out:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment
            )
        return self

    def started(self) -> Replica:
        """Wait until it answers."""

        def listens() -> re.Match[str] | None:
            assert not self.is_dead(), self.log.read_text()[-3000:]
            return re.search(r"listens on http://[\d.]+:(\d+)", self.log.with_suffix(".out").read_text())

        self.port = int(wait_for("the gateway to listen", listens, 200)[1])
        self.client.base_url = httpx.URL(f"http://{self.host}:{self.port}/ga4gh/tes/v1")
        return self

    def start(self) -> Replica:
        return self.begin().started()

    def refused(self) -> tuple[int, str]:
        """Start it where it cannot; exit code and what it said."""
        environment = self._fleet.environment(self.program, **self.settings)
        done = subprocess.run(self.command(), capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr

    def terminate(self) -> float:
        """SIGTERM; the seconds that it took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        assert self.process is not None
        assert self.process.wait(60) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - began

    def close(self) -> None:
        if self.process is not None and not self.is_dead():
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        self.client.close()

    # the API

    def submit(self, script: str = "true", *, name: str | None = None, key: str | None = None) -> str:
        """POST a task that says once that it began, then does `script`; its id."""
        answer = self.client.post(
            "/tasks",
            json=self._fleet.task(script, name or secrets.token_hex(6)),
            headers={"Idempotency-Key": key} if key else {},
        )
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["id"]
        return task_id


class Agent(Process):
    """One ``tesgate agent`` with a scratch directory of its own."""

    def __init__(self, fleet: Fleet, name: str, gateway: Replica) -> None:
        self._fleet = fleet
        self.scratch = fleet.base / f"scratch-{name}"
        self.log = fleet.base / f"agent-{name}.log"
        self.options: list[str] = []
        self.wrapper: list[str] = []
        """Words before the command, such as ``ip netns exec NAME``."""
        self.url = ""
        """Where it finds its gateway; else where that listens."""
        self.token: Path | None = None
        """Of another pool than the default one."""
        self._gateway = gateway

    def start(self) -> Agent:
        token = self.token or self._fleet.agent_token()
        command = [
            *(sys.executable, "-m", "tesgate.runner", "agent"),
            *("--url", self.url or f"http://127.0.0.1:{self._gateway.port}"),
            *("--token-file", str(token), "--scratch", str(self.scratch), "--runtime", "bubblewrap"),
            *("--root", f"files={self._fleet.files}", "--cpus", "16", "--ram-gb", "8", *self.options),
        ]
        command = [*self.wrapper, *command]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._fleet.environment()
            )
        wait_for("the agent to register", lambda: '"agent ' in self.log.read_text() or self._dead(), 200)
        return self

    def _dead(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
        return False

    def begun(self, task_id: str) -> Path:
        """Where /count of the task's attempt lies, when its executor has written its line."""
        found = (self.scratch / "attempts").glob
        return wait_for("the executor to begin", lambda: next(found(f"*{task_id}-*/rw/count/starts"), None)).parent

    def left_over(self) -> list[str]:
        """Attempts' directories, and sandboxes with or without one."""
        found = [str(path) for part in ("attempts", "bubblewrap") for path in (self.scratch / part).glob("*")]
        mark = f"TESGATE_STEP={self.scratch.resolve()}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(f"process {entry.name}")
        return found

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Fleet:
    """A deployment: one database, one secret key, one directory of files; replicas and agents by name."""

    def __init__(self, base: Path, database_url: str, *, migrate: bool = True) -> None:
        self.base, self.database_url = base, database_url
        self.files = base / "files"
        self.files.mkdir()
        self.key = base / "secret.key"
        self.key.write_text(secrets.token_hex(32))
        self.replicas: dict[str, Replica] = {}
        self.agents: dict[str, Agent] = {}
        if migrate:
            assert self.tesgate("migrate").startswith("Applied 0001_spine")

    def environment(self, program: Path | None = None, **settings: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TESGATE_")}
        given = {**SETTINGS, "SECRET_KEY_FILE": str(self.key), **settings}
        path = {} if program is None else {"PYTHONPATH": str(program)}
        return {**inherited, **path, **{f"TESGATE_{name}": value for name, value in given.items()}}

    def tesgate(self, *words: str, program: Path | None = None) -> str:
        """An operator's command that succeeds; what it printed."""
        command = [sys.executable, "-m", "tesgate.cli", *words, "--database-url", self.database_url]
        command += ["--data-dir", str(self.base / "operator")]
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment(program), timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def agent_token(self) -> Path:
        path = self.base / "agent.token"
        if not path.exists():
            path.write_text(self.tesgate("token", "create", "agents", "--kind", "agent"))
        return path

    def replica(self, name: str, *options: str, **settings: str) -> Replica:
        """The living replica of that name: the one that is there, or else started (again)."""
        made = self.replicas.get(name)
        if made is None or (options, settings) != (made.options, made.settings):
            assert made is None or made.is_dead()
            port = 0 if made is None else made.port
            made = self.replicas[name] = Replica(self, name, *options, **settings)
            made.port = port
        return made.start() if made.is_dead() else made

    def agent(self, name: str, gateway: Replica) -> Agent:
        """The living agent of that name."""
        if name not in self.agents:
            self.agents[name] = Agent(self, name, gateway).start()
        return self.agents[name]

    def close(self) -> None:
        # The agents first: they wait for nobody who can still answer.
        for agent in self.agents.values():
            agent.close()
        for replica in self.replicas.values():
            replica.close()

    # tasks

    def task(self, script: str, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "executors": [{"image": BUSYBOX, "command": ["sh", "-c", LINE + script]}],
            "volumes": ["/count"],
            "outputs": [{"path": "/count/starts", "url": "file://" + quote(str(self.files / name)), "type": "FILE"}],
        }

    def check(self, task: dict[str, Any], *, attempts: int | None = 1) -> None:
        """COMPLETE, in one attempt, whose command began once."""
        assert task["state"] == "COMPLETE", task
        if attempts is not None:
            assert len(task["logs"]) == attempts, task["logs"]
        assert (self.files / task["name"]).read_text() == "once\n"

    # what lies below

    def rows(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return self.tables([query], *arguments)[0]

    def tables(self, queries: Sequence[str], *arguments: Any) -> list[list[dict[str, Any]]]:
        """The rows of each query, over one connection: each costs the server a process."""

        async def ask() -> list[list[dict[str, Any]]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return [[dict(row) for row in await connection.fetch(query, *arguments)] for query in queries]
            finally:
                await connection.close()

        return anyio.run(ask)

    def replica_of(self, task_id: str) -> str | None:
        (row,) = self.rows("SELECT replica_id FROM task WHERE id = $1", task_id)
        owner: str | None = row["replica_id"]
        return owner

    def id_of(self, replica: Replica) -> str:
        return (replica.data / "replica.id").read_text().strip()

    def assert_nothing_left(self, seconds: float = 60.0) -> None:
        """No open row, room or lease, no attempt's directory, sandbox or temporary file, soon after the end."""
        queries: Sequence[str] = (
            "SELECT id, state, phase FROM task WHERE phase <> 'ended' OR NOT released",
            "SELECT task_id, number FROM attempt WHERE NOT closed",
            "SELECT id FROM agent WHERE used_cpu_milli <> 0 OR used_ram_bytes <> 0",
            "SELECT id FROM task WHERE publisher IS NOT NULL",
        )
        left: list[Any] = []

        def nothing() -> bool:
            left[:] = [row for rows in self.tables(queries) for row in rows]
            if left:  # what follows looks at every process of the machine
                return False
            for agent in self.agents.values():
                left.extend(agent.left_over())
            left.extend(str(path) for path in self.files.rglob(".tesgate*"))
            return not left

        try:
            wait_for("nothing to be left", nothing, seconds, pause=0.1)
        except AssertionError:
            raise AssertionError(f"still there: {left}") from None
