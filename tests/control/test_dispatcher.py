"""What a round of the dispatcher looks at, and whether it goes on: on real rows, at the test's moments."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tesgate.control.dispatcher import Dispatcher
from tesgate.control.held import Trust
from tesgate.model.caller import Caller
from tesgate.model.records import Resources
from tesgate.store.database import Database
from tests.store.rows import ALICE, Rows

LARGE = Resources(64, 10**9, 0)
BOB = Caller("bob")


@pytest.fixture
async def rows(database: Database) -> Rows:
    return await Rows.made(database)


class Rounds:
    """A dispatcher whose whole rounds come when the test says so."""

    def __init__(self, rows: Rows, batch: int = 20) -> None:
        self.rows = rows
        self.given: list[str] = []
        self.dispatcher = Dispatcher(
            tasks=rows.tasks,
            attempts=rows.attempts,
            agents=rows.agents,
            trust=Trust(holder=rows.holder, window=timedelta(hours=1)),
            assigned=lambda given: self.given.extend(one.task_id for one in given),
            prefix="tg-",
            known_roots=[],
            pool="default",
            interval=timedelta(hours=1),
            batch=batch,
        )

    async def whole(self) -> bool:
        self.dispatcher._whole_at = 0.0
        return await self.dispatcher.once()

    async def shallow(self) -> bool:
        return await self.dispatcher.once()


async def test_what_can_only_wait_blocks_nothing_behind_it(rows: Rows) -> None:
    rounds = Rounds(rows)
    for _ in range(45):
        await rows.submit(need=LARGE)
    small = await rows.submit()
    await rows.agent()
    for _ in range(3):
        await rounds.whole()
        await rounds.whole()
    assert rounds.given == [small]
    # Nor what comes later at the head: each second round begins there.
    reason = "SELECT count(*) FROM task WHERE wait_reason IS NOT NULL"
    assert await rows.database.fetchval(reason) == 45
    first = await rows.database.fetchval("SELECT id FROM task WHERE phase = 'waiting' ORDER BY id LIMIT 1")
    await rows.database.execute("UPDATE task SET need_cpu_milli = 1000 WHERE id = $1", first)
    await rounds.whole()
    await rounds.whole()
    assert rounds.given == [small, first]


async def test_more_owners_than_a_round_looks_at_all_have_their_turn(rows: Rows) -> None:
    rounds = Rounds(rows, batch=5)
    for number in range(17):
        await rows.submit(Caller(f"owner{number:02}"), need=LARGE)
    small = await rows.submit(Caller("zoe"))
    await rows.agent()
    for _ in range(8):
        await rounds.whole()
    assert rounds.given == [small]


async def test_a_round_that_finds_nothing_does_not_make_the_next_shallower(rows: Rows) -> None:
    rounds = Rounds(rows, batch=100)
    for _ in range(40):
        await rows.submit(need=LARGE)
    smalls = [await rows.submit() for _ in range(6)]
    await rows.agent()
    await rounds.whole()
    assert rounds.given == smalls[:4]
    await rounds.shallow()
    assert rounds.given == smalls[:4]
    await rows.attempts.acknowledge("agent1", [(smalls[0], 1)])
    await rows.attempts.finish(smalls[0], 1, rows.words(), "COMPLETE", [])
    await rounds.shallow()
    assert rounds.given == smalls[:5]


async def test_goes_on_at_once_while_there_is_room(rows: Rows) -> None:
    rounds = Rounds(rows)
    await rows.agent(cpus=64)
    await rows.submit(need=Resources(65, 10**9, 0))
    for _ in range(40):
        await rows.submit()
    rests = 0
    assert await rounds.whole()
    while await rounds.shallow():
        rests += 1
    assert len(rounds.given) == 40
    assert rests <= 3


async def test_small_ones_of_other_owners_do_not_starve_a_big_one(rows: Rows) -> None:
    rounds = Rounds(rows)
    await rows.agent(cpus=4)
    smalls = [await rows.submit(BOB) for _ in range(2)]
    await rounds.whole()
    assert sorted(rounds.given) == sorted(smalls)
    big = await rows.submit(ALICE, need=Resources(4, 10**9, 0))
    await rows.database.execute("UPDATE task SET created_at = now() - interval '1 min' WHERE id = $1", big)
    for number in range(20):
        await rows.submit(Caller(f"b{number:02}"))
    await rounds.whole()
    for task_id in smalls:
        await rows.attempts.acknowledge("agent1", [(task_id, 1)])
        await rows.attempts.finish(task_id, 1, rows.words(), "COMPLETE", [])
        for _ in range(3):
            await rounds.shallow()
    if len(rounds.given) == 2:  # a shallow round need not see it
        await rounds.whole()
    assert rounds.given[2:] == [big]
