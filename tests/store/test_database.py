"""A pool that waits for a database which is away for a moment, and never repeats what may have been done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import anyio
import asyncpg
import pytest
import pytest_asyncio

from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable, StoreError
from tesgate.store.faults import place_of
from tests.store.proxy import Proxy


@pytest_asyncio.fixture
async def proxy(empty_database_url: str) -> AsyncGenerator[Proxy]:
    async with Proxy.before(empty_database_url) as made:
        yield made


@pytest_asyncio.fixture
async def behind(proxy: Proxy) -> AsyncGenerator[Database]:
    """A database behind the proxy, with one connection, so that a test knows which one is cut."""
    async with Database(proxy.url, min_size=1, max_size=1, patience=5, lock_timeout=0.2) as database:
        await database.execute("CREATE TABLE t (id int PRIMARY KEY, document jsonb)")
        yield database


async def backend(database: Database) -> int:
    pid: int = await database.fetchval("SELECT pg_backend_pid()")
    return pid


async def kill(url: str, pid: int) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    await connection.close()


async def test_json_is_values_both_ways(behind: Database) -> None:
    document = {"a": [1, None, "ü\U0001f600"], "b": {"c": 1.5}}
    await behind.execute("INSERT INTO t VALUES (1, $1)", document)
    await behind.execute("INSERT INTO t VALUES (2, $1)", b'{"ready": true}')
    rows = await behind.fetch("SELECT document FROM t ORDER BY id")
    assert [row["document"] for row in rows] == [document, {"ready": True}]
    assert await behind.fetchval("SELECT $1::json", [1, 2]) == [1, 2]


async def test_settings_of_a_connection(behind: Database) -> None:
    assert await behind.fetchval("SHOW statement_timeout") == "30s"
    assert await behind.fetchval("SHOW lock_timeout") == "200ms"
    assert await behind.fetchval("SHOW idle_in_transaction_session_timeout") == "30s"
    assert await behind.fetchval("SHOW timezone") == "UTC"
    assert await behind.fetchval("SHOW application_name") == "tesgate"


async def test_a_read_goes_on_after_the_server_ended_its_connection(behind: Database, empty_database_url: str) -> None:
    await kill(empty_database_url, await backend(behind))
    assert await behind.fetchval("SELECT 41 + 1") == 42


async def test_a_read_under_way_is_sent_again(behind: Database, empty_database_url: str) -> None:
    pid = await backend(behind)
    async with asyncio.TaskGroup() as group:
        # Only the first attempt waits: the second finds the table's row.
        sql = "SELECT CASE WHEN pg_backend_pid() = $1 THEN pg_sleep(30)::text ELSE 'again' END"
        read = group.create_task(behind.fetchval(sql, pid))
        await under_way(empty_database_url, pid)
        await kill(empty_database_url, pid)
    assert read.result() == "again"


async def noticed(database: Database) -> None:
    """Until the pool knows that its connections are gone."""
    assert database._pool is not None
    with anyio.fail_after(60):
        while database._pool.get_size():
            await anyio.sleep(0)


async def under_way(url: str, pid: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        with anyio.fail_after(25):
            sql = "SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $1"
            while not await connection.fetchval(sql, pid):
                await anyio.sleep(0.01)
    finally:
        await connection.close()


async def test_a_write_under_way_is_not_sent_again(behind: Database, empty_database_url: str) -> None:
    pid = await backend(behind)
    write = asyncio.ensure_future(behind.execute("INSERT INTO t SELECT 1 FROM pg_sleep(30)"))
    await under_way(empty_database_url, pid)
    await kill(empty_database_url, pid)
    with pytest.raises(DatabaseUnavailable, match=r"is not available: .*terminating connection"):
        await write
    assert await behind.fetchval("SELECT count(*) FROM t") == 0


async def test_a_write_that_may_be_repeated_is_sent_again(behind: Database, empty_database_url: str) -> None:
    pid = await backend(behind)
    sql = "INSERT INTO t SELECT 1 FROM (SELECT CASE WHEN pg_backend_pid() = $1 THEN pg_sleep(30)::text END) s"
    write = asyncio.ensure_future(behind.execute(sql, pid, idempotent=True))
    await under_way(empty_database_url, pid)
    await kill(empty_database_url, pid)
    assert await write == "INSERT 0 1"


async def test_a_call_waits_for_a_database_that_comes_back(behind: Database, proxy: Proxy) -> None:
    await proxy.refuse()
    await noticed(behind)
    async with asyncio.TaskGroup() as group:
        # A write too: it was never sent.
        write = group.create_task(behind.execute("INSERT INTO t VALUES (7)"))
        read = group.create_task(behind.fetchval("SELECT 1"))
        await anyio.sleep(0.1)
        assert not write.done()
        assert not read.done()
        await proxy.resume()
    assert (write.result(), read.result()) == ("INSERT 0 1", 1)


async def test_a_connection_that_swallows_everything_is_found_and_replaced(proxy: Proxy) -> None:
    # The server's timeouts cannot be heard, and the client's own for a whole statement would take 35 seconds.
    async with Database(proxy.url, min_size=3, max_size=3, patience=30) as database:
        await database.execute("CREATE TABLE t (id int)")
        proxy.lose()
        with anyio.fail_after(30):
            assert await database.fetch("SELECT 1", within=1.0)
            # One was enough to know of all: the other two are not asked, where these would hang for 35 seconds.
            assert await database.execute("INSERT INTO t VALUES (1)") == "INSERT 0 1"
            assert await database.fetchval("SELECT count(*) FROM t") == 1


async def test_a_write_that_hangs_is_not_sent_again(proxy: Proxy) -> None:
    async with Database(proxy.url, min_size=1, max_size=1, patience=10) as database:
        await database.execute("CREATE TABLE t (id int)")
        proxy.lose()
        with anyio.fail_after(20), pytest.raises(DatabaseUnavailable):
            await database.fetch("INSERT INTO t VALUES (1) RETURNING id", within=0.3)
        proxy.lose()
        with anyio.fail_after(20):
            sql = "INSERT INTO t VALUES (2) RETURNING id"
            assert [row["id"] for row in await database.fetch(sql, idempotent=True, within=0.5)] == [2]


async def test_patience_ends(proxy: Proxy) -> None:
    async with Database(proxy.url, min_size=1, max_size=1, patience=0.3) as database:
        await proxy.refuse()
        with anyio.fail_after(25), pytest.raises(DatabaseUnavailable, match="is not available"):
            await database.fetchval("SELECT 1")
        with anyio.fail_after(25), pytest.raises(DatabaseUnavailable):
            async with database.transaction():
                pass
        await proxy.resume()
        assert await database.fetchval("SELECT 1") == 1


async def test_a_callers_own_deadline_is_kept(behind: Database, proxy: Proxy) -> None:
    await proxy.refuse()
    with anyio.fail_after(60), anyio.move_on_after(0.1) as scope:
        await behind.fetchval("SELECT 1")
    assert scope.cancelled_caught


async def test_the_first_connection_waits_for_the_database(proxy: Proxy) -> None:
    await proxy.refuse()
    database = Database(proxy.url, min_size=1)
    async with asyncio.TaskGroup() as group:
        opening = group.create_task(database.open())
        await anyio.sleep(0.1)
        assert not opening.done()
        await proxy.resume()
    assert await database.fetchval("SELECT 1") == 1
    await database.close()
    with pytest.raises(StoreError, match="not open"):
        await database.fetchval("SELECT 1")


async def test_what_waiting_does_not_help_is_said_at_once(empty_database_url: str) -> None:
    url = empty_database_url.replace("/test_", "/no_such_")
    with anyio.fail_after(60), pytest.raises(StoreError, match=r"refuses us: database .* does not exist"):
        await Database(url, min_size=1, patience=600).open()


async def test_a_transaction_is_whole_or_nothing(behind: Database) -> None:
    async with behind.transaction() as connection:
        await connection.execute("INSERT INTO t VALUES (1)")

    async def fail() -> None:
        async with behind.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (2)")
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert [row["id"] for row in await behind.fetch("SELECT id FROM t")] == [1]


async def test_a_cancelled_transaction_is_rolled_back_and_gives_its_connection_back(behind: Database) -> None:
    with anyio.move_on_after(0.05):
        async with behind.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            await connection.execute("SELECT pg_sleep(30)")
    with anyio.fail_after(25):
        assert await behind.fetchval("SELECT count(*) FROM t") == 0


async def test_a_transaction_whose_connection_is_lost(behind: Database, empty_database_url: str) -> None:
    pid = await backend(behind)

    async def lose() -> None:
        async with behind.transaction() as connection:
            await connection.execute("INSERT INTO t VALUES (1)")
            await kill(empty_database_url, pid)
            await connection.execute("INSERT INTO t VALUES (2)")

    with pytest.raises(DatabaseUnavailable):
        await lose()
    assert await behind.fetchval("SELECT count(*) FROM t") == 0


async def test_what_was_rolled_back_is_tried_again(empty_database_url: str) -> None:
    async with Database(empty_database_url, min_size=2, lock_timeout=0.05, patience=5) as database:
        await database.execute("CREATE TABLE t (id int)")
        async with asyncio.TaskGroup() as group:
            async with database.transaction() as connection:
                await connection.execute("LOCK TABLE t")
                write = group.create_task(database.execute("INSERT INTO t VALUES (1)"))
                await anyio.sleep(0.15)
                assert not write.done()
        assert write.result() == "INSERT 0 1"


async def test_a_statement_that_takes_too_long_ends(empty_database_url: str) -> None:
    async with Database(empty_database_url, min_size=1, statement_timeout=0.1) as database:
        with anyio.fail_after(25), pytest.raises(DatabaseUnavailable, match="statement timeout"):
            await database.fetchval("SELECT pg_sleep(30)")


@pytest.mark.parametrize("sql", ["SELECT nonsense", "INSERT INTO t VALUES (1), (1)", "SELECT 1/0"])
async def test_errors_of_the_statement_are_its_own(behind: Database, sql: str) -> None:
    with anyio.fail_after(60), pytest.raises(asyncpg.PostgresError):
        await behind.execute(sql)


async def test_wrong_arguments_are_no_fault_of_the_database(behind: Database) -> None:
    with anyio.fail_after(60), pytest.raises(asyncpg.InterfaceError):
        await behind.fetch("SELECT $1::int", 1, 2)


def test_messages_hold_no_password() -> None:
    assert place_of("postgresql://me:secret@db.example:5433/tesgate?sslmode=require") == "db.example:5433/tesgate"
    assert place_of("postgresql://tesgate@/tesgate?host=/run/pg&port=5432") == "/run/pg/tesgate"
