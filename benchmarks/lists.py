"""Lists at two sizes of the table: each filter, as owner and as admin, first page and a late one.

Usage: python benchmarks/lists.py [--small 10000] [--large 1000000] [--days 360] [--span 30] [--views] [--quick]

Through `TaskStore.list_tasks`, as routes do it; milliseconds are medians at the client, `buffers` are 8 KiB pages that
the large table's statement touched, which no other process on the machine changes. The late page is the 1,000th, or the
last full one where there are not so many tasks.
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

from benchmarks.many_tasks import Mix, fill, server

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
    "state, common": {"state": "COMPLETE"},
    "state, 2 %": {"state": "EXECUTOR_ERROR"},
    "state, rare": {"state": "SYSTEM_ERROR"},
    "state, none": {"state": "PAUSED"},
    "tag, common": {"tags": [COMMON]},
    "tag, 1000": {"tags": [("run", "run-5")]},
    "tag, rare": {"tags": [RARE]},
    "tag, key alone": {"tags": [("project", None)]},
    "tag, none": {"tags": [("project", "none")]},
    "prefix, common": {"name_prefix": "nf-"},
    "prefix, rare": {"name_prefix": "odd-"},
    "prefix, old": {"name_prefix": "old-"},
    "prefix, none": {"name_prefix": "absent"},
    "common state, rare tag": {"state": "COMPLETE", "tags": [RARE]},
    "rare state, common tag": {"state": "SYSTEM_ERROR", "tags": [COMMON]},
    "common tag, rare prefix": {"tags": [COMMON], "name_prefix": "odd-"},
    "all three, common": {"state": "COMPLETE", "tags": [COMMON], "name_prefix": "nf-"},
}


@dataclass
class Table:
    tasks: int
    store: TaskStore
    database: Database

    async def late(self, caller: Caller) -> str | None:
        """Id of the last task before the 1,000th page of all that `caller` sees (or before the last full one)."""
        mine = "" if caller.admin else f"WHERE owner = '{caller.subject}'"
        seen = await self.database.fetchval(f"SELECT count(*) FROM task {mine}")
        offset = max(0, min(999 * PAGE, seen - 2 * PAGE))
        found: str | None = await self.database.fetchval(
            f"SELECT id FROM task {mine} ORDER BY id DESC OFFSET {offset} LIMIT 1"
        )
        return found

    async def milliseconds(self, caller: Caller, query: ListQuery, times: int) -> float:
        """Of one page, median."""
        spent = []
        for number in range(times + 3):
            began = time.perf_counter()
            await self.store.list_tasks(caller, query)
            if number >= 3:
                spent.append((time.perf_counter() - began) * 1000)
        return statistics.median(spent)


async def main(arguments: argparse.Namespace) -> None:
    times = 7 if arguments.quick else 21
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(server())
        tables = [await open_table(stack, dsn, tasks, arguments) for tasks in (arguments.small, arguments.large)]
        print(f"{'list of 100, MINIMAL':<26}{'as':<7}{'page':<6}{tables[0].tasks:>10}{tables[1].tasks:>10}   ratio")
        worst, slowest = 0.0, 0.0
        for name, filters in QUERIES.items():
            for caller in (OWNER, ADMIN):
                for page in ("first", "late"):
                    query = ListQuery(limit=PAGE, view=arguments.view, **filters)  # type: ignore[arg-type]
                    spent = []
                    for table in tables:
                        after = await table.late(caller) if page == "late" else None
                        spent.append(await table.milliseconds(caller, replace(query, after=after), times))
                    ratio = spent[1] / spent[0]
                    worst, slowest = max(worst, ratio), max(slowest, *spent)
                    role = "admin" if caller.admin else "owner"
                    mark = "  <--" if ratio > 1.5 or max(spent) > 10 else ""
                    print(f"{name:<26}{role:<7}{page:<6}{spent[0]:>7.2f} ms{spent[1]:>7.2f} ms{ratio:>6.2f}x{mark}")
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
    return Table(tasks, TaskStore(database=database, wakes=Wakes()), database)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=360.0)
    parser.add_argument("--span", type=float, default=30.0, help="days of a partition; 0: one for all")
    parser.add_argument("--view", choices=("MINIMAL", "BASIC"), default="MINIMAL")
    parser.add_argument("--quick", action="store_true")
    asyncio.run(main(parser.parse_args()))
