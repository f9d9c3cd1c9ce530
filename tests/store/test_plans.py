"""What a statement touches is bounded by what it answers, on a table with a history: counts from EXPLAIN, no times."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.many_tasks import Mix, fill

from tesgate.model.caller import Caller
from tesgate.model.records import ListQuery
from tesgate.store.database import Connection, Database
from tesgate.store.queries import load_queries
from tesgate.store.tasks import list_statement
from tests.beds.postgres import Server
from tests.store.rows import Rows

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = 12_000
PAGE = 50
PARTITIONED = ("task", "attempt", "log", "task_event")


@dataclass(frozen=True)
class Touched:
    """What a statement read of the tables that grow."""

    rows: int
    pages: int
    whole: tuple[str, ...]
    """Tables that were read as a whole although they have rows."""


@dataclass
class Filled:
    database: Database
    rows: Rows
    ended: list[str]
    waiting: list[str]
    started: list[str]

    async def touched(self, name: str, statement: str, *arguments: Any) -> Touched:
        """By a statement of the store, planned as the store's connections do it; nothing of it is kept."""
        sql = load_queries(name)[statement]
        async with self.database.transaction() as connection:
            await connection.execute(f"PREPARE looked_at AS {sql}")
            try:
                given = f"({', '.join(map(_literal, arguments))})" if arguments else ""
                return await _explained(connection, f"EXECUTE looked_at{given}")
            finally:
                await connection.execute("DEALLOCATE looked_at; ROLLBACK; BEGIN")

    async def listed(self, caller: Caller, query: ListQuery) -> Touched:
        """By a list, which is planned for its values."""
        spans = await self.rows.tasks._spans() if query.tags or query.name_prefix else ()
        sql, arguments = list_statement(caller, query, spans)
        async with self.database.transaction() as connection:
            return await _explained(connection, sql, *arguments)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def filled(postgres_server: Server) -> AsyncGenerator[Filled]:
    async with postgres_server.database(f"plans_{os.getpid()}", template="template1") as url:
        await fill(url, Mix(TASKS, days=180, span=30, old=100, waiting=2000, slim=True))
        async with Database(url, min_size=1, max_size=1, statement_timeout=60) as database:
            rows = await Rows.made(database)
            await rows.agent(cpus=1000)
            started = [given.task_id for given in await rows.dispatch()][:20]
            await rows.attempts.acknowledge("agent1", [(task_id, 1) for task_id in started])
            ids = await database.fetch("SELECT id FROM task WHERE phase = 'ended' ORDER BY md5(id) LIMIT 50")
            waiting = await database.fetch("SELECT id FROM task WHERE phase = 'waiting' ORDER BY id LIMIT 50")
            await database.execute("ANALYZE")
            yield Filled(database, rows, [row["id"] for row in ids], [row["id"] for row in waiting], started)


def _literal(value: Any) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).upper()
        case int() | float():
            return str(value)
        case timedelta():
            return f"interval '{value.total_seconds()} s'"
        case list():
            return "'{" + ",".join(map(str, value)) + "}'"
        case _:
            return "'" + str(value).replace("'", "''") + "'"


async def _explained(connection: Connection, sql: str, *arguments: Any) -> Touched:
    found = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", *arguments)
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    rows, whole = 0, []
    for node in _nodes(plan):
        table = str(node.get("Relation Name", ""))
        loops = node["Actual Loops"]
        if "Index Name" in node or table:
            removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            rows += round((node["Actual Rows"] + removed) * loops)
        if node["Node Type"] == "Seq Scan" and table.startswith(PARTITIONED) and loops:
            whole.append(table)
    return Touched(rows, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], tuple(whole))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


OWNER, ADMIN = Caller("owner3"), Caller("root", admin=True)
MEMBER = Caller("owner3", groups=("some",))
COMMON, RARE = ("workflow", "rnaseq"), ("project", "rare")

LISTS: Sequence[dict[str, Any]] = (
    {},
    {"states": ["COMPLETE"]},
    {"states": ["EXECUTOR_ERROR"]},
    {"states": ["SYSTEM_ERROR"]},
    {"states": ["PAUSED"]},
    {"states": ["RUNNING", "CANCELING"]},
    {"states": ["QUEUED", "INITIALIZING"]},
    {"states": ["SYSTEM_ERROR", "COMPLETE"], "tags": [RARE]},
    {"tags": [COMMON]},
    {"tags": [("run", "run-5")]},
    {"tags": [RARE]},
    {"tags": [("project", None)]},
    {"tags": [("project", "none")]},
    {"name_prefix": "nf-"},
    {"name_prefix": "odd-"},
    {"name_prefix": "old-"},
    {"name_prefix": "absent"},
    {"states": ["COMPLETE"], "tags": [RARE]},
    {"states": ["SYSTEM_ERROR"], "tags": [COMMON]},
    {"tags": [COMMON], "name_prefix": "odd-"},
    {"states": ["COMPLETE"], "tags": [COMMON], "name_prefix": "nf-"},
)


@pytest.mark.parametrize("filters", LISTS, ids=lambda filters: " ".join(map(str, filters.values())) or "all")
@pytest.mark.parametrize("caller", [OWNER, ADMIN], ids=["owner", "admin"])
async def test_a_page_touches_some_pages_worth_of_rows(filled: Filled, caller: Caller, filters: dict[str, Any]) -> None:
    for after in (None, await middle(filled, caller)):
        touched = await filled.listed(caller, ListQuery(limit=PAGE, after=after, **filters))
        assert not touched.whole
        # Of 12,000: what the page has many times over, and at the worst a walk through the partition (2,000) that it is
        # in; never what the table has.
        assert touched.rows <= 50 * PAGE, touched
        assert touched.pages <= 40 * PAGE, touched


@pytest.mark.parametrize("filters", LISTS, ids=lambda filters: " ".join(map(str, filters.values())) or "all")
async def test_pages_are_what_a_plain_query_finds(filled: Filled, filters: dict[str, Any]) -> None:
    for caller in (OWNER, ADMIN):
        conditions = ["true" if caller.admin else f"owner = '{caller.subject}'"]
        if states := filters.get("states"):
            conditions.append("state IN ('" + "', '".join(states) + "')")
        if prefix := filters.get("name_prefix"):
            conditions.append(f"starts_with(name, '{prefix}')")
        for key, value in filters.get("tags", ()):
            conditions.append(f"tags ? '{key}'" if value is None else f"tags ->> '{key}' = '{value}'")
        plain = f"SELECT id FROM task WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {4 * PAGE}"
        wanted = [row["id"] for row in await filled.database.fetch(plain)]
        found: list[str] = []
        for _ in range(4):
            query = ListQuery(limit=PAGE, after=found[-1] if found else None, **filters)
            found += [record.id for record in await filled.rows.tasks.list_tasks(caller, query)]
            if len(found) % PAGE or not found:
                break
        assert found == wanted


async def middle(filled: Filled, caller: Caller) -> str:
    mine = "true" if caller.admin else f"owner = '{caller.subject}'"
    found: str = await filled.database.fetchval(
        f"SELECT id FROM task WHERE {mine} ORDER BY id DESC OFFSET (SELECT count(*) / 2 FROM task WHERE {mine}) LIMIT 1"
    )
    return found


async def test_the_hot_statements_touch_what_they_name(filled: Filled) -> None:
    ended, waiting, started = filled.ended, filled.waiting, filled.started
    one, text = started[0], "{}"
    many = len(started)
    words = (started, [1] * many, ["agent1"] * many, [7] * many, [text] * many, ["[]"] * many)
    said = (*words, [True] * many, timedelta(seconds=30))
    ones = [1] * len(started)
    holder = (filled.rows.holder.replica_id, filled.rows.holder.epoch)
    assign = (waiting, [1] * len(waiting), ["agent1"] * len(waiting), *holder, "pool", True, "tg-")
    # statement, arguments, rows that it is about
    statements: Sequence[tuple[str, str, tuple[Any, ...], int]] = (
        ("tasks", "get_states", (ended,), 50),
        ("task_reads", "get_tasks", (ended, True), 50),
        ("tasks", "keeping_logs", (ended, timedelta(days=1)), 50),
        ("tasks", "find_idempotent", (ended[0], "owner3", "none"), 1),
        ("tasks", "list_events", (ended[0],), 2),
        ("tasks", "cancel_task", (waiting[0], True, "root", []), 1),
        ("tasks", "waiting_tasks", (100, "owner3", waiting, [], []), 2000),
        ("tasks", "waiting_tasks", (100, "owner3", waiting, ["owner3"], [waiting[-1]]), 2000),
        ("tasks", "note_reasons", (waiting, ["why"] * len(waiting)), 50),
        ("tasks", "end_pending", (), 1),
        ("tasks", "oldest_waiting", (), 20),
        ("tasks", "task_counts", (), 2100),
        ("tasks", "count_leases", (), 100),
        ("tasks", "refuse_waiting", (waiting, [1] * len(waiting), ["why"] * len(waiting)), 50),
        ("tasks", "expired_tasks", (timedelta(days=200), 50, "~", "~"), 50),
        ("tasks", "delete_tasks", (ended,), 50),
        ("attempts", "assign", assign, 50),
        ("attempts", "agent_orders", ("agent1", started, ones), 100),
        ("attempts", "acknowledge", ("agent1", started, ones), 20),
        ("attempts", "report", said, 20),
        ("attempts", "publish", said, 20),
        ("attempts", "finish", (*words, ["COMPLETE"] * many, ["[]"] * many), 20),
        (
            "attempts",
            "close_attempt",
            (one, 1, "failed", "why", 3, timedelta(0), "agent1", None, None, None, text, "[]", True, 9, None, None),
            1,
        ),
        ("attempts", "said_before", (one, 1, "agent1", 7), 1),
        ("attempts", "mark_released", (ended[0], 1), 1),
        ("attempts", "held_attempts", (*holder, None), 100),
        ("attempts", "held_attempts", (*holder, one), 20),
        ("attempts", "count_crash", (one, 1, *holder), 1),
        ("attempts", "reset_crashes", (started, *holder), 20),
        ("attempts", "attempt_of", (one, 1), 1),
        ("uploads", "access", (one, 1, "agent1", True), 1),
        ("uploads", "get_uploads", (one, 1, ["u"]), 1),
        ("uploads", "stale_uploads", ("", 0, "", 100), 1),
        ("uploads", "old_intentions", (timedelta(days=1), 0, 100), 1),
        ("uploads", "known_uploads", ("e", "b", "k", ["u"]), 1),
        ("uploads", "older_uploads", (one, 2, ["k"]), 1),
        ("agents", "attempts_of_closed_agents", (), 1),
        ("agents", "hear_agent", (["agent1"], [1], [1], [False], ["default"]), 1),
        ("replicas", "leave", holder, 100),
        ("replicas", "adopt", (*holder, timedelta(seconds=15)), 20),
        ("replicas", "forget_replicas", (), 1),
    )
    wrong = []
    for name, statement, arguments, about in statements:
        touched = await filled.touched(name, statement, *arguments)
        # Each row some times over by the parts of a statement, each with its indexes; and a look into each partition.
        if touched.whole or touched.rows > 12 * about + 30 or touched.pages > 60 * about + 400:
            wrong.append((statement, about, touched))
    assert not wrong
