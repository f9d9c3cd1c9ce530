"""A gateway with its agent, a mix of tasks and an oracle: what most faults are done to."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.beds.docker import USUAL_SOCKET
from tests.e2e.harness import Gateway, wait_for
from tests.faults.oracle import Mix, Oracle, Witness, Work

__all__ = ["LEAST", "Clock", "Site", "fill", "kill_if_alive", "site", "small_disk"]

LEAST = {
    "AGENT__CPUS": "64",
    "AGENT__RAM_GB": "32",
    "DEFAULTS__RAM_GB": "0.1",
    "RUNTIME__NETWORK": "host",  # the witness listens on the loopback address
    # Whoever is killed again and again is to find its tasks again and again.
    "RETRIES__MAX_ATTEMPTS": "20",
    "RETRIES__BACKOFF_FACTOR": "1",
}
"""Settings for many small tasks at once on bubblewrap."""


class Site:
    """Everything that one fault needs; made by `site`."""

    def __init__(
        self, base: Path, rng: random.Random, runtime: str, socket: str, longest: float, settings: dict[str, str]
    ) -> None:
        self.rng = rng
        self.gateway = Gateway(base, runtime, socket=socket, **settings)
        self.witness = Witness("127.0.0.1" if runtime == "bubblewrap" else "0.0.0.0")
        self.mix = Mix(files=self.gateway.files, witness=self.witness, runtime=runtime, rng=rng, longest=longest)
        self.oracle = Oracle(lambda: [str(self.gateway.client.base_url).rstrip("/")], self.witness)

    def moment(self, least: float, most: float) -> None:
        """The moment of the next fault: a length that the seed chooses, not a wait for anything."""
        time.sleep(self.rng.uniform(least, most))

    # faults

    def kill_both(self) -> None:
        """Gateway and agent, as by ``kill -9``."""
        agent = self.gateway.agent()
        if not self.gateway.is_dead():
            self.gateway.kill()
        kill_if_alive(agent)

    def kill_agent(self) -> None:
        kill_if_alive(self.gateway.agent())

    def kill_postgres(self, number: signal.Signals = signal.SIGKILL) -> None:
        """The embedded one; the gateway starts it again."""
        server = self.gateway.postmaster()
        os.kill(server.pid, number)
        wait_for(
            "another PostgreSQL",
            lambda: (now := self.gateway.postmaster()).pid != server.pid and now.status == "ready",
            60,
        )

    def cancel_all(self, works: Sequence[Work]) -> None:
        """Cancel those that are to be cancelled."""
        for work in works:
            if work.cancel:
                self.oracle.cancel(work)

    # the end

    def finish(self, seconds: float = 90.0, *, system_errors: bool = False, logs: bool = True) -> None:
        """The three sentences."""
        self.oracle.wait(seconds)
        self.oracle.judge(system_errors=system_errors)
        self.gateway.assert_nothing_left(40)
        if logs:
            self.oracle.assert_logs()
        self.assert_few_connections()

    def assert_few_connections(self) -> None:
        """Nobody who was killed still holds connections to the database, and the living hold a bounded number."""
        query = (
            "SELECT count(*) AS n FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND datname = current_database()"
        )
        wait_for("few connections", lambda: self.gateway.rows(query)[0]["n"] <= 16 + 4, 20)
        for process in (psutil.Process(self.gateway.process.pid if self.gateway.process else 0), self.gateway.agent()):
            assert process is None or process.num_fds() < 250, process

    def close(self) -> None:
        self.oracle.close()
        self.gateway.close()
        self.witness.close()
        # Whatever failed above: no sandbox of ours may sleep on.
        mark = f"TESGATE_STEP={self.gateway.scratch.resolve()}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, psutil.Error):
                    if mark in (entry / "environ").read_bytes():
                        for child in psutil.Process(int(entry.name)).children(recursive=True):
                            child.kill()
                        psutil.Process(int(entry.name)).kill()


def kill_if_alive(process: psutil.Process | None) -> None:
    """As by ``kill -9``; waits until it is gone."""
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            wait_for("it to be dead", lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


@contextlib.contextmanager
def site(
    base: Path,
    rng: random.Random,
    runtime: str = "bubblewrap",
    *,
    socket: str = USUAL_SOCKET,
    longest: float = 1.5,
    start: bool = True,
    **settings: Any,
) -> Iterator[Site]:
    """A started gateway with its agent, watched; everything is ended at the end."""
    made = Site(base, rng, runtime, socket, longest, settings)
    try:
        if start:
            made.gateway.start().ready()
            made.oracle.start()
        yield made
    finally:
        made.close()


class Clock:
    """A wall clock that can be set, for whoever is started with `environment`; no other clock is touched."""

    def __init__(self, base: Path) -> None:
        library = base / "clock.so"
        source = Path(__file__).parent / "clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._path = base / "clock"
        self.move(0)
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self._path)}

    def move(self, seconds: int) -> None:
        """It shows so many seconds more than it should from now on."""
        with self._path.open("r+b" if self._path.exists() else "wb") as file:  # the same file: it is mapped
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own, of that size."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
