"""A database with many tasks, for benchmarks and plan tests: rows as intake, reports and ends would have made them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import asyncpg

from tesgate.store.database import Database
from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.migrations import migrate
from tesgate.store.partitions import PartitionStore

__all__ = ["Mix", "ServerClock", "fill", "server"]

SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "autovacuum": "off", "max_connections": "50"}
CHUNK = 50_000

IDS = """
CREATE OR REPLACE FUNCTION pg_temp.id_at(ms bigint, seed text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(substr('0123456789abcdefghjkmnpqrstvwxyz', ((ms >> shift) & 31)::int + 1, 1), ''
                      ORDER BY shift DESC)
           || substr(md5(seed), 1, 16)
    FROM generate_series(0, 45, 5) AS shift
$$
"""

TASKS = """
INSERT INTO task (id, owner, "group", name, state, phase, version, created_at, ended_at, document, tags,
                  need_cpu_milli, need_ram_bytes, need_disk_bytes, attempt)
SELECT pg_temp.id_at(ms, i::text), owner, NULL, name, state,
       CASE WHEN ended THEN 'ended' WHEN state = 'QUEUED' THEN 'waiting' ELSE 'started' END,
       CASE WHEN ended THEN 6 ELSE 1 END, to_timestamp(ms / 1000.0),
       CASE WHEN ended THEN to_timestamp(ms / 1000.0 + 600) END,
       json_build_object(
           'name', name, 'tags', tags,
           'resources', json_build_object('cpu_cores', 1, 'ram_gb', 2.0),
           'inputs', (SELECT json_agg(json_build_object(
                          'name', 'input-' || f,
                          'url', 'file:///data/runs/work/' || md5(i || '-' || f) || '/reads_' || f || '.fastq.gz',
                          'path', '/work/reads_' || f || '.fastq.gz', 'type', 'FILE'))
                      FROM generate_series(1, 3) AS f),
           'outputs', json_build_array(json_build_object('url', 'file:///data/runs/work/' || md5(i::text),
                                                         'path', '/work/out', 'type', 'DIRECTORY')),
           'executors', json_build_array(json_build_object(
               'image', 'quay.example.org/biocontainers/bwa:0.7.17--h5bf99c6_8',
               'command', json_build_array('/bin/bash', '-ue', '/work/.command.run'), 'workdir', '/work',
               'stdout', '/work/.command.out', 'stderr', '/work/.command.err'))),
       tags, 1000, 2000000000, 0, CASE WHEN state = 'QUEUED' THEN 0 ELSE 1 END
FROM (
    SELECT i, $3::bigint + (($4::bigint - $3::bigint) * i::float8 / $5::bigint)::bigint AS ms,
           'owner' || i % $7::bigint AS owner,
           CASE WHEN i <= $6::bigint THEN 'old-' || i
                WHEN i % 20000 = 7 THEN 'odd-' || i
                ELSE 'nf-ALIGN_(sample' || i || ')' END AS name,
           CASE WHEN i > $5::bigint - $8::bigint THEN 'QUEUED'
                WHEN i % 20000 = 3 THEN 'SYSTEM_ERROR' WHEN i % 50 = 1 THEN 'EXECUTOR_ERROR'
                ELSE 'COMPLETE' END AS state,
           i <= $5::bigint - $8::bigint AS ended,
           jsonb_build_object('workflow', 'rnaseq', 'run', 'run-' || i / 200)
           || CASE WHEN i % 20000 = 11 THEN '{"project": "rare"}'::jsonb ELSE '{}' END AS tags
    FROM generate_series($1::bigint, $2::bigint) AS i
) AS made
"""

_FILES = TASKS.index("           'inputs'"), TASKS.index("           'executors'")
SLIM = TASKS[: _FILES[0]] + TASKS[_FILES[1] :]

ATTEMPTS = """
INSERT INTO attempt (task_id, number, backend, external_name, agent_id, instance, assigned_at, acknowledged_at,
                     reported_at, started_at, ended_at, closed, report_version, snapshot, outputs)
SELECT id, 1, 'pool', 'tg-test-' || id || '-1', 'agent' || md5('1'), 'agent' || md5('1'), created_at, created_at,
       created_at, created_at, ended_at, true, 5,
       json_build_object('executors', json_build_array(json_build_object(
           'start_time', created_at, 'end_time', ended_at, 'exit_code', 0)), 'system_logs', json_build_array(),
           'metadata', json_build_object('host', 'node1')),
       json_build_array(json_build_object('url', 'file:///data/runs/work/' || md5(id) || '/aligned.bam',
                                          'path', '/work/out/aligned.bam', 'size_bytes', '123456'))
FROM task WHERE phase = 'ended' AND NOT EXISTS (SELECT FROM attempt a WHERE a.task_id = task.id AND a.number = 1)
"""

LOGS = """
INSERT INTO log (task_id, number, tails)
SELECT task_id, 1, json_build_array(json_build_object('stdout', repeat('read mapped ', 20), 'stderr', ''))
FROM attempt ON CONFLICT DO NOTHING
"""

EVENTS = """
INSERT INTO task_event (task_id, number, kind, detail)
SELECT task_id, 1, kind, 'agent' FROM attempt CROSS JOIN unnest(ARRAY['assign', 'finish']) AS kind
"""


class ServerClock:
    """CPU of one connection's server process: what other programs on the machine hardly change."""

    def __init__(self, pid: int) -> None:
        self._schedstat = Path(f"/proc/{pid}/schedstat")

    def now(self) -> float:
        """Milliseconds so far."""
        return int(self._schedstat.read_text().split()[0]) / 1e6


@dataclass(frozen=True)
class Mix:
    """What the rows are: evenly over `days` until now, the first `old` named ``old-…``, the last `waiting` QUEUED."""

    tasks: int
    days: float = 360.0
    owners: int = 20
    old: int = 200
    waiting: int = 0
    attempts: bool = True
    span: float | None = 30.0
    slim: bool = False
    """Documents without inputs and outputs, which are made in a third of the time."""


async def cut_back(database: Database, mix: Mix) -> None:
    """Cut partitions as they would have been cut while the tasks came in."""
    if mix.span is None:
        return
    first = time.time() - mix.days * 86_400
    store = PartitionStore(database=database, width=timedelta(days=mix.span))
    await store.cut(now=int(first * 1000))
    await store.cut()


async def fill(dsn: str, mix: Mix) -> None:
    """Make schema, partitions of `Mix.span` days and rows, then VACUUM ANALYZE as autovacuum would have."""
    async with Database(dsn, min_size=1, max_size=1) as database:
        await migrate(database)
        await cut_back(database, mix)
    connection = await asyncpg.connect(dsn, command_timeout=3600)
    try:
        await connection.execute(IDS)
        now = time.time_ns() // 1_000_000
        began = now - int(mix.days * 86_400_000)
        for first in range(1, mix.tasks + 1, CHUNK):
            last = min(first + CHUNK - 1, mix.tasks)
            sql = SLIM if mix.slim else TASKS
            await connection.execute(sql, first, last, began, now, mix.tasks, mix.old, mix.owners, mix.waiting)
        if mix.attempts:
            for statement in (ATTEMPTS, LOGS, EVENTS):
                await connection.execute(statement)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


@contextmanager
def _directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="tesgate-bench-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@asynccontextmanager
async def server(*, durable: bool = False) -> AsyncIterator[str]:
    """The URL of a PostgreSQL of its own; without `durable` a commit does not wait for the disk."""
    with _directory() as directory:
        fast = {} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        embedded = EmbeddedPostgres(directory, settings={**SETTINGS, **fast})
        await embedded.start()
        try:
            yield embedded.dsn
        finally:
            with anyio.CancelScope(shield=True):
                await embedded.stop()
