"""A gateway that speaks TLS itself, and agents on hosts of their own that know it by the site's authority."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.authority import Authority
from tests.beds.netns import Host
from tests.faults.oracle import Mix, Oracle, Witness
from tests.replicas.fleet import Agent, Fleet, Replica, wait_for

__all__ = ["Site", "site"]

SETTINGS = {
    "DEFAULTS__RAM_GB": "0.1",
    "RETRIES__MAX_ATTEMPTS": "20",
    "RETRIES__BACKOFF_FACTOR": "1",
    "CONTROL__AGENT_LOST_AFTER": "3",
    "CONTROL__POLL_INTERVAL": "0.5",
    "CONTROL__DISPATCH_INTERVAL": "0.2",
    "AUTH__ALLOW_UNAUTHENTICATED_NETWORK": "true",
}


class SecureReplica(Replica):
    """``tesgate serve`` with a certificate of its own, for all who can reach this machine."""

    def started(self) -> Replica:
        def listens() -> re.Match[str] | None:
            assert not self.is_dead(), self.log.read_text()[-3000:]
            return re.search(r"listens on https://[\d.]+:(\d+)", self.log.with_suffix(".out").read_text())

        self.port = int(wait_for("the gateway to listen", listens, 60)[1])
        self.client.base_url = httpx.URL(f"https://127.0.0.1:{self.port}/ga4gh/tes/v1")
        return self


class RemoteAgent(Agent):
    """``tesgate agent`` on another host."""

    def __init__(self, site: Site, name: str, host: Host, pool: str, options: tuple[str, ...]) -> None:
        super().__init__(site.fleet, name, site.gateway)
        self.host, self.site = host, site
        self.wrapper = host.wrapper
        self.url = f"https://{host.outside}:{site.gateway.port}"
        self.token = site.token(pool)
        self.options = ["--network", "host", "--host-name", name, "--ca-file", str(site.authority.file), *options]

    def power_off(self) -> None:
        """As by a cut of power: agent and sandboxes at once; the disk stays."""
        assert self.process is not None
        self.process.kill()
        mark = f"TESGATE_STEP={self.scratch.resolve()}/".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, psutil.Error):
                    if mark in (entry / "environ").read_bytes():
                        for process in [
                            *psutil.Process(int(entry.name)).children(recursive=True),
                            psutil.Process(int(entry.name)),
                        ]:
                            process.kill()
        self.process.wait()

    def row(self) -> dict[str, Any]:
        """As `agent list` shows it."""
        return next(agent for agent in self.site.agents() if agent["host"] == self.host_name)

    @property
    def host_name(self) -> str:
        return self.options[self.options.index("--host-name") + 1]


class Site:
    """Everything; made by `site`."""

    def __init__(self, base: Path, database_url: str, hosts: list[Host], settings: dict[str, str]) -> None:
        self.fleet = Fleet(base, database_url, migrate=False)
        self.authority = Authority(base / "tls")
        self.trusting = ssl.create_default_context(cafile=str(self.authority.file))
        names = [f"IP:{host.outside}" for host in hosts]
        certificate, key = self.authority.issue("gateway", "IP:127.0.0.1", *names)
        tls = {"SERVER__HOST": "0.0.0.0", "SERVER__TLS_CERTIFICATE": str(certificate), "SERVER__TLS_KEY": str(key)}
        self.gateway = SecureReplica(self.fleet, "gateway", **SETTINGS, **tls, **settings)
        self.gateway.client.close()
        self.gateway.client = httpx.Client(
            timeout=30,
            trust_env=False,
            limits=httpx.Limits(keepalive_expiry=2),
            verify=self.trusting,
        )
        self.fleet.replicas["gateway"] = self.gateway

    def token(self, pool: str) -> Path:
        path = self.fleet.base / f"{pool}.token"
        if not path.exists():
            words = ("token", "create", f"agents-{pool}", "--kind", "agent", "--pool", pool)
            path.write_text(self.fleet.tesgate(*words))
        return path

    def agent(self, name: str, host: Host, *options: str, pool: str = "default") -> RemoteAgent:
        """A started agent."""
        made = RemoteAgent(self, name, host, pool, options)
        self.fleet.agents[name] = made
        made.start()
        return made

    def tesgate(self, *words: str) -> subprocess.CompletedProcess[str]:
        """An operator's command, over TLS."""
        return subprocess.run(
            [sys.executable, "-m", "tesgate.cli", *words],
            capture_output=True,
            text=True,
            env={
                **self.fleet.environment(),
                "SSL_CERT_FILE": str(self.authority.file),
                "TESGATE_URL": f"https://127.0.0.1:{self.gateway.port}",
            },
            timeout=60,
            check=False,
        )

    def agents(self) -> list[dict[str, Any]]:
        """What the route of `agent list` answers."""
        answer = self.gateway.client.get(f"https://127.0.0.1:{self.gateway.port}/tesgate/v1/agents")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["agents"]
        return found

    def undrain(self, host: str) -> None:
        url = f"https://127.0.0.1:{self.gateway.port}/tesgate/v1/agents/{host}:undrain"
        assert self.gateway.client.post(url).status_code == 200

    def run(self, **resources: Any) -> str:
        """Submit a task with these resources that waits for its `go`; its id."""
        document = self.fleet.task("while [ ! -e /count/go ]; do sleep 0.05; done", os.urandom(6).hex())
        answer = self.gateway.client.post("/tasks", json={**document, "resources": resources})
        assert answer.status_code == 200, answer.text
        task_id: str = answer.json()["id"]
        return task_id

    def place_of(self, task_id: str) -> str:
        """The host that has the task."""
        query = (
            "SELECT host FROM agent JOIN attempt ON agent_id = agent.id "
            "WHERE task_id = $1 AND NOT closed AND acknowledged_at IS NOT NULL"
        )
        return str(wait_for("the task to be placed", lambda: self.fleet.rows(query, task_id))[0]["host"])

    def reason(self, task_id: str, words: str) -> str:
        """Its newest system log, once that has these words."""

        def said() -> str | None:
            logs = self.gateway.get(task_id)["logs"]
            last = (logs[-1].get("system_logs") or [""])[-1] if logs else ""
            return str(last) if words in last else None

        try:
            return wait_for(f"the reason {words!r}", said)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {self.gateway.get(task_id)['logs']}") from None

    def close(self) -> None:
        for agent in self.fleet.agents.values():
            assert isinstance(agent, RemoteAgent)
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                agent.host.mend()
            with contextlib.suppress(Exception):
                agent.power_off()
        self.fleet.close()


class Judged:
    """A mix of tasks and the oracle, whose clients speak TLS, too."""

    def __init__(self, site: Site, rng: random.Random, address: str) -> None:
        self.witness = Witness(address)
        self.mix = Mix(files=site.fleet.files, witness=self.witness, runtime="bubblewrap", rng=rng)
        url = str(site.gateway.client.base_url).rstrip("/")
        self.oracle = Oracle(lambda: [url], self.witness, verify=site.trusting).start()

    def close(self) -> None:
        self.oracle.close()
        self.witness.close()


@contextlib.contextmanager
def site(base: Path, database_url: str, hosts: list[Host], **settings: str) -> Iterator[Site]:
    """A started gateway; whatever was started is ended."""
    base.mkdir(exist_ok=True)
    made = Site(base, database_url, hosts, settings)
    try:
        made.gateway.start()
        yield made
    finally:
        made.close()


def stop(agent: Agent) -> None:
    """SIGTERM, and wait."""
    agent.signal(signal.SIGTERM)
    assert agent.process is not None
    assert agent.process.wait(20) == 0
