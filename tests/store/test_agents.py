"""Agents' rows: GPUs are room, an operator's word outlives restarts, pools and wishes come back as they were stored."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tesgate.control.observer import Observer
from tesgate.metrics import Metrics
from tesgate.model.placement import Need, Pick, place
from tesgate.model.records import Resources
from tesgate.model.wishes import Wish
from tesgate.store.agents import NewAgent
from tesgate.store.database import Database
from tests.store.rows import DOCUMENT, LEASE, Rows

CARD = Resources(1, 10**9, 0, 1)


@pytest.fixture
async def rows(database: Database) -> Rows:
    return await Rows.made(database)


def agent(name: str = "agent1", pool: str = "default", gpus: int = 0, **more: object) -> NewAgent:
    return NewAgent(name, pool, f"host-{name}", "7", Need(8000, 10**12, 10**12, gpus), ("docker",), (), {}, **more)  # type: ignore[arg-type]


async def used(rows: Rows) -> int:
    found: int = await rows.database.fetchval("SELECT used_gpus FROM agent WHERE id = 'agent1'")
    return found


async def test_gpus_are_taken_and_given_back_by_every_end(rows: Rows) -> None:
    await rows.agents.register(agent(gpus=2))
    tasks = [await rows.submit(need=CARD) for _ in range(3)]
    given = await rows.dispatch()
    assert ([one.task_id for one in given], await used(rows)) == (tasks[:2], 2)
    assert await rows.dispatch() == []
    await rows.attempts.acknowledge("agent1", [(task, 1) for task in tasks[:2]])
    await rows.attempts.report(tasks[0], 1, rows.words(started=True), LEASE)
    await rows.attempts.finish(tasks[0], 1, rows.words(), "COMPLETE", [])
    assert await used(rows) == 1
    assert [one.task_id for one in await rows.dispatch()] == [tasks[2]]
    await rows.close(tasks[1], 1, "failed", instance="agent1")
    assert await used(rows) == 1
    await rows.database.execute("UPDATE agent SET used_gpus = 7")
    await rows.agents.register(agent(gpus=2))  # counted anew
    assert await used(rows) == 1


async def test_who_needs_no_gpu_goes_where_fewer_are_left_than_are_taken(rows: Rows) -> None:
    await rows.agents.register(agent(gpus=1))
    await rows.submit(need=CARD)
    assert len(await rows.dispatch()) == 1
    await rows.agents.register(agent(gpus=0))  # the driver has failed
    card, plain = await rows.submit(need=CARD), await rows.submit()
    assert [one.task_id for one in await rows.dispatch()] == [plain]
    assert (await rows.tasks.waiting(10))[0].task_id == card


async def test_gpus_are_in_the_metrics(rows: Rows) -> None:
    await rows.agents.register(agent(gpus=2))
    await rows.agents.register(agent("agent2", gpus=1))
    await rows.submit(need=CARD)
    assert len(await rows.dispatch()) == 1
    metrics = Metrics()
    await Observer(
        tasks=rows.tasks, agents=rows.agents, metrics=metrics, database=rows.database, backends=["pool"], places={}
    ).once()
    page = metrics.render()[0].decode()
    assert 'tesgate_room{kind="gpus",pool="default",use="capacity"} 3.0' in page
    assert 'tesgate_room{kind="gpus",pool="default",use="used"} 1.0' in page


async def test_two_rounds_cannot_give_the_same_gpu_away(rows: Rows) -> None:
    await rows.agents.register(agent(gpus=1))
    await rows.submit(need=CARD)
    await rows.submit(need=CARD)
    given = []
    for candidate in await rows.tasks.waiting(10):
        # Each round sees the room as it was before both.
        pick = Pick(candidate.task_id, candidate.version, "agent1")
        given += await rows.attempts.assign(rows.holder, [pick], backend="pool", keeps=False, prefix="tg-")
    assert (len(given), await used(rows)) == (1, 1)


async def test_who_was_told_to_drain_gets_nothing_until_it_is_taken_back(rows: Rows) -> None:
    session = await rows.agents.register(agent())
    assert session is not None
    task = await rows.submit()
    picks = place(await rows.tasks.waiting(10), [a.room for a in await rows.agents.list_open()], reserve_after=30).picks
    assert await rows.agents.drain("host-agent1", True) == [("agent1", "host-agent1")]
    # Decided before, written after.
    assert await rows.attempts.assign(rows.holder, picks, backend="pool", keeps=False, prefix="tg-") == []
    assert await rows.agents.hear("agent1", session, 1, draining=False, pool="default")
    await rows.agents.register(agent())
    assert await rows.dispatch() == []
    (known,) = await rows.agents.list_all()
    assert (known.told_to_drain, known.room.draining, known.is_open) == (True, True, True)
    assert await rows.agents.drain("agent1", False, pool="other") == []
    assert await rows.agents.drain("host-agent1", False, pool="default") == []  # an agent's token speaks for ids alone
    assert await rows.agents.drain("agent1", False, pool="default") == [("agent1", "host-agent1")]
    assert [one.task_id for one in await rows.dispatch()] == [task]
    (known,) = await rows.agents.list_all()
    assert known.attempts == (f"{task}-1",)


async def test_the_list_has_lost_agents_too(rows: Rows) -> None:
    session = await rows.agents.register(agent(zones=("z",)))
    assert session is not None
    await rows.agents.register(agent("b", pool="a"))
    await rows.agents.count_silence()
    assert await rows.agents.close("agent1", session, 1)
    listed = await rows.agents.list_all()
    assert [(known.room.pool, known.room.agent_id, known.is_open) for known in listed] == [
        ("a", "b", True),
        ("default", "agent1", False),
    ]
    assert listed[1].room.zones == ("z",)
    assert listed[1].unseen_seconds >= 0
    await rows.agents.forget(timedelta(0))
    assert len(await rows.agents.list_all()) == 1


async def test_wishes_and_pools_come_back(rows: Rows) -> None:
    resources = {"zones": ["z"], "backend_parameters": {"labels": "a=b", "pool": "p"}}
    await rows.submit(document={**DOCUMENT, "resources": resources}, pools=("p", "q"))
    await rows.submit(need=CARD, pools=None)
    first, second = await rows.tasks.waiting(10)
    assert (first.wish, first.pools) == (Wish(("z",), (("a", "b"),), "p"), ("p", "q"))
    assert (second.wish, second.pools, second.need.gpus) == (Wish(), None, 1)
