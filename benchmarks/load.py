"""Ten thousand tasks in a burst, run through on scripted agents by a real `tesgate serve` with an embedded PostgreSQL.

    python -m benchmarks.load [--tasks 10000] [--clients 500] [--agents 2] [--slots 500] [--seconds 4] [--rounds 2]
    python -m benchmarks.load --quick

One owner submits nine tenths of the tasks first, ten others share the rest. Each client sends one GET a second, for
its open tasks in turn. A probe of an owner of its own comes every half second, before the burst and in it. The second
round does the same on what the first one left, so that what grows is seen. The agents run nothing
(`scripted_agent.py`): all CPU is the gateway's, the database's, the clients' and theirs, each counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import uvloop

from tesgate.store.database import Database
from tesgate.store.embedded import EmbeddedPostgres

ENDED = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")
TABLES = ("task", "attempt", "log", "task_event")
TOKEN = "0123456789abcdef0123456789abcdef-{}"


class Client:
    """One kept connection; asks, and waits for the answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.statuses: Counter[int] = Counter()

    async def call(self, method: str, path: str, token: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        assert self._reader is not None
        kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{kind}\r\n".encode() + body
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        size = re.search(rb"(?i)content-length: (\d+)", head)
        assert size is not None, head
        answer = await self._reader.readexactly(int(size[1]))
        self.statuses[status] += 1
        return status, answer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@dataclasses.dataclass
class Submitted:
    """One task as its client saw it (wall clock, seconds)."""

    owner: int
    asked: float
    answered: float = 0.0
    seen: float = 0.0
    state: str = ""


class Load:
    """The clients of one round, and what they saw."""

    def __init__(self, port: int, document: bytes) -> None:
        self._port = port
        self._document = document
        self.tasks: dict[str, Submitted] = {}
        self.probes: dict[str, Submitted] = {}
        self.gets: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.accepted_in = 0.0

    async def submit(self, client: Client, owner: int, into: dict[str, Submitted]) -> str:
        """POST one task, until it is accepted."""
        asked = time.time()
        token = TOKEN.format(owner)
        status, body = await client.call("POST", "/ga4gh/tes/v1/tasks", token, self._document)
        assert status == 200, body
        task_id: str = json.loads(body)["id"]
        into[task_id] = Submitted(owner, asked, time.time())
        return task_id

    async def burst(self, owners: Iterator[int], clients: int) -> None:
        """All tasks by all clients, each of which then polls its own until they have ended."""
        began = time.time()
        left = clients

        async def live(index: int) -> None:
            nonlocal left
            client = Client(self._port)
            mine = [(await self.submit(client, owner, self.tasks), owner) for owner in owners]
            left -= 1
            if not left:
                self.accepted_in = time.time() - began
            await asyncio.sleep(index / clients)
            due = asyncio.get_running_loop().time()
            while mine:
                task_id, owner = mine.pop(0)
                asked = time.time()
                status, body = await client.call("GET", f"/ga4gh/tes/v1/tasks/{task_id}", TOKEN.format(owner))
                self.gets.append(time.time() - asked)
                state = json.loads(body)["state"] if status == 200 else ""
                if state in ENDED:
                    self.tasks[task_id].seen, self.tasks[task_id].state = time.time(), state
                else:
                    mine.append((task_id, owner))
                due = max(due + 1.0, asyncio.get_running_loop().time())
                await asyncio.sleep(due - asyncio.get_running_loop().time() if mine else 0)
            self.statuses.update(client.statuses)
            client.close()

        async with asyncio.TaskGroup() as group:
            for index in range(clients):
                group.create_task(live(index))

    async def probe(self, seconds: float, pause: float) -> None:
        """A task of an owner of its own every now and then."""
        client = Client(self._port)
        until = time.time() + seconds
        try:
            while time.time() < until:
                await self.submit(client, 99, self.probes)
                await asyncio.sleep(pause)
        finally:
            self.statuses.update(client.statuses)
            client.close()


@dataclasses.dataclass(frozen=True)
class Books:
    """What stands at one moment."""

    cpu: dict[str, float]
    rss: dict[str, int]
    statements: int
    wal: int
    requests: Counter[str]
    sizes: dict[str, int]
    connections: int
    files: int
    open_files: int
    log_bytes: int


class Gateway:
    """`tesgate serve` with its database, and what both have used."""

    def __init__(self, base: Path) -> None:
        self.data = base / "data"
        self._log = base / "serve.log"
        tokens = base / "tokens"
        tokens.write_text("".join(f"owner{n}:{TOKEN.format(n)}\n" for n in (*range(11), 99)))
        self._command = [sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--no-agent"]
        self._command += ["--tokens-file", str(tokens), "--data-dir", str(self.data)]
        self.port = 0

    def start(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"listens on http://[^:]+:(\d+)", line):
                self.port = int(found[1])
                return
        raise SystemExit(self._log.read_text())

    def agent_token(self) -> str:
        command = [sys.executable, "-m", "tesgate.cli", "token", "create", "load", "--kind", "agent"]
        return subprocess.run(
            [*command, "--data-dir", str(self.data)], check=True, capture_output=True, text=True
        ).stdout.strip()

    async def postgres(self, database: Database) -> list[psutil.Process]:
        """The server and its processes."""
        parent = psutil.Process(await database.fetchval("SELECT pg_backend_pid()")).parent()
        assert parent is not None
        return [parent, *parent.children()]

    async def books(self, database: Database) -> Books:
        """All that is counted, now."""
        me = psutil.Process(self.process.pid)
        client = Client(self.port)
        status, page = await client.call("GET", "/metrics", "-")
        client.close()
        assert status == 200
        requests: Counter[str] = Counter()
        for route, count in re.findall(
            rb'tesgate_http_request_seconds_count\{[^}]*route="([^"]+)"[^}]*\} ([\d.e+]+)', page
        ):
            requests[route.decode().rpartition("/")[2] if b"internal" in route else route.decode()] += int(float(count))
        database_cpu, database_rss = 0.0, 0
        for process in await self.postgres(database):
            try:
                # Of the server also what its children had used that are gone by now.
                database_cpu += sum(process.cpu_times()[:4])
                database_rss += process.memory_info().rss - process.memory_info().shared
            except psutil.NoSuchProcess:
                continue
        mine = me.cpu_times()
        sizes = {
            table: int(
                await database.fetchval(
                    "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree($1::regclass)", table
                )
            )
            for table in TABLES
        }
        return Books(
            cpu={"gateway": mine.user + mine.system, "database": database_cpu, "client": time.process_time()},
            rss={"gateway": me.memory_info().rss, "database": database_rss},
            statements=await database.fetchval(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            ),
            wal=int(await database.fetchval("SELECT wal_bytes FROM pg_stat_wal")),
            requests=requests,
            sizes=sizes,
            connections=await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL"),
            files=sum(len(files) for _, _, files in os.walk(self.data / "logs")),
            open_files=me.num_fds(),
            log_bytes=self._log.stat().st_size,
        )


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


class Peak:
    """The highest memory of a process, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.rss = 0

    async def run(self) -> None:
        while True:
            self.rss = max(self.rss, self._process.memory_info().rss)
            await asyncio.sleep(0.5)


async def one_round(given: argparse.Namespace, gateway: Gateway, database: Database, token: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scripted_agent", "--url", f"http://127.0.0.1:{gateway.port}"]
    command += ["--token-file", str(token), "--agents", str(given.agents), "--slots", str(given.slots)]
    command += ["--seconds", str(given.seconds)]
    agents = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 30
    )
    assert agents.stdin is not None
    assert agents.stdout is not None
    while not await database.fetchval(
        "SELECT count(*) FROM agent WHERE state = 'open' AND seen_at > now() - interval '5 s'"
    ):
        assert agents.returncode is None, "the scripted agents ended"
        await asyncio.sleep(0.1)
    executor = {"image": "busybox", "command": ["true"]}
    plain = {"executors": [executor], "name": "load", "tags": {"run": "load"}}
    document = json.dumps(plain).encode()
    # Idle: one after the other, on agents that have nothing else.
    idle = Load(gateway.port, document)
    await idle.probe(15 if given.quick else 30, 0.25)
    await asyncio.sleep(given.seconds * 2)
    before = await gateway.books(database)
    load = Load(gateway.port, document)
    owners = iter([0] * (given.tasks * 9 // 10) + [1 + n % 10 for n in range(given.tasks - given.tasks * 9 // 10)])
    peak, agents_peak = Peak(gateway.process.pid), Peak(agents.pid)
    watching = [asyncio.create_task(watch.run()) for watch in (peak, agents_peak)]
    probing = asyncio.create_task(load.probe(3600, 0.5))
    began = time.time()
    await load.burst(owners, given.clients)
    took = time.time() - began
    for task in (probing, *watching):
        task.cancel()
    await asyncio.gather(probing, *watching, return_exceptions=True)
    # Until everything is forgotten, and idle connections of the database have told their counters (10 s).
    while await database.fetchval("SELECT count(*) FROM task WHERE phase <> 'ended'"):
        await asyncio.sleep(0.2)
    await asyncio.sleep(12)
    after = await gateway.books(database)
    agents_cpu = sum(psutil.Process(agents.pid).cpu_times()[:2])
    out, _ = await agents.communicate(b"")
    told = json.loads(out)
    report(given, idle, load, before, after, told, took, peak.rss, agents_cpu)
    print(f"memory of the scripted agents' process: peak {agents_peak.rss >> 20} MiB, attempts left {told['left']}")
    used = await database.fetch("SELECT id FROM agent WHERE used_cpu_milli <> 0")
    assert not used, "room is still taken after the end"
    # Agents that have ended are open until they were silent for a minute, and would be given the next round's tasks.
    while await database.fetchval("SELECT count(*) FROM agent WHERE state = 'open'"):
        await asyncio.sleep(0.5)


def report(
    given: argparse.Namespace,
    idle: Load,
    load: Load,
    before: Books,
    after: Books,
    told: dict[str, Any],
    took: float,
    peak: int,
    agents_cpu: float,
) -> None:
    """The tables of one round."""
    count = len(load.tasks) + len(load.probes)
    begun = {task: at for task, number, at in told["begun"] if number == 1}
    states = Counter(task.state for task in load.tasks.values())
    assert states == {"COMPLETE": len(load.tasks)}, states
    accepted = len(load.tasks) / load.accepted_in
    print(f"\n{count} tasks in {took:.1f} s: accepted {accepted:.0f}/s, run {count / took:.0f}/s")
    bad = {status: n for status, n in load.statuses.items() if status != 200}
    print(f"answers to clients: {sum(load.statuses.values())}, other than 200: {bad or 'none'}")
    gets = [f"{name} {quantile(load.gets, share) * 1e3:.1f} ms" for name, share in (("p50", 0.5), ("p99", 0.99))]
    print(f"GET MINIMAL: {len(load.gets) / took:.0f}/s, {len(load.gets) / count:.1f} a task, {', '.join(gets)}")

    print("\nCPU a task                      ms")
    total = 0.0
    for name in ("gateway", "database", "client"):
        used = (after.cpu[name] - before.cpu[name]) / count * 1e3
        total += used
        print(f"  {name:24} {used:8.2f}")
    print(f"  {'these together':24} {total:8.2f}   (aim: 30 with the agent's own)")
    print(f"  {'scripted agents (whole)':24} {agents_cpu / len(told['begun']) * 1e3:8.2f}   (counted apart)")

    requests = after.requests - before.requests
    internal = {name: n for name, n in requests.items() if not name.startswith("/")}
    transactions = (after.statements - before.statements) / count
    print("\ncounted, a task")
    print(f"  database transactions    {transactions:8.2f}   (every statement; GETs and idle loops among them)")
    print(f"  WAL, KiB                 {(after.wal - before.wal) / count / 1024:8.2f}")
    print(f"  internal requests        {sum(internal.values()) / count:8.2f}   {internal}")

    print("\nPOST to start order received, ms    p50      p99      max")
    for name, of in (("idle", idle.probes), ("in the load, an owner of its own", load.probes)):
        spans = [(begun[task] - of[task].asked) * 1e3 for task in of if task in begun]
        print(f"  {name:32} {quantile(spans, 0.5):7.1f}  {quantile(spans, 0.99):7.1f}  {max(spans):7.1f}")
    queue(load, begun)

    print("\n                              before      after")
    for name, of, more in (
        ("gateway MiB", "gateway", f"   peak {peak / 2**20:.1f}"),
        ("database MiB (not shared)", "database", ""),
    ):
        print(f"  {name:26} {before.rss[of] / 2**20:8.1f}  {after.rss[of] / 2**20:9.1f}{more}")
    for table in TABLES:
        was, now = before.sizes[table], after.sizes[table]
        print(f"  {table + ' KiB':26} {was / 1024:8.0f}  {now / 1024:9.0f}   {(now - was) / count:.0f} bytes a task")
    for name in ("connections", "open_files", "files", "log_bytes"):
        print(f"  {name:26} {getattr(before, name):8d}  {getattr(after, name):9d}")


def queue(load: Load, begun: dict[str, float]) -> None:
    """How far from the order of the queue tasks were started, and when each owner's last one was."""
    by_owner: dict[int, list[str]] = defaultdict(list)
    for task in sorted(load.tasks):
        by_owner[load.tasks[task].owner].append(task)
    first = min(task.asked for task in load.tasks.values())
    away: list[int] = []
    last: dict[int, float] = {}
    for owner, tasks in by_owner.items():
        place = {task: index for index, task in enumerate(sorted(tasks, key=lambda task: begun[task]))}
        away += [abs(place[task] - index) for index, task in enumerate(tasks)]
        last[owner] = max(begun[task] for task in tasks) - first
    small = [at for owner, at in last.items() if owner]
    print("\nqueue")
    print(
        f"  places from an owner's order: mean {statistics.mean(away):.2f}, p99 {quantile(away, 0.99)}, max {max(away)}"
    )
    print(
        f"  last start after the burst began: owner of {len(by_owner[0])}: {last[0]:.1f} s; "
        f"owners of {len(by_owner[1])}: {min(small):.1f} to {max(small):.1f} s"
    )


async def measure(given: argparse.Namespace, gateway: Gateway, base: Path) -> None:
    token = base / "agent.token"
    token.write_text(gateway.agent_token())
    async with EmbeddedPostgres(gateway.data) as embedded, Database(embedded.dsn, min_size=1, max_size=2) as database:
        for number in range(given.rounds):
            print(f"\n=== round {number + 1} ===")
            await one_round(given, gateway, database, token)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--slots", type=int, default=500, help="of each agent")
    parser.add_argument("--seconds", type=float, default=4.0, help="that a task runs on average")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="1,000 tasks, 100 clients, 100 slots, one round")
    given = parser.parse_args()
    if given.quick:
        given.tasks, given.clients, given.slots, given.seconds, given.rounds = 1000, 100, 100, 1.0, 1
    with tempfile.TemporaryDirectory(prefix="load-") as made:
        os.chmod(made, 0o711)  # the embedded server's own user has to pass
        gateway = Gateway(Path(made))
        gateway.start()
        try:
            uvloop.run(measure(given, gateway, Path(made)))
        finally:
            gateway.process.send_signal(signal.SIGTERM)
            gateway.process.wait(60)


if __name__ == "__main__":
    main()
