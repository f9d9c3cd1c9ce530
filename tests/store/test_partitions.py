"""Partitions by time on a real database: every id has its place at any time, and what is dropped was ended long ago."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tesgate.control.janitor import LogKeeper
from tesgate.errors import TaskNotFound
from tesgate.model.ids import TaskIds, id_time, ids_from
from tesgate.storage.workspace import FileWorkspace
from tesgate.store.database import Database
from tesgate.store.migrations import migrate
from tesgate.store.partitions import TABLES, PartitionStore
from tests.control.test_janitor import has_log, janitor_of
from tests.store.rows import ALICE, Rows

DAY = timedelta(days=1)
DAY_MS = 86_400_000


@pytest_asyncio.fixture
async def fresh(empty_database_url: str) -> AsyncGenerator[Database]:
    """Migrated, not cut yet."""
    async with Database(empty_database_url, min_size=1, max_size=8) as database:
        await migrate(database)
        yield database


async def now_of(database: Database) -> int:
    return (await PartitionStore(database=database, width=DAY).read())[1]


async def submit_at(rows: Rows, moment_ms: int, **more: object) -> str:
    """A task whose id says that it was made then."""
    rows.ids = TaskIds(clock_ms=lambda: moment_ms)
    return await rows.submit(**more)  # type: ignore[arg-type]


async def end(rows: Rows, task_id: str, *, days_ago: float) -> None:
    await rows.tasks.cancel_task(ALICE, task_id)
    await rows.database.execute(
        "UPDATE task SET ended_at = now() - $2 * interval '1 day' WHERE id = $1", task_id, days_ago
    )


async def place_of(database: Database, task_id: str) -> set[str]:
    """Suffixes of the partitions in which a task's rows are."""
    found = set()
    for table, key in TABLES.items():
        rows = await database.fetch(f"SELECT tableoid::regclass::text AS place FROM {table} WHERE {key} = $1", task_id)
        found |= {row["place"].removeprefix(f"{table}_") for row in rows}
    return found


async def check_siblings(database: Database) -> None:
    """All four tables have the same ranges without gaps, from the first id to the last."""
    bounds: dict[str, list[tuple[str, str]]] = {}
    for table in TABLES:
        rows = await database.fetch(
            """SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds
               FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = $1::text::regclass""",
            table,
        )
        bounds[table] = sorted((row["relname"].removeprefix(f"{table}_"), row["bounds"]) for row in rows)
    assert all(found == bounds["task"] for found in bounds.values())
    partitions, _ = await PartitionStore(database=database, width=DAY).read()
    assert partitions[0].lower is None and partitions[-1].upper is None
    assert all(one.upper == two.lower for one, two in itertools.pairwise(partitions))


async def test_the_first_cut_covers_the_present_and_the_span_after_it(fresh: Database) -> None:
    store = PartitionStore(database=fresh, width=30 * DAY)
    assert await store.cut()
    partitions, now = await store.read()
    assert partitions[0].suffix == "earlier" and partitions[-1].suffix == "later"
    assert len(partitions) == 4
    assert id_time(partitions[1].lower or "") <= now < id_time(partitions[2].lower or "")
    assert await store.cut()
    assert (await store.read())[0] == partitions, "there is nothing more to do"
    await check_siblings(fresh)


async def test_every_id_has_a_place_whatever_the_clock_said(fresh: Database) -> None:
    rows = await Rows.made(fresh)
    now = await now_of(fresh)
    await PartitionStore(database=fresh, width=30 * DAY).cut()
    for moment, place in ((0, "earlier"), (now + 10_000 * DAY_MS, "later"), (now, None)):
        task_id = await submit_at(rows, moment)
        await rows.tasks.cancel_task(ALICE, task_id)
        found = await place_of(fresh, task_id)
        assert len(found) == 1 and (place is None or found == {place})
        assert await rows.tasks.get_state(ALICE, task_id) == "CANCELED"


async def test_what_came_before_its_partition_moves_into_it(fresh: Database) -> None:
    """All gateways rested for months; or the janitor could not cut."""
    rows = await Rows.made(fresh)
    store = PartitionStore(database=fresh, width=30 * DAY)
    now = await now_of(fresh)
    await store.cut(now=now - 100 * DAY_MS)
    await rows.agent()
    running = await rows.running()
    assert await place_of(fresh, running) == {"later"}
    events = await rows.tasks.list_events(ALICE, running)
    assert await store.cut()
    (place,) = await place_of(fresh, running)
    assert place not in {"earlier", "later"}
    assert await rows.tasks.list_events(ALICE, running) == events
    said = await rows.attempts.finish(running, 1, rows.words(), "COMPLETE", [])
    assert said is not None and said.done
    assert len(await rows.tasks.list_events(ALICE, running)) == len(events) + 1
    await check_siblings(fresh)


async def test_years_without_a_gateway_make_one_partition(fresh: Database) -> None:
    store = PartitionStore(database=fresh, width=DAY)
    await store.cut(now=await now_of(fresh) - 4000 * DAY_MS)
    assert await store.cut()
    assert len((await store.read())[0]) < 10
    await check_siblings(fresh)


async def test_another_width_holds_from_the_last_cut_on(fresh: Database) -> None:
    await PartitionStore(database=fresh, width=10 * DAY).cut()
    before, now = await PartitionStore(database=fresh, width=10 * DAY).read()
    assert await PartitionStore(database=fresh, width=3 * DAY).cut(now=now + 60 * DAY_MS)
    after, _ = await PartitionStore(database=fresh, width=3 * DAY).read()
    assert after[: len(before) - 1] == before[:-1]
    assert id_time(after[-2].upper or "") - id_time(after[-2].lower or "") == 3 * DAY_MS
    await check_siblings(fresh)


async def test_several_replicas_cut_at_the_same_time(fresh: Database) -> None:
    stores = [PartitionStore(database=fresh, width=30 * DAY) for _ in range(4)]
    done = await asyncio.gather(*(store.cut() for store in stores))
    assert any(done)
    await check_siblings(fresh)


async def test_writers_are_never_in_the_way_for_long(fresh: Database) -> None:
    """A statement that lasts is waited for half a second, then the cut is left for the next round."""
    store = PartitionStore(database=fresh, width=30 * DAY)
    rows = await Rows.made(fresh)
    async with fresh.transaction() as connection:
        await connection.execute("SELECT count(*) FROM task")
        assert not await store.cut()
    await asyncio.wait_for(rows.submit(), 5)
    assert await store.cut()


async def test_a_partition_goes_when_all_its_tasks_ended_long_ago(fresh: Database, tmp_path: Path) -> None:
    rows, workspace = await Rows.made(fresh), FileWorkspace(tmp_path)
    now = await now_of(fresh)
    store = PartitionStore(database=fresh, width=10 * DAY)
    await store.cut(now=now - 100 * DAY_MS)
    await store.cut()
    count = len((await store.read())[0])
    old = [await submit_at(rows, now - 95 * DAY_MS, idempotency_key=str(number)) for number in range(3)]
    young = await submit_at(rows, now - 5 * DAY_MS, idempotency_key="young")
    for task_id in (*old, young):
        await workspace.write_at(task_id, 1, 0, "stdout", 0, b"said")
        await end(rows, task_id, days_ago=95 if task_id in old else 5)
    janitor = janitor_of(rows, workspace, keep=30 * DAY, width=10 * DAY)
    while await janitor.once():
        pass
    assert len((await store.read())[0]) < count
    for task_id in old:
        with pytest.raises(TaskNotFound):
            await rows.tasks.get_state(ALICE, task_id)
        assert not await place_of(fresh, task_id)
    assert await rows.tasks.get_state(ALICE, young) == "CANCELED"
    keys = await fresh.fetch("SELECT key FROM idempotency")
    assert [row["key"] for row in keys] == ["young"], "a key goes with its task"
    keeper = LogKeeper(tasks=rows.tasks, logs=workspace, keep=None)
    while await keeper.once():
        pass
    assert [await has_log(workspace, task_id) for task_id in (*old, young)] == [False, False, False, True]
    await check_siblings(fresh)
    late = await submit_at(rows, now - 95 * DAY_MS)
    assert await place_of(fresh, late) == {"earlier"}, "an id of a dropped time still has a place"


async def test_an_open_task_holds_its_partition_and_the_rest_of_it_goes_row_by_row(
    fresh: Database, tmp_path: Path
) -> None:
    rows, workspace = await Rows.made(fresh), FileWorkspace(tmp_path)
    now = await now_of(fresh)
    store = PartitionStore(database=fresh, width=10 * DAY)
    await store.cut(now=now - 100 * DAY_MS)
    await store.cut()
    held, gone, newer = [await submit_at(rows, now - days * DAY_MS) for days in (95, 94, 25)]
    await end(rows, gone, days_ago=94)
    await end(rows, newer, days_ago=25)
    ahead = await submit_at(rows, now + 5000 * DAY_MS)
    await end(rows, ahead, days_ago=94)
    janitor = janitor_of(rows, workspace, keep=20 * DAY, width=10 * DAY)
    before = (await store.read())[0]
    while await janitor.once():
        pass
    assert (await store.read())[0][1:] == [one for one in before if one.lower is not None and (one.upper or "~") > held]
    states = {task_id: await rows.row(task_id) is not None for task_id in (held, gone, newer, ahead)}
    # What is in a partition that is due later waits for it; what is in the wrong place by its clock does not.
    assert states == {held: True, gone: False, newer: True, ahead: False}
    assert not await place_of(fresh, gone) and not await place_of(fresh, ahead)
    await end(rows, held, days_ago=21)
    while await janitor.once():
        pass
    assert await rows.row(held) is None
    await check_siblings(fresh)


async def test_tasks_that_are_kept_for_less_than_a_partition_go_row_by_row(fresh: Database, tmp_path: Path) -> None:
    rows, workspace = await Rows.made(fresh), FileWorkspace(tmp_path)
    task_id = await rows.submit()
    await end(rows, task_id, days_ago=4)
    await janitor_of(rows, workspace, keep=3 * DAY, width=30 * DAY).once()
    assert await rows.row(task_id) is None
    assert not await place_of(fresh, task_id)


async def test_a_task_that_ends_while_its_partition_is_looked_at_keeps_it(fresh: Database) -> None:
    """The look is repeated under the lock."""
    rows = await Rows.made(fresh)
    now = await now_of(fresh)
    store = PartitionStore(database=fresh, width=10 * DAY)
    await store.cut(now=now - 100 * DAY_MS)
    await store.cut()
    async with fresh.transaction() as connection:
        await connection.execute("SELECT count(*) FROM log")
        dropping = asyncio.create_task(store.drop_oldest(20 * DAY))
        await asyncio.sleep(0)
        late = await submit_at(rows, now - 95 * DAY_MS)
        await dropping
    await store.drop_oldest(20 * DAY)
    assert await rows.row(late) is not None


def test_ids_and_times_agree() -> None:
    ids = TaskIds(clock_ms=lambda: 1_795_000_000_123)
    assert id_time(ids()) == 1_795_000_000_123
    assert ids_from(1_795_000_000_123) <= ids() < ids_from(1_795_000_000_124)
    assert id_time(ids_from(1_795_000_000_123)) == 1_795_000_000_123


async def test_a_key_is_unique_over_all_partitions(fresh: Database) -> None:
    rows = await Rows.made(fresh)
    now = await now_of(fresh)
    store = PartitionStore(database=fresh, width=10 * DAY)
    await store.cut(now=now - 100 * DAY_MS)
    await store.cut()
    first = await submit_at(rows, now - 95 * DAY_MS, idempotency_key="k", body_hash="one")
    assert await submit_at(rows, now, idempotency_key="k", body_hash="one") == first
    with pytest.raises(asyncpg.UniqueViolationError):
        await fresh.execute("INSERT INTO idempotency (owner, key, task_id) VALUES ('alice', 'k', 'x')")
