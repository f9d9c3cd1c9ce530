"""From any known schema to this version's, and never from an unknown one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from importlib.resources import files

import asyncpg
import pytest
import pytest_asyncio

from tesgate.store.database import Database
from tesgate.store.deployment import claim_deployment, secret_fingerprint
from tesgate.store.errors import ForeignDeployment, SchemaMismatch, StoreError
from tesgate.store.migrations import Migration, check_schema, load_migrations, migrate, prepare_schema

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
