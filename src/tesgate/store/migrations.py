"""Brings the schema to this version's, and refuses one that it does not know.

``store/sql/migrations/NNNN_name.sql`` are applied in order, each in a transaction of its own, one process at a time,
and recorded with a checksum in ``schema_migration``. ``store/sql/schema.sql`` is the readable whole.

Two lines of a migration are read by this module::

    -- admits: 3
    -- transaction: none

*admits* is the oldest schema whose programs still work on the result: their newest migration has this number. Without
the line it is the migration's own number, and no older program runs on the result. *transaction: none* is for what
cannot be in one (CREATE INDEX CONCURRENTLY): each statement is sent by itself, so each must be harmless to repeat; an
index that a crash left invalid is dropped before. One with ``{partition}`` in it is sent for each partition's suffix;
none is cut or dropped meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import anyio
import asyncpg

from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable, SchemaMismatch, StoreError
from tesgate.store.faults import is_fault, place_of

__all__ = ["Migration", "check_schema", "load_migrations", "migrate", "prepare_schema"]

logger = logging.getLogger(__name__)

ADVISORY_LOCK = 0x7465736761746501
"""Of the process that migrates ("tesgate", 1)."""

CUTTING_LOCK = 0x7465736761746502
"""Of the process that cuts or drops partitions (store/sql/partitions.sql: take_turn)."""

ASK_AGAIN_SECONDS = 0.1

RECORD = """
CREATE TABLE IF NOT EXISTS schema_migration (
    number     integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    admits     integer     NOT NULL
)
"""

READ = "SELECT number, name, checksum, admits FROM schema_migration"

INVALID = """
SELECT c.oid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relnamespace = current_schema()::regnamespace
  AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = c.oid)
"""
"""What a CREATE INDEX CONCURRENTLY left that did not get to its end. (Never an index of a partitioned table.)"""

PARTITIONS = """
SELECT substr(c.relname, 6) FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass('task') ORDER BY 1
"""

_HEADER = re.compile(r"^-- (admits|transaction): *(\S+) *$", re.MULTILINE)


@dataclass(frozen=True)
class Migration:
    """One numbered step."""

    number: int
    name: str
    sql: str

    @property
    def admits(self) -> int:
        """The number of the oldest schema whose programs may run on the result."""
        return int(self._header("admits", str(self.number)))

    @property
    def transactional(self) -> bool:
        """Whether all of it is one transaction."""
        return self._header("transaction", "one") != "none"

    def _header(self, name: str, default: str) -> str:
        found: dict[str, str] = dict(_HEADER.findall(self.sql))
        return found.get(name, default)

    @property
    def statements(self) -> list[str]:
        """Its statements one by one, for a migration without a transaction: each ends with a semicolon and its line."""
        code = "\n".join(line for line in self.sql.splitlines() if not line.lstrip().startswith("--"))
        return [statement.strip() for statement in re.split(r";[ \t]*(?:\n|$)", code) if statement.strip()]

    @property
    def checksum(self) -> str:
        """Of the text, whatever the line ends."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.number:04d}_{self.name}"


def load_migrations() -> list[Migration]:
    """This version's migrations in order. Raises `ValueError` for a bad name, a gap or a number twice."""
    found = []
    for entry in files("tesgate.store").joinpath("sql", "migrations").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", entry.name)
        if not match:
            raise ValueError(f"{entry.name} is not named NNNN_name.sql")
        found.append(Migration(int(match[1]), match[2], entry.read_text("utf-8")))
        if not 1 <= found[-1].admits <= found[-1].number:
            raise ValueError(f"{entry.name} admits a schema that there is not before it")
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError("the numbers of the migrations have a gap or a number twice")
    return found


async def migrate(database: Database, migrations: Sequence[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it. Any number of processes may call this at the same time.

    Raises `SchemaMismatch` for a schema that this version does not know, `StoreError` for a migration that fails
    (nothing of that one is kept), `DatabaseUnavailable`.
    """
    wanted = load_migrations() if migrations is None else list(migrations)
    try:
        # A connection of its own: it may wait for another gateway's migration, and a migration may take its time.
        settings = {"application_name": "tesgate migrate", "lock_timeout": "0", "statement_timeout": "0"}
        connection = await asyncpg.connect(database.dsn, timeout=30, server_settings=settings)
        try:
            await _lock(connection, ADVISORY_LOCK)
            await connection.execute(RECORD)
            missing = _missing(wanted, await connection.fetch(READ))
            for migration in missing:
                await _apply(connection, migration)
            return missing
        finally:
            await connection.close(timeout=5)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
        place = place_of(database.dsn)
        if is_fault(exc):
            raise DatabaseUnavailable(f"The database at {place} went away during the migration: {exc}.") from exc
        if isinstance(exc, asyncpg.SyntaxOrAccessError):  # of rights, and of columns that are another program's
            raise
        raise StoreError(f"The database at {place} cannot be migrated: {exc}.") from exc


async def _lock(connection: asyncpg.Connection[asyncpg.Record], key: int) -> None:
    """Asks again and again: a statement that waits holds a snapshot, for whose end CREATE INDEX CONCURRENTLY waits."""
    while True:
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", key):
            return
        await anyio.sleep(ASK_AGAIN_SECONDS)


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    kept = "nothing of it was kept" if migration.transactional else "what it did so far stays and is done again"
    try:
        if migration.transactional:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await _record(connection, migration)
        else:
            for index in await connection.fetch(INVALID):
                await connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index[0]}")
                logger.warning("dropped the index %s, which an interrupted migration left invalid", index[0])
            await _lock(connection, CUTTING_LOCK)
            partitions = [row[0] for row in await connection.fetch(PARTITIONS)]
            for statement in migration.statements:
                for partition in partitions if "{partition}" in statement else [""]:
                    await connection.execute(statement.replace("{partition}", partition))
            await _record(connection, migration)
            await connection.execute("SELECT pg_advisory_unlock($1)", CUTTING_LOCK)
    except asyncpg.PostgresError as exc:
        if is_fault(exc) or isinstance(exc, asyncpg.InsufficientPrivilegeError):
            raise
        if isinstance(exc, asyncpg.DuplicateTableError) and migration.number == 1:
            raise SchemaMismatch(
                f"The database holds tables of another program ({exc}): give tesgate a database of its own with "
                "database_url. Nothing was changed."
            ) from exc
        raise StoreError(f"The migration {migration} failed and {kept}: {exc}.") from exc
    logger.info("applied migration %s", migration)


async def _record(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migration (number, name, checksum, admits) VALUES ($1, $2, $3, $4)",
        migration.number,
        migration.name,
        migration.checksum,
        migration.admits,
    )


async def check_schema(database: Database, migrations: Sequence[Migration] | None = None) -> None:
    """Raises `SchemaMismatch`, saying what to do, unless the schema is this version's or a newer one that admits it."""
    wanted = load_migrations() if migrations is None else list(migrations)
    rows: Sequence[asyncpg.Record] = []
    if await database.fetchval("SELECT to_regclass('schema_migration') IS NOT NULL"):
        rows = await database.fetch(READ)
    missing = _missing(wanted, rows)
    if missing and not rows and await database.fetchval("SELECT to_regclass('task') IS NOT NULL"):
        raise SchemaMismatch(
            "The database holds tables of another program and none of tesgate's: give tesgate a database of its own "
            "with database_url."
        )
    if missing:
        raise SchemaMismatch(
            f"The database's schema is {len(missing)} step{'s' if len(missing) > 1 else ''} behind this version "
            f"(next: {missing[0]}): run `tesgate migrate` once, then start again."
        )


async def prepare_schema(
    database: Database, *, automatic: bool, migrations: Sequence[Migration] | None = None
) -> list[Migration]:
    """At the start of a gateway: migrate by itself (the embedded database) or only check (everybody else's)."""
    if automatic:
        return await migrate(database, migrations)
    await check_schema(database, migrations)
    return []


def _missing(wanted: Sequence[Migration], rows: Sequence[asyncpg.Record]) -> list[Migration]:
    applied = {row["number"]: row for row in rows}
    known = {migration.number: migration for migration in wanted}
    for number in sorted(applied):
        row = applied[number]
        migration = known.get(number)
        if migration is None:
            newest = max(known, default=0)
            if newest < row["admits"] or number <= newest:
                raise SchemaMismatch(
                    f"The database's schema is newer than this version of tesgate (it has {number:04d}_{row['name']}): "
                    "upgrade this tesgate, or give it another database."
                )
            continue
        if row["checksum"] != migration.checksum:
            raise SchemaMismatch(
                f"The migration {migration} in the database is not this version's: the database was made by another "
                "build of tesgate. Use that build, or give this one another database."
            )
    return [migration for migration in wanted if migration.number not in applied]
