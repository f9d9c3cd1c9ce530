"""From any known schema to this version's, and never from an unknown one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tesgate.store.database import Database
from tesgate.store.deployment import claim_deployment, secret_fingerprint
from tesgate.store.errors import ForeignDeployment, SchemaMismatch, StoreError
from tesgate.store.migrations import Migration, check_schema, load_migrations, migrate, prepare_schema
from tesgate.store.partitions import PartitionStore

ONE = Migration(1, "one", "CREATE TABLE one (id int);")
TWO = Migration(2, "two", "CREATE TABLE two (id int); INSERT INTO one VALUES (1);")
BROKEN = Migration(2, "broken", "CREATE TABLE two (id int); SELECT 1/0;")

CATALOGUE = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
               a.attstorage, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "relations": """
        SELECT relname, relkind, reloptions, relpersistence, pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid)
        FROM pg_class WHERE relnamespace = 'public'::regnamespace""",
    "functions": """
        SELECT proname, pg_get_functiondef(oid)
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind <> 'a'""",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "types": """
        SELECT t.typname, t.typtype, array_agg(e.enumlabel ORDER BY e.enumsortorder)
        FROM pg_type t LEFT JOIN pg_enum e ON e.enumtypid = t.oid
        WHERE t.typnamespace = 'public'::regnamespace AND t.typtype IN ('e', 'd') GROUP BY 1, 2""",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "sequences": "SELECT sequencename, data_type::text, start_value, increment_by FROM pg_sequences",
    "extensions": "SELECT extname FROM pg_extension",
}


@pytest_asyncio.fixture
async def empty(empty_database_url: str) -> AsyncGenerator[Database]:
    async with Database(empty_database_url, min_size=1, max_size=4) as database:
        yield database


async def tables(database: Database) -> set[str]:
    rows = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_what_is_missing_is_applied_once_and_in_order(empty: Database) -> None:
    assert await migrate(empty, [ONE]) == [ONE]
    assert await migrate(empty, [ONE, TWO]) == [TWO]
    assert await migrate(empty, [ONE, TWO]) == []
    assert await tables(empty) == {"schema_migration", "one", "two"}
    await check_schema(empty, [ONE, TWO])


async def test_several_processes_migrate_at_the_same_time(empty: Database) -> None:
    applied = await asyncio.gather(*(migrate(empty, [ONE, TWO]) for _ in range(4)))
    assert sorted(applied, key=len) == [[], [], [], [ONE, TWO]]


async def test_who_waits_for_another_migration_holds_up_no_index(empty: Database) -> None:
    await migrate(empty, [ONE])
    index = "-- transaction: none\nCREATE INDEX CONCURRENTLY IF NOT EXISTS one_all ON one (id);\n"
    step = Migration(2, "index", index)
    async with asyncio.timeout(20):
        applied = await asyncio.gather(*(migrate(empty, [ONE, step]) for _ in range(4)))
    assert sorted(applied, key=len) == [[], [], [], [step]]


async def test_nothing_of_a_failing_migration_is_kept(empty: Database) -> None:
    with pytest.raises(StoreError, match="0002_broken failed and nothing of it was kept: division by zero"):
        await migrate(empty, [ONE, BROKEN])
    assert await tables(empty) == {"schema_migration", "one"}
    assert await migrate(empty, [ONE, TWO]) == [TWO]


async def test_a_schema_that_is_behind_is_refused_with_what_to_do(empty: Database) -> None:
    with pytest.raises(SchemaMismatch, match=r"2 steps behind this version \(next: 0001_one\): run `tesgate migrate`"):
        await prepare_schema(empty, automatic=False, migrations=[ONE, TWO])
    assert await prepare_schema(empty, automatic=True, migrations=[ONE, TWO]) == [ONE, TWO]
    assert await prepare_schema(empty, automatic=False, migrations=[ONE, TWO]) == []


@pytest.mark.parametrize("automatic", [True, False])
async def test_a_newer_schema_is_refused(empty: Database, automatic: bool) -> None:
    await migrate(empty, [ONE, TWO])
    with pytest.raises(SchemaMismatch, match=r"newer than this version of tesgate \(it has 0002_two\)"):
        await prepare_schema(empty, automatic=automatic, migrations=[ONE])


@pytest.mark.parametrize("automatic", [True, False])
async def test_another_builds_migration_is_refused(empty: Database, automatic: bool) -> None:
    await migrate(empty, [ONE])
    other = dataclasses.replace(ONE, sql="CREATE TABLE one (id bigint);")
    with pytest.raises(SchemaMismatch, match="0001_one in the database is not this version's"):
        await prepare_schema(empty, automatic=automatic, migrations=[other])


async def test_a_newer_schema_that_admits_this_program_is_used(empty: Database) -> None:
    expands = dataclasses.replace(TWO, sql="-- admits: 1\n" + TWO.sql)
    contracts = Migration(3, "contracts", "DROP TABLE one;")
    await migrate(empty, [ONE, expands])
    assert await prepare_schema(empty, automatic=False, migrations=[ONE]) == []
    assert await prepare_schema(empty, automatic=True, migrations=[ONE]) == []
    other = dataclasses.replace(ONE, sql="CREATE TABLE one (id bigint);")
    with pytest.raises(SchemaMismatch, match="0001_one in the database is not this version's"):
        await check_schema(empty, [other])
    await migrate(empty, [ONE, expands, contracts])
    with pytest.raises(SchemaMismatch, match=r"newer than this version of tesgate \(it has 0003_contracts\)"):
        await check_schema(empty, [ONE])
    with pytest.raises(SchemaMismatch, match="0003_contracts"):
        await check_schema(empty, [ONE, expands])


INDEX = Migration(
    2,
    "index",
    """-- admits: 1
-- transaction: none
CREATE INDEX CONCURRENTLY IF NOT EXISTS one_id ON one (id);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS one_once ON one (id);
""",
)


async def test_an_index_that_was_left_invalid_is_made_again(empty: Database) -> None:
    """As after a crash: the build of the second index does not get to its end."""
    await migrate(empty, [ONE])
    await empty.execute("INSERT INTO one VALUES (1), (1)")
    with pytest.raises(StoreError, match="0002_index failed and what it did so far stays and is done again: could not"):
        await migrate(empty, [ONE, INDEX])
    valid = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'one'::regclass ORDER BY 1"
    assert [tuple(row) for row in await empty.fetch(valid)] == [("one_id", True), ("one_once", False)]
    with pytest.raises(SchemaMismatch, match="1 step behind"):
        await check_schema(empty, [ONE, INDEX])
    await empty.execute("DELETE FROM one")
    assert await migrate(empty, [ONE, INDEX]) == [INDEX]
    assert [tuple(row) for row in await empty.fetch(valid)] == [("one_id", True), ("one_once", True)]
    await check_schema(empty, [ONE, INDEX])


async def test_an_index_on_a_partitioned_table_is_made_partition_by_partition(empty: Database) -> None:
    ours = load_migrations()
    index = Migration(
        len(ours) + 1,
        "index",
        """-- admits: 1
-- transaction: none
CREATE INDEX IF NOT EXISTS task_note ON ONLY task (wait_reason);
CREATE INDEX CONCURRENTLY IF NOT EXISTS task_note_{partition} ON task_{partition} (wait_reason);
ALTER INDEX task_note ATTACH PARTITION task_note_{partition};
""",
    )
    await migrate(empty)
    partitions = PartitionStore(database=empty, width=timedelta(days=30))
    await partitions.cut()
    await migrate(empty, [*ours, index])
    assert await empty.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'task_note'::regclass")
    _, now = await partitions.read()
    assert await partitions.cut(now=now + 90 * 86_400_000), "and later partitions have it too"


@pytest.mark.parametrize("admits", ["0", "3"])
async def test_what_a_migration_admits_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admits: str
) -> None:
    steps = tmp_path / "sql" / "migrations"
    steps.mkdir(parents=True)
    (steps / "0001_one.sql").write_text("SELECT 1;")
    (steps / "0002_two.sql").write_text(f"-- admits: {admits}\nSELECT 1;")
    monkeypatch.setattr("tesgate.store.migrations.files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"0002_two\.sql admits a schema that there is not before it"):
        load_migrations()


def test_line_ends_do_not_change_the_checksum() -> None:
    assert Migration(1, "a", "x\r\ny\r\n").checksum == Migration(1, "a", "x\ny\n").checksum


async def test_our_own_migrations_make_the_schema(database: Database) -> None:
    await check_schema(database)
    count = await database.fetchval("SELECT count(*) FROM schema_migration")
    assert count == len(load_migrations()) > 0


async def test_the_readable_schema_is_what_the_migrations_make(empty: Database) -> None:
    schema = files("tesgate.store").joinpath("sql", "schema.sql")
    connection = await asyncpg.connect(empty.dsn)
    try:
        await connection.execute(schema.read_text("utf-8"))
        readable = await catalogue(empty)
        await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    finally:
        await connection.close()
    await migrate(empty)
    assert readable == await catalogue(empty)


async def catalogue(database: Database) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, sql in CATALOGUE.items():
        rows = [repr(tuple(row)) for row in await database.fetch(sql)]
        found[name] = sorted(row for row in rows if "schema_migration" not in row)
    return found


async def test_the_first_start_writes_down_whose_database_it_is(database: Database) -> None:
    made = await claim_deployment(database, deployment_id=None, secret=b"s" * 32)
    assert len(made) == 8
    assert await claim_deployment(database, deployment_id=None, secret=b"s" * 32) == made
    assert await claim_deployment(database, deployment_id=made, secret=b"s" * 32) == made


async def test_gateways_that_start_together_agree(database: Database) -> None:
    made = await asyncio.gather(
        *(claim_deployment(database, deployment_id=None, secret=b"s" * 32) for _ in range(5)),
    )
    assert len(set(made)) == 1


async def test_another_deployments_database_is_refused(database: Database) -> None:
    await claim_deployment(database, deployment_id="prod1234", secret=b"s" * 32)
    with pytest.raises(ForeignDeployment, match="belongs to the deployment prod1234 and the configuration names copy"):
        await claim_deployment(database, deployment_id="copy", secret=b"s" * 32)
    with pytest.raises(ForeignDeployment, match="another secret key") as refused:
        await claim_deployment(database, deployment_id="prod1234", secret=b"t" * 32)
    assert secret_fingerprint(b"t" * 32) in str(refused.value)
    assert secret_fingerprint(b"s" * 32) not in str(refused.value)
