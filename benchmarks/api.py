"""The public routes, a second and in CPU, beside a bare FastAPI + asyncpg application in the same run.

Usage: python benchmarks/api.py [--quick] [--seconds 6] [--rounds 3] [--only POST,MINIMAL] [--connections 32]

Both stand on the same embedded PostgreSQL (fsync on), with uvloop and httptools, and are asked by wrk over the same
number of connections, in turns. The gateway is `tesgate serve` as users run it, without an agent (tasks stay in the
queue). *two*: two replicas behind two ports, against the bare application with two uvicorn workers. Each row is the
median of its rounds. `own` and `postgres` are CPU a request of all processes of either side and of PostgreSQL; the load
generator and both sides share the machine's cores. Needs wrk (apt-get install wrk).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tesgate.auth.tokens import hash_token, make_token  # noqa: E402
from tesgate.store.attempts import words_of  # noqa: E402
from tesgate.store.database import Database  # noqa: E402
from tesgate.store.embedded import EmbeddedPostgres  # noqa: E402
from tesgate.store.migrations import migrate  # noqa: E402
from tesgate.store.tokens import TokenStore  # noqa: E402
from tests.store.rows import LEASE, Rows  # noqa: E402

PREFIX = "/ga4gh/tes/v1/tasks"
OWNER = "anonymous"
"""Whose the tasks are when nobody has to say who he is."""

TASK = {
    "name": "align (sample 17)",
    "description": "one step of a workflow",
    "inputs": [
        {"url": "s3://bucket/run/.command.sh", "path": "/work/.command.sh", "type": "FILE"},
        {"url": "s3://bucket/run/.command.run", "path": "/work/.command.run", "type": "FILE"},
        {"url": "s3://bucket/reads/sample_17.fq", "path": "/work/sample_17.fq", "type": "FILE"},
    ],
    "outputs": [
        {"url": "s3://bucket/run/.command.out", "path": "/work/.command.out", "type": "FILE"},
        {"url": "s3://bucket/run/.exitcode", "path": "/work/.exitcode", "type": "FILE"},
        {"url": "s3://bucket/run/sample_17.bam", "path": "/work/sample_17.bam", "type": "FILE"},
    ],
    "resources": {"cpu_cores": 2, "ram_gb": 4.0, "disk_gb": 10.0},
    "executors": [
        {
            "image": "quay.io/biocontainers/bwa:0.7.17",
            "command": ["bash", "-c", "bash /work/.command.run"],
            "workdir": "/work",
        }
    ],
    "tags": {"project": "p", "run": "r"},
}

DONE = """
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %f\\n", summary.requests, summary.duration,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    summary.errors.status, latency:percentile(99) / 1000))
end
"""


@dataclass
class Side:
    """One of the two that are compared: its ports, the processes that serve them, the ids it knows."""

    ports: Sequence[int]
    processes: Sequence[psutil.Process]
    ids: Sequence[str]
    token: str | None = None


@dataclass
class Shot:
    """One run of wrk."""

    rate: float
    p99_ms: float
    own_ms: float
    postgres_ms: float
    faults: int


def cpu(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds of these and their children, the ended ones included."""
    total = 0.0
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
                if one == process:
                    total += times.children_user + times.children_system
    return total


def script(kind: str, side: Side, directory: Path) -> Path:
    """What wrk sends, as Lua."""
    head = f'wrk.headers["Authorization"] = "Bearer {side.token}"\n' if side.token else ""
    if kind == "POST":
        text = f"{head}wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n"
        text += f"wrk.body = [==[{json.dumps(TASK)}]==]\n"
    else:
        ids = ",".join(f'"{one}"' for one in side.ids)
        query = "" if kind == "MINIMAL" else f"?view={kind}"
        text = f"{head}local ids = {{{ids}}}\nlocal at = 0\nrequest = function()\n  at = at % #ids + 1\n"
        text += f'  return wrk.format("GET", "{PREFIX}/" .. ids[at] .. "{query}")\nend\n'
    path = directory / f"wrk-{kind}.lua"
    path.write_text(text + DONE)
    return path


def shoot(kind: str, side: Side, given: argparse.Namespace, postgres: psutil.Process, directory: Path) -> Shot:
    lua = script(kind, side, directory)
    each = given.connections // len(side.ports)
    path = PREFIX if kind == "POST" else ""
    before = cpu(side.processes), cpu([postgres])
    running = [
        subprocess.Popen(
            [
                "wrk",
                "-t1",
                f"-c{each}",
                f"-d{given.seconds}s",
                "--timeout",
                "30s",
                "-s",
                str(lua),
                f"http://127.0.0.1:{port}{path}",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for port in side.ports
    ]
    outputs = [process.communicate()[0] for process in running]
    after = cpu(side.processes), cpu([postgres])
    found = []
    for output in outputs:
        match = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) ([\d.]+)", output)
        assert match, output
        found.append([float(part) for part in match.groups()])
    requests = sum(one[0] for one in found)
    return Shot(
        rate=sum(one[0] / one[1] * 1e6 for one in found),
        p99_ms=max(one[4] for one in found),
        own_ms=(after[0] - before[0]) / requests * 1000,
        postgres_ms=(after[1] - before[1]) / requests * 1000,
        faults=int(sum(one[2] + one[3] for one in found)),
    )


async def seed(dsn: str, owners: Sequence[str], tasks: int) -> dict[str, list[str]]:
    """Ended tasks with logs for each owner, written by the statements of the protocol."""
    ids: dict[str, list[str]] = {}
    async with Database(dsn, min_size=1, max_size=4) as database:
        await migrate(database)
        rows = await Rows.made(database)
        await rows.agent(cpus=64)
        for owner in owners:
            ids[owner] = [await rows.submit(document=TASK, tags=TASK["tags"], name=TASK["name"]) for _ in range(tasks)]
            await database.execute("UPDATE task SET owner = $1 WHERE owner = 'alice'", owner)
        while given := await rows.dispatch():
            for one in given:
                tail = "line of a log\n" * 40
                executor = {"start_time": "2026-11-21T10:00:00Z", "end_time": "2026-11-21T10:00:09Z", "exit_code": 0}
                executor |= {"stdout": tail, "stderr": tail, "max_rss_bytes": 1 << 20, "cpu_seconds": 0.5}
                executor |= {"wall_seconds": 9.0, "image_digest": "sha256:" + "0" * 64}
                words = words_of(
                    "agent1", 1, {"executors": [executor], "system_logs": ["staged", "ran"], "metadata": {"host": "h"}}
                )
                outputs = [{"url": item["url"], "path": item["path"], "size_bytes": 1234} for item in TASK["outputs"]]
                await rows.attempts.acknowledge(one.agent_id, [(one.task_id, one.number)])
                await rows.attempts.report(one.task_id, one.number, words, LEASE)
                assert await rows.attempts.finish(one.task_id, one.number, words, "COMPLETE", outputs)
        await database.execute("UPDATE agent SET state = 'closed'")  # nobody is to be given what wrk posts
        await rows.replicas.leave(rows.holder)
    return ids


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def gateways(count: int, dsn: str, directory: Path, *, auth: bool) -> Iterator[Side]:
    """So many replicas of `tesgate serve`."""
    with contextlib.ExitStack() as stack:
        ports, processes = [], []
        key = directory / "secret.key"
        if not key.exists():
            key.write_bytes(os.urandom(64))
            key.chmod(0o600)
        for index in range(count):
            data = directory / f"replica-{auth}-{index}"
            environment = {**os.environ, "TESGATE_SECRET_KEY_FILE": str(key), "TESGATE_TELEMETRY__LOG_LEVEL": "warning"}
            environment["TESGATE_AUTH__MODE"] = "tokens" if auth else "none"
            command = [sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--no-agent", "--database-url", dsn]
            process = subprocess.Popen(
                [*command, "--data-dir", str(data)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.callback(end, process)
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"listens on http://[^:]+:(\d+)", line)
            assert found, line
            ports.append(int(found[1]))
            processes.append(psutil.Process(process.pid))
        yield Side(ports, processes, [])


@contextlib.contextmanager
def bare(count: int, dsn: str) -> Iterator[Side]:
    """The bare application with so many uvicorn workers."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "benchmarks.bare_app:app", "--port", str(port), "--workers", str(count)]
    process = subprocess.Popen(
        [*command, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"],
        env={**os.environ, "BARE_DATABASE_URL": dsn},
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/openapi.json").status_code == 200:
                    break
            assert time.monotonic() < deadline, "the bare application did not start"
            time.sleep(0.1)
        yield Side([port], [psutil.Process(process.pid)], [])
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def compare(
    name: str,
    ours: Side,
    plain: Side,
    kinds: Sequence[str],
    given: argparse.Namespace,
    postgres: psutil.Process,
    directory: Path,
) -> None:
    for kind in kinds:
        shots: dict[str, list[Shot]] = {"ours": [], "bare": []}
        for _ in range(given.rounds):
            for who, side in (("bare", plain), ("ours", ours)):
                shots[who].append(shoot(kind, side, given, postgres, directory))
        middle = {
            who: Shot(*(statistics.median(getattr(one, field) for one in taken) for field in Shot.__dataclass_fields__))
            for who, taken in shots.items()
        }
        a, b = middle["ours"], middle["bare"]
        print(
            f"{kind:8} {name:14} {a.rate:8.0f} {b.rate:8.0f} {a.rate / b.rate:6.2f}x {a.own_ms:8.3f} {b.own_ms:8.3f} "
            f"{a.postgres_ms:8.3f} {b.postgres_ms:8.3f} {a.p99_ms:8.1f} {b.p99_ms:8.1f}"
            + (f"   FAULTS ours {a.faults} bare {b.faults}" if a.faults or b.faults else ""),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seconds, one round")
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--only", default="POST,MINIMAL,BASIC,FULL")
    parser.add_argument("--sides", default="1,auth,2")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds = 2, 1
    if shutil.which("wrk") is None:
        sys.exit("This benchmark needs the load generator wrk: apt-get install wrk.")
    kinds = given.only.split(",")
    with tempfile.TemporaryDirectory(prefix="tesgate-api-bench-") as made:
        directory = Path(made)
        directory.chmod(0o711)
        embedded = EmbeddedPostgres(directory / "server")
        (directory / "server").mkdir(mode=0o711)
        asyncio.run(embedded.start())
        try:
            run(given, kinds, embedded.dsn, directory)
        finally:
            asyncio.run(embedded.stop())


def run(given: argparse.Namespace, kinds: Sequence[str], dsn: str, directory: Path) -> None:
    token = make_token("user")
    ids = asyncio.run(seed(dsn, [OWNER, "alice2"], 200))
    bare_dsn = dsn.replace("/tesgate?", "/bare?")
    assert bare_dsn != dsn, dsn

    async def prepare() -> tuple[int, list[str]]:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE DATABASE bare")
        text = await connection.fetchval("SELECT pg_read_file('postmaster.pid')")
        await connection.close()
        async with Database(dsn, min_size=1, max_size=1) as database:
            await TokenStore(database=database).create(
                name="bench", kind="user", hash=hash_token(token), subject="alice2"
            )
        from benchmarks.bare_app import SCHEMA

        connection = await asyncpg.connect(bare_dsn)
        await connection.execute(SCHEMA)
        plain = [f"{number:026d}" for number in range(200)]
        await connection.executemany(
            "INSERT INTO task (id, state, name, document) VALUES ($1, 'COMPLETE', 'align', $2::jsonb)",
            [(one, json.dumps(TASK)) for one in plain],
        )
        await connection.close()
        return int(text.split()[0]), plain

    pid, plain_ids = asyncio.run(prepare())
    postgres = psutil.Process(pid)
    print(f"{'':8} {'':14} {'a second':>17} {'':>7} {'own CPU ms':>17} {'postgres CPU ms':>17} {'p99 ms':>17}")
    columns = " ".join(f"{word:>8}" for word in ("tesgate", "bare"))
    print(f"{'route':8} {'what':14} {columns} {'ratio':>7} {columns} {columns} {columns}")
    sides = given.sides.split(",")
    with bare(1, bare_dsn) as plain:
        plain.ids = plain_ids
        if "1" in sides:
            with gateways(1, dsn, directory, auth=False) as ours:
                ours.ids = ids[OWNER]
                compare("one, open", ours, plain, kinds, given, postgres, directory)
        if "auth" in sides:
            with gateways(1, dsn, directory, auth=True) as ours:
                ours.ids, ours.token = ids["alice2"], token
                compare("one, tokens", ours, plain, kinds, given, postgres, directory)
    if "2" in sides:
        with bare(2, bare_dsn) as plain, gateways(2, dsn, directory, auth=False) as ours:
            plain.ids, ours.ids = plain_ids, ids[OWNER]
            compare("two, open", ours, plain, kinds, given, postgres, directory)


if __name__ == "__main__":
    main()
