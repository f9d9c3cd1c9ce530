"""Faults at random moments, each ending in the three sentences of `tests.faults.oracle`. Run by ``make soak``."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from tesgate.store.embedded import EmbeddedPostgres
from tests.beds.docker import Docker, answers
from tests.beds.images import load_images
from tests.beds.postgres import FAST
from tests.e2e.harness import wait_for
from tests.faults.cutting import Cutting
from tests.faults.deployment import deployment
from tests.faults.world import LEAST, Clock, Site, fill, site, small_disk
from tests.replicas.fleet import Agent, Fleet, Replica

pytestmark = [pytest.mark.timeout(900)]

PATIENCE = 240.0
"""Seconds that a round's tasks may take after the last fault, on a busy machine."""


def faults_of(here: Site, count: int, kinds: list[Callable[[], None]]) -> None:
    for _ in range(count):
        here.moment(0.1, 2.5)
        here.rng.choice(kinds)()


def ended_by(here: Site, number: signal.Signals, agent_too: bool) -> None:
    """The gateway, with or without the agent, is ended and started again after a moment."""
    agent = here.gateway.agent()
    assert here.gateway.process is not None
    here.gateway.process.send_signal(number)
    if agent_too and agent is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent.pid, number)
    here.gateway.process.wait(60)
    here.moment(0.0, 1.0)
    here.gateway.start()


def agent_ended_by(here: Site, number: signal.Signals) -> None:
    agent = here.gateway.agent()
    if agent is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent.pid, number)


def kills(here: Site) -> list[Callable[[], None]]:
    """All that can be done to gateway, agent and both."""
    return [
        *(lambda n=n, both=both: ended_by(here, n, both) for n in SIGNALS for both in (False, True)),  # type: ignore[misc]
        *(lambda n=n: agent_ended_by(here, n) for n in SIGNALS),  # type: ignore[misc]
    ]


SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def test_kills_with_the_embedded_database(bubblewrap: Any, tmp_path: Path, rng: random.Random) -> None:
    with site(tmp_path, rng, longest=4, **LEAST) as here:
        works = here.mix.make(50)
        here.oracle.submit(works)
        postgres = [lambda n=n: here.kill_postgres(n) for n in (signal.SIGKILL, signal.SIGQUIT)]  # type: ignore[misc]
        faults_of(here, 5, [*kills(here), *postgres])
        here.cancel_all(works)
        here.finish(PATIENCE)


def test_kills_with_an_external_database(bubblewrap: Any, tmp_path: Path, rng: random.Random) -> None:
    with own_postgres() as server:
        with site(tmp_path, rng, start=False, longest=4, DATABASE_URL=server.dsn, **LEAST) as here:
            subprocess_migrate(here)
            here.gateway.start().ready()
            here.oracle.start()
            works = here.mix.make(50)
            here.oracle.submit(works)

            def database() -> None:
                anyio.run(server.stop)
                here.moment(0.0, 4.0)
                anyio.run(server.start)

            faults_of(here, 4, [*kills(here), database, database, database])
            here.cancel_all(works)
            here.finish(PATIENCE)


@contextlib.contextmanager
def own_postgres(directory: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that can be stopped, and loses nothing that was committed."""
    with tempfile.TemporaryDirectory(prefix="tesgate-soak-") as made:
        place = directory or Path(made)
        place.chmod(0o711)
        Path(made).chmod(0o711)
        server = EmbeddedPostgres(place, settings={**FAST, "synchronous_commit": "on", "fsync": "on"})
        anyio.run(server.start)
        try:
            yield server
        finally:
            anyio.run(server.stop)


def subprocess_migrate(here: Site) -> None:
    command = [sys.executable, "-m", "tesgate.cli", "migrate", "--data-dir", str(here.gateway.data)]
    subprocess.run(command, env=here.gateway.environment, check=True, timeout=60, capture_output=True)


def test_docker_and_its_engine_killed(tmp_path: Path, rng: random.Random) -> None:
    """A dockerd of our own, in a network of its own: nobody else's containers are touched."""
    with (
        own_dockerd() as engine,
        site(tmp_path, rng, "docker", socket=engine.socket, longest=3, **{**LEAST, "RUNTIME__NETWORK": "host"}) as here,
    ):
        works = here.mix.make(12, kinds=["quiet", "cancel"])
        for work in works:
            # The engine has no way to our witness: it has a network of its own. The attempt's scratch tells instead.
            command = work.document["executors"][0]["command"]
            once = "echo begun >> /count/begun; test $(wc -l < /count/begun) = 1 || exit 98; "
            command[-1] = once + command[-1].split("exit 99; ")[-1]
        here.oracle.witness_needed = False
        here.oracle.submit(works)
        for _ in range(2):
            here.moment(0.5, 3.0)
            engine.kill_and_start(here.rng)
            here.rng.choice(kills(here))()
        here.cancel_all(works)
        here.finish(PATIENCE, logs=False)


class OwnDockerd:
    """An engine that may be killed."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.socket = str(directory / "docker.sock")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._forget_containerd()
        for stale in ("pid", "docker.sock"):
            (self.directory / stale).unlink(missing_ok=True)
        # Not `ip netns exec`: that hides the cgroups, which lie below /sys.
        command = ["nsenter", f"--net=/run/netns/{self.name}", "dockerd", f"--host=unix://{self.socket}"]
        command += [f"--data-root={self.directory}/data", f"--exec-root={self.directory}/run"]
        command += [f"--pidfile={self.directory}/pid", "--bridge=none", "--iptables=false"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            # After a kill it first ends what its containerd still runs, one shim after the other.
            wait_for("our dockerd to answer", lambda: answers(self.socket) or self._ended(), 240)
            assert not self._ended(), "dockerd ended"
        except AssertionError:
            print((self.directory / "log").read_text(errors="replace")[-4000:])  # noqa: T201
            raise

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _forget_containerd(self) -> None:
        """The one of a dockerd that was killed dies with it, and stays a zombie until this machine's first process
        reaps it. dockerd takes a zombie for a living containerd, and gives up when it does not answer.
        """
        file = self.directory / "run/containerd/containerd.pid"
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            known = psutil.Process(int(file.read_text()))
            # A zombie has no command line any more, and another process that has its number by now has another one.
            wait_for("containerd to be dead", lambda: str(self.directory) not in " ".join(known.cmdline()), 60)
        file.unlink(missing_ok=True)

    def kill_and_start(self, rng: random.Random) -> None:
        assert self.process is not None
        self.process.send_signal(rng.choice(SIGNALS))
        self.process.wait(60)
        time.sleep(rng.uniform(0.0, 3.0))
        self.start()


@contextlib.contextmanager
def own_dockerd() -> Iterator[OwnDockerd]:
    name = f"tgsoak{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="tesgate-soak-docker-", ignore_cleanup_errors=True) as directory:
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        made = OwnDockerd(Path(directory), name)
        try:
            made.start()
            load_images(made.socket)
            yield made
        finally:
            if made.process is not None:
                made.process.terminate()
                made.process.wait(60)
            subprocess.run(["ip", "netns", "del", name], check=False)


def test_replicas_are_killed_stopped_and_cut_off(
    bubblewrap: Any, external: str, tmp_path: Path, rng: random.Random
) -> None:
    with Cutting.before(external, rng) as proxy, deployment(tmp_path / "d", external, rng) as here:
        here.fleet.agent_token()
        here.fleet.database_url = proxy.url
        a = here.replica("a")
        here.fleet.database_url = external
        b, c = here.replica("b"), here.replica("c")
        here.agent("one", b)
        here.agent("two", c)
        works = here.mix.make(50)
        here.oracle.submit(works)
        for _ in range(5):
            here.moment(0.2, 2.0)
            victim = rng.choice([a, b, c, *here.fleet.agents.values()])
            kind = rng.choice(["kill", "stop", "cut", "hang"])
            if kind == "kill":
                victim.kill()
                here.moment(0.0, 3.0)
                victim.start()
            elif kind == "stop":
                victim.signal(signal.SIGSTOP)
                here.moment(0.5, 4.0)
                victim.signal(signal.SIGCONT)
            elif kind == "cut":
                proxy.answers_lost, proxy.statements_lost = 0.05, 0.03
                here.moment(1.0, 4.0)
                proxy.answers_lost = proxy.statements_lost = 0.0
            else:
                proxy.hang()
                here.moment(0.5, 5.0)
                proxy.flow()
        here.cancel_all(works)
        here.finish(PATIENCE)


def test_the_agent_and_the_gateway_lose_each_other(
    bubblewrap: Any, external: str, tmp_path: Path, rng: random.Random
) -> None:
    """The agent in a network namespace: the way to its gateway is slow, loses packets, or is not there."""
    with netns() as net, deployment(tmp_path / "d", external, rng, host=net.outside) as here:
        here.fleet.agent_token()
        a = here.replica(
            "a", SERVER__HOST="0.0.0.0", AUTH__ALLOW_UNAUTHENTICATED_NETWORK="true", CONTROL__AGENT_LOST_AFTER="6"
        )
        agent = here.fleet.agents["one"] = net.agent(here.fleet, a)
        agent.start()
        works = here.mix.make(30)
        here.oracle.submit(works)
        for _ in range(4):
            here.moment(0.2, 2.0)
            rng.choice([net.drop, net.slow, net.lossy])()
            here.moment(1.0, 9.0)
            net.mend()
        here.cancel_all(works)
        here.finish(PATIENCE)


class Net:
    """A network namespace with one way out, which can be made bad."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.veth = name, f"{name}v"
        self.outside, self.inside = (
            f"10.{200 + number // 250}.{number % 250}.1",
            f"10.{200 + number // 250}.{number % 250}.2",
        )

    def run(self, *words: str, check: bool = True) -> None:
        subprocess.run(words, check=check, capture_output=True)

    def make(self) -> None:
        self.run("ip", "netns", "add", self.name)
        self.run("ip", "link", "add", self.veth, "type", "veth", "peer", "name", "out", "netns", self.name)
        self.run("ip", "addr", "add", f"{self.outside}/30", "dev", self.veth)
        self.run("ip", "link", "set", self.veth, "up")
        for words in (
            ("addr", "add", f"{self.inside}/30", "dev", "out"),
            ("link", "set", "out", "up"),
            ("link", "set", "lo", "up"),
        ):
            self.run("ip", "-n", self.name, *words)

    def agent(self, fleet: Fleet, gateway: Replica) -> Agent:
        made = Agent(fleet, "one", gateway)
        made.options = ["--network", "host"]
        made.wrapper = ["nsenter", f"--net=/run/netns/{self.name}"]
        made.url = f"http://{self.outside}:{gateway.port}"
        return made

    def _inside(self, *words: str, check: bool = True) -> None:
        self.run("nsenter", f"--net=/run/netns/{self.name}", *words, check=check)

    def drop(self) -> None:
        """Nothing passes, and nobody says so."""
        for chain in ("INPUT", "OUTPUT"):
            self._inside("iptables", "-A", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")

    def lossy(self) -> None:
        for chain in ("INPUT", "OUTPUT"):
            self._inside(
                "iptables", "-A", chain, "-m", "statistic", "--mode", "random", "--probability", "0.3", "-j", "DROP"
            )

    def slow(self) -> None:
        # netem is not in every kernel; a narrow pipe with a long queue is slow too
        self._inside(
            "tc", "qdisc", "replace", "dev", "out", "root", "tbf", "rate", "64kbit", "burst", "4kb", "latency", "3000ms"
        )

    def mend(self) -> None:
        self._inside("iptables", "-F")
        self._inside("tc", "qdisc", "del", "dev", "out", "root", check=False)


@contextlib.contextmanager
def netns() -> Iterator[Net]:
    made = Net(f"tgs{os.getpid() % 100000}", os.getpid() % 5000)
    try:
        made.make()
        yield made
    finally:
        made.run("ip", "netns", "del", made.name, check=False)
        made.run("ip", "link", "del", made.veth, check=False)


def test_the_clock_jumps(bubblewrap: Any, external: str, tmp_path: Path, rng: random.Random) -> None:
    clock = Clock(tmp_path)
    with site(
        tmp_path / "s", rng, start=False, longest=3, DATABASE_URL=external, **LEAST, TIMEOUTS__EXECUTOR="650"
    ) as here:
        here.gateway.environment.update(clock.environment)
        here.gateway.start().ready()
        here.oracle.start()
        works = here.mix.make(30)
        here.oracle.submit(works)
        moves = [lambda: clock.move(rng.randrange(-(10**7), 10**7)) for _ in range(3)]
        faults_of(here, 6, [*kills(here), *moves])
        here.cancel_all(works)
        here.finish(PATIENCE)


def test_disks_fill_up(bubblewrap: Any, tmp_path: Path, rng: random.Random) -> None:
    """Under the scratch, the workspace and the database, in turn; the agents wait, and room comes back."""
    base = tmp_path / "disks"
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(small_disk(base / "database", 160))
        scratch = stack.enter_context(small_disk(base / "scratch", 48))
        (tmp_path / "s/data").mkdir(parents=True)
        workspace = stack.enter_context(small_disk(tmp_path / "s/data/workspace", 4))
        for path in (tmp_path, base, database):
            path.chmod(0o711)
        server = stack.enter_context(own_postgres(database))
        here = stack.enter_context(
            site(
                tmp_path / "s",
                rng,
                start=False,
                longest=3,
                DATABASE_URL=server.dsn,
                AGENT__SCRATCH=str(scratch),
                **LEAST,
            )
        )
        subprocess_migrate(here)
        here.gateway.start().ready()
        here.oracle.start()
        works = here.mix.make(20, kinds=["quiet", "cancel", "quiet"])
        here.oracle.submit(works)
        for disk in rng.sample([scratch, workspace, database], 3):
            here.moment(0.1, 1.0)
            fill(disk / "ballast")
            here.moment(1.0, 5.0)
            (disk / "ballast").unlink()
            wait_for(
                "the database to take writes again", lambda: here.gateway.client.get("/tasks").status_code == 200, 90
            )
            here.oracle.submit(here.mix.make(4, kinds=["quiet"]))  # commands that write could rightly fail
        here.oracle.submit(here.mix.make(6, kinds=["plain", "loud"]))
        here.cancel_all(works)
        here.finish(PATIENCE)


@pytest.mark.once
def test_five_hundred_tasks_on_the_real_engine(docker: Docker, tmp_path: Path, rng: random.Random) -> None:
    with site(
        tmp_path, rng, "docker", socket=docker.socket, longest=0.5, AGENT__CPUS="16", DEFAULTS__RAM_GB="0.05"
    ) as here:
        works = here.mix.make(500, kinds=["quiet", "plain", "quiet", "fails", "cancel"])
        here.oracle.submit(works)
        here.moment(2, 8)
        ended_by(here, signal.SIGKILL, True)
        here.cancel_all(works)
        here.finish(780)
