"""Lists at two sizes of the table: each filter, as owner and as admin, first page and a late one.

Usage: python benchmarks/lists.py [--small 10000] [--large 1000000] [--days 360] [--span 30] [--view MINIMAL] [--quick]

Through `TaskStore.list_tasks`, as routes do it. For each size: milliseconds at the client (the fastest of some), and
the milliseconds of CPU that the database spent on it (median), planning included. The late page is the 1,000th, or
the last full one where there are not so many tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.many_tasks import Mix, ServerClock, fill, server

from tesgate.model.caller import Caller
from tesgate.model.records import ListQuery
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes

PAGE = 100
OWNER = Caller("owner3")
ADMIN = Caller("root", admin=True)
COMMON, RARE = ("workflow", "rnaseq"), ("project", "rare")
QUERIES = {
    "all": {},
    "state, common": {"states": ["COMPLETE"]},
    "state, 2 %": {"states": ["EXECUTOR_ERROR"]},
    "state, rare": {"states": ["SYSTEM_ERROR"]},
    "state, none": {"states": ["PAUSED"]},
    "tag, common": {"tags": [COMMON]},
    "tag, 200": {"tags": [("run", "run-5")]},
    "tag, rare": {"tags": [RARE]},
    "tag, key alone": {"tags": [("project", None)]},
    "tag, none": {"tags": [("project", "none")]},
    "prefix, common": {"name_prefix": "nf-"},
    "prefix, rare": {"name_prefix": "odd-"},
    "prefix, old": {"name_prefix": "old-"},
    "prefix, none": {"name_prefix": "absent"},
    "common state, rare tag": {"states": ["COMPLETE"], "tags": [RARE]},
    "rare state, common tag": {"states": ["SYSTEM_ERROR"], "tags": [COMMON]},
    "common tag, rare prefix": {"tags": [COMMON], "name_prefix": "odd-"},
    "all three, common": {"states": ["COMPLETE"], "tags": [COMMON], "name_prefix": "nf-"},
}


@dataclass
class Table:
    tasks: int
    store: TaskStore
    database: Database
    clock: ServerClock

    async def late(self, caller: Caller) -> str | None:
        """Id of the last task before the 1,000th page of all that `caller` sees (or before the last full one)."""
        mine = "" if caller.admin else f"WHERE owner = '{caller.subject}'"
        seen = await self.database.fetchval(f"SELECT count(*) FROM task {mine}")
        offset = max(0, min(999 * PAGE, seen - 2 * PAGE))
        found: str | None = await self.database.fetchval(
            f"SELECT id FROM task {mine} ORDER BY id DESC OFFSET {offset} LIMIT 1"
        )
        return found

    async def milliseconds(self, caller: Caller, query: ListQuery, times: int, view: str) -> tuple[float, float]:
        """Of one page: at the client, and of the database's CPU."""
        spent, cpu = [], []
        for number in range(times + 2):
            began, began_there = time.perf_counter(), self.clock.now()
            page = await self.store.list_tasks(caller, query)
            if view != "MINIMAL":
                await self.store.get_tasks(caller, [task.id for task in page], full=view == "FULL")
            if number >= 2:
                spent.append((time.perf_counter() - began) * 1000)
                cpu.append(self.clock.now() - began_there)
        return min(spent), statistics.median(cpu)


async def main(arguments: argparse.Namespace) -> None:
    times = 7 if arguments.quick else 21
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(server())
        tables = [await open_table(stack, dsn, tasks, arguments) for tasks in (arguments.small, arguments.large)]
        sizes = "".join(f"{table.tasks:>10}{'CPU':>8}" for table in tables)
        print(f"{'list of 100, ' + arguments.view:<26}{'as':<7}{'page':<6}{sizes}{'ratio':>8}{'CPU':>7}")
        worst, slowest = 0.0, 0.0
        for name, filters in QUERIES.items():
            for caller in (OWNER, ADMIN):
                for page in ("first", "late"):
                    query = ListQuery(limit=PAGE, **filters)  # type: ignore[arg-type]
                    found = []
                    for table in tables:
                        after = await table.late(caller) if page == "late" else None
                        asked = replace(query, after=after)
                        found.append(await table.milliseconds(caller, asked, times, arguments.view))
                    ratio = found[1][0] / found[0][0]
                    worst, slowest = max(worst, ratio), max(slowest, found[0][0], found[1][0])
                    role = "admin" if caller.admin else "owner"
                    mark = "  <--" if ratio > 1.5 or max(found)[0] > 10 else ""
                    columns = "".join(f"{spent:>10.2f}{cpu:>8.2f}" for spent, cpu in found)
                    ratios = f"{ratio:>7.2f}x{found[1][1] / found[0][1]:>6.2f}x"
                    print(f"{name:<26}{role:<7}{page:<6}{columns}{ratios}{mark}")
        print(f"worst ratio {worst:.2f}x, slowest {slowest:.1f} ms")


async def open_table(stack: AsyncExitStack, dsn: str, tasks: int, arguments: argparse.Namespace) -> Table:
    name = f"lists{tasks}"
    async with Database(dsn, min_size=1, max_size=1) as database:
        await database.execute(f"CREATE DATABASE {name}")
    url = urlsplit(dsn)._replace(path=f"/{name}").geturl()
    attempts = arguments.view != "MINIMAL"
    began = time.monotonic()
    await fill(url, Mix(tasks, days=arguments.days, span=arguments.span or None, attempts=attempts))
    print(f"{tasks} tasks made in {time.monotonic() - began:.0f} s", file=sys.stderr)
    database = await stack.enter_async_context(Database(url, min_size=1, max_size=1, statement_timeout=300))
    clock = ServerClock(await database.fetchval("SELECT pg_backend_pid()"))
    return Table(tasks, TaskStore(database=database, wakes=Wakes()), database, clock)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=360.0)
    parser.add_argument("--span", type=float, default=30.0, help="days of a partition; 0: one for all")
    parser.add_argument("--view", choices=("MINIMAL", "BASIC"), default="MINIMAL")
    parser.add_argument("--quick", action="store_true")
    asyncio.run(main(parser.parse_args()))
