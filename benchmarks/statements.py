"""What the hot statements cost the database, through the store's own methods, on a table with a history.

Usage: python benchmarks/statements.py [--tasks 100000] [--days 360] [--span 30] [--quick]

The same tasks in one partition and in partitions of `--span` days, in turns. Prints the CPU milliseconds of the
database's process a call (mean), which other processes on the machine hardly change; commits wait for no disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.many_tasks import Mix, ServerClock, fill, server

from tesgate.model.placement import Need, Pick
from tesgate.store.agents import NewAgent
from tesgate.store.database import Database
from tests.store.rows import ALICE, LEASE, Rows

BATCH = 50


class Times:
    """CPU of one connection's server process, by statement."""

    def __init__(self, pid: int) -> None:
        self.spent: dict[tuple[str, int], list[float]] = {}
        self._clock = ServerClock(pid)

    async def of(self, name: str, rows: int, call: Awaitable[Any]) -> Any:
        began = self._clock.now()
        result = await call
        self.spent.setdefault((name, rows), []).append(self._clock.now() - began)
        return result


async def round_of_tasks(rows: Rows, times: Times) -> None:
    """One batch of tasks from submit to finish."""
    new = [rows.new(document=DOCUMENT, tags={"workflow": "rnaseq", "run": "run-1"}) for _ in range(BATCH)]
    ids = [str(one.id) for one in new]
    await times.of("insert_tasks", BATCH, rows.tasks._insert_batch(new))
    await times.of("get_states", BATCH, rows.tasks._state_batch(ids))
    await times.of("waiting_tasks", 200, rows.tasks.waiting(200))
    given = await times.of(
        "assign",
        BATCH,
        rows.attempts.assign(
            rows.holder, [Pick(task_id, 1, "agent1") for task_id in ids], backend="pool", keeps=False, prefix="tg-"
        ),
    )
    assert len(given) == BATCH
    await times.of("agent_orders", BATCH, rows.attempts.orders("agent1", []))
    await times.of("acknowledge", BATCH, rows.attempts.acknowledge("agent1", [(task_id, 1) for task_id in ids]))
    for task_id in ids:
        said = await times.of("report", 1, rows.attempts.report(task_id, 1, rows.words(started=True), LEASE))
        assert said is not None
        await times.of("get_task", 1, rows.tasks.get_task(ALICE, task_id, full=True))
        await times.of("publish", 1, rows.attempts.publish(task_id, 1, rows.words(started=True), LEASE))
        done = await times.of("finish", 1, rows.attempts.finish(task_id, 1, rows.words(started=True), "COMPLETE", []))
        assert done.done


DOCUMENT = {
    "name": "nf-ALIGN",
    "executors": [{"image": "busybox", "command": ["bash", "-ue", "/work/.command.run"], "workdir": "/work"}],
    "inputs": [
        {"url": f"file:///data/work/reads_{n}.fastq.gz", "path": f"/work/reads_{n}", "type": "FILE"} for n in range(8)
    ],
}


async def main(arguments: argparse.Namespace) -> None:
    rounds, warm = (6 if arguments.quick else 30), 3
    spans = (None, arguments.span)
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(server())
        made: list[tuple[Rows, Times]] = []
        for number, span in enumerate(spans):
            made.append(await open_rows(stack, dsn, f"bench{number}", arguments, span))
        for number in range(warm + rounds):
            for rows, times in made:
                if number == warm:
                    times.spent.clear()
                await round_of_tasks(rows, times)
        counts = [
            await rows.database.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'task'::regclass")
            for rows, _ in made
        ]
    print(f"{arguments.tasks} tasks over {arguments.days:g} days, {rounds} rounds; CPU ms of the database a call")
    print(f"{'statement':<16}{'rows':>6}" + "".join(f"{f'{count} part.':>12}" for count in counts) + f"{'ratio':>8}")
    for name, rows_of in made[0][1].spent:
        spent = [statistics.mean(times.spent[name, rows_of]) for _, times in made]
        print(f"{name:<16}{rows_of:>6}{spent[0]:>12.3f}{spent[1]:>12.3f}{spent[1] / spent[0]:>7.2f}x")
    totals = [sum(sum(spent) for spent in times.spent.values()) / rounds / BATCH for _, times in made]
    print(f"{'a task in all':<22}{totals[0]:>12.3f}{totals[1]:>12.3f}{totals[1] / totals[0]:>7.2f}x")


async def open_rows(
    stack: AsyncExitStack, dsn: str, name: str, arguments: argparse.Namespace, span: float | None
) -> tuple[Rows, Times]:
    """A database of that name with its tasks, and one connection to it."""
    async with Database(dsn, min_size=1, max_size=1) as database:
        await database.execute(f"CREATE DATABASE {name}")
    url = urlsplit(dsn)._replace(path=f"/{name}").geturl()
    await fill(url, Mix(arguments.tasks, days=arguments.days, waiting=1000, span=span))
    database = await stack.enter_async_context(Database(url, min_size=1, max_size=1))
    rows = await Rows.made(database)
    await rows.agents.register(
        NewAgent("agent1", "default", "agent1", "0", Need(10**9, 10**15, 10**15), ("docker",), (), {})
    )
    return rows, Times(await database.fetchval("SELECT pg_backend_pid()"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=360.0)
    parser.add_argument("--span", type=float, default=30.0, help="days of a partition")
    parser.add_argument("--quick", action="store_true")
    asyncio.run(main(parser.parse_args()))
