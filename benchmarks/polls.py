"""500 clients that poll one gateway: quietly, through outages of PostgreSQL, and beside a client that lists everything.

Usage: python benchmarks/polls.py [--quick] [--clients 500] [--away 8] [--tasks 100000]

`tesgate serve` as users run it, with its embedded PostgreSQL (fsync on) and no agent. *paused*: every process of
PostgreSQL gets SIGSTOP for so many seconds, so that packets vanish into it; *killed*: the postmaster is killed and the
gateway starts it again. Each client keeps one connection and asks for MINIMAL (every 16th for FULL, every 16th posts)
four times a second. What counts: no answer but 200, no connection lost. `fair` is the answers of the client that had
fewest beside those of the one that had most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.api import PREFIX, TASK, end  # noqa: E402

from tesgate.store.database import Database  # noqa: E402
from tesgate.store.embedded import EmbeddedPostgres  # noqa: E402
from tests.api.polling import Poller, Seen  # noqa: E402

Trouble = Callable[[], Awaitable[None]]


class Gateway:
    def __init__(self, url: str, process: psutil.Process, data: Path, embedded: EmbeddedPostgres) -> None:
        self.url, self.process, self.data, self.embedded = url, process, data, embedded

    async def postmaster(self) -> psutil.Process:
        connection = await asyncpg.connect(self.embedded.dsn)
        text = await connection.fetchval("SELECT pg_read_file('postmaster.pid')")
        await connection.close()
        return psutil.Process(int(text.split()[0]))

    def lag(self) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        return float(re.findall(r"^tesgate_loop_lag_seconds (\S+)", text, re.MULTILINE)[0])

    def held(self) -> tuple[float, int]:
        return self.process.memory_info().rss / 1e6, self.process.num_fds()


async def scene(name: str, gateway: Gateway, ids: list[str], given: argparse.Namespace, trouble: Trouble) -> None:
    requests = [("GET", f"{PREFIX}/{one}", b"") for one in ids]
    requests[5::16] = [("GET", f"{PREFIX}/{ids[0]}?view=FULL", b"")] * len(requests[5::16])
    requests[9::16] = [("POST", PREFIX, json.dumps(TASK).encode())] * len(requests[9::16])
    seen, ended = Seen(), asyncio.Event()
    lags: list[float] = []

    async def look() -> None:
        while not ended.is_set():
            lags.append(await asyncio.to_thread(gateway.lag))
            await asyncio.sleep(0.3)

    async with asyncio.TaskGroup() as group:
        for number in range(given.clients):
            group.create_task(Poller(gateway.url, number, seen).run(requests, ended, 0.25))
        group.create_task(look())
        await asyncio.sleep(given.quiet)
        began = time.monotonic()
        await trouble()
        while min(seen.answered) < 2 and time.monotonic() < began + 60:
            await asyncio.sleep(0.1)
        await asyncio.sleep(given.quiet)
        ended.set()
    memory, files = gateway.held()
    statuses = " ".join(f"{status}:{count}" for status, count in sorted(seen.statuses.items()))
    print(
        f"{name:22} {statuses:16} {len(seen.faults):6} {seen.longest:9.2f} {max(lags):7.2f} {memory:8.0f} {files:6} "
        f"{min(seen.answered):6} / {max(seen.answered)}",
        flush=True,
    )


async def measure(gateway: Gateway, given: argparse.Namespace) -> None:
    async with Database(gateway.embedded.dsn, min_size=0, max_size=2, statement_timeout=600) as database:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            ids = [(await client.post(PREFIX, json=TASK)).json()["id"] for _ in range(64)]

        async def nothing() -> None:
            await asyncio.sleep(given.away / 2)

        async def paused() -> None:
            server = await gateway.postmaster()
            stopped = [server, *server.children(recursive=True)]
            for process in stopped:
                process.suspend()
            await asyncio.sleep(given.away)
            for process in reversed(stopped):
                process.resume()

        async def killed() -> None:
            (await gateway.postmaster()).kill()
            await asyncio.sleep(1)

        async def listing() -> None:
            pages, size, token, found = 0, 0, "", 0
            began = time.monotonic()
            async with httpx.AsyncClient(base_url=gateway.url, timeout=120) as client:
                while True:
                    answer = await client.get(f"{PREFIX}?view=FULL&page_size=2000{token}")
                    answer.raise_for_status()
                    body = answer.json()
                    pages, size, found = pages + 1, size + len(answer.content), found + len(body["tasks"])
                    if "next_page_token" not in body:
                        break
                    token = f"&page_token={body['next_page_token']}"
            seconds = time.monotonic() - began
            print(f"  listed {found} tasks, {pages} pages, {size / 1e6:.0f} MB in {seconds:.0f} s", flush=True)

        print(f"{given.clients} clients, 4 requests a second each")
        print(
            f"{'scene':22} {'answers':16} {'faults':>6} {'longest s':>9} {'lag s':>7} {'RSS MB':>8} {'files':>6}  fair"
        )
        await scene("quiet", gateway, ids, given, nothing)
        await scene(f"paused for {given.away:g} s", gateway, ids, given, paused)
        await scene("killed", gateway, ids, given, killed)
        # Rows like those that came in by POST: what a list reads, and nobody has to run.
        columns = ", ".join(
            row["column_name"]
            for row in await database.fetch(
                "SELECT column_name FROM information_schema.columns WHERE table_name = 'task'"
                " AND column_name NOT IN ('id', 'state', 'phase', 'ended_at', 'idempotency_key', 'body_hash', 'group')"
            )
        )
        await database.execute(
            f"INSERT INTO task (id, state, phase, ended_at, {columns})"
            " SELECT substr(id, 1, 10) || lpad(n::text, 16, '0'), 'CANCELED', 'ended', now(), "
            f"{columns} FROM (SELECT * FROM task WHERE id = $1) t, generate_series(1, $2::int) n",
            ids[0],
            given.tasks,
        )
        await scene("a client lists all", gateway, ids, given, listing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer clients and tasks")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--away", type=float, default=8.0)
    parser.add_argument("--quiet", type=float, default=4.0)
    parser.add_argument("--tasks", type=int, default=100_000)
    given = parser.parse_args()
    if given.quick:
        given.clients, given.away, given.quiet, given.tasks = 100, 3.0, 1.0, 5_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192) if hard > 0 else 8192, hard))
    with tempfile.TemporaryDirectory(prefix="tesgate-polls-") as made:
        os.chmod(made, 0o711)
        data = Path(made) / "data"
        process = subprocess.Popen(
            [sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--no-agent", "--data-dir", str(data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert process.stdout is not None
            found = re.search(r"listens on (\S+)", process.stdout.readline())
            assert found
            embedded = EmbeddedPostgres(data)
            asyncio.run(embedded.start())
            try:
                asyncio.run(measure(Gateway(found[1], psutil.Process(process.pid), data, embedded), given))
            finally:
                asyncio.run(embedded.stop())
        finally:
            end(process)


if __name__ == "__main__":
    main()
