"""The store with one replica and an agent or two, for tests that drive the protocol's rows directly."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tesgate.model.caller import Caller
from tesgate.model.ids import TaskIds
from tesgate.model.placement import Need, place
from tesgate.model.records import NewTask, Resources
from tesgate.store.agents import AgentStore, NewAgent
from tesgate.store.attempts import Assigned, AttemptStore, Closed, Holder, Words, words_of
from tesgate.store.database import Database
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes

ALICE = Caller("alice")
LEASE = timedelta(seconds=30)
DOCUMENT = {"executors": [{"image": "busybox", "command": ["true"]}]}


@dataclass
class Rows:
    """All stores on one database."""

    database: Database
    ids: TaskIds = field(default_factory=TaskIds)
    holder: Holder = field(default_factory=lambda: Holder("", 0))
    said: int = 0

    def __post_init__(self) -> None:
        self.wakes = Wakes()
        self.tasks = TaskStore(database=self.database, wakes=self.wakes)
        self.attempts = AttemptStore(database=self.database)
        self.agents = AgentStore(database=self.database)
        self.replicas = ReplicaStore(database=self.database)

    @classmethod
    async def made(cls, database: Database) -> Rows:
        rows = cls(database)
        rows.holder = await rows.replicas.enter("r1", host="here", roles=["api", "control"])
        return rows

    async def agent(self, name: str = "agent1", cpus: int = 4) -> int:
        return await self.agents.register(
            NewAgent(name, "default", name, "0", Need(cpus * 1000, 10**12, 10**12), ("docker",), (), {})
        )

    def new(self, caller: Caller = ALICE, **more: Any) -> NewTask:
        return NewTask(
            id=self.ids(),
            owner=caller.subject,
            group=None,
            name=more.pop("name", None),
            document=more.pop("document", DOCUMENT),
            tags=more.pop("tags", {}),
            need=more.pop("need", Resources(1, 10**9, 0)),
            **more,
        )

    async def submit(self, caller: Caller = ALICE, **more: Any) -> str:
        return (await self.tasks.insert_task(caller, self.new(caller, **more))).id

    async def dispatch(self) -> list[Assigned]:
        rooms = [agent.room for agent in await self.agents.list_open()]
        placement = place(await self.tasks.waiting(100), rooms, reserve_after=30)
        return await self.attempts.assign(self.holder, placement.picks, backend="pool", keeps=False, prefix="tg-")

    async def running(self, agent: str = "agent1") -> str:
        """A task whose first attempt runs."""
        task_id = await self.submit()
        (given,) = await self.dispatch()
        await self.attempts.acknowledge(given.agent_id, [(task_id, given.number)])
        await self.attempts.report(task_id, given.number, self.words(agent, started=True), LEASE)
        return task_id

    def words(self, agent: str = "agent1", *, started: bool = False, version: int | None = None) -> Words:
        self.said += 1
        executors = [{"start_time": "2026-01-01T00:00:00Z", "stdout": "out", "stderr": ""}] if started else []
        return words_of(agent, version or self.said, {"executors": executors, "system_logs": ["said"], "metadata": {}})

    async def close(self, task_id: str, number: int, kind: Any, **more: Any) -> Closed | None:
        more.setdefault("note", "because")
        more.setdefault("max_attempts", 3)
        return await self.attempts.close(task_id, number, kind, backoff=timedelta(0), **more)

    async def row(self, task_id: str) -> Any:
        return await self.database.fetchrow("SELECT * FROM task WHERE id = $1", task_id)

    async def lease_ends(self, task_id: str) -> None:
        """Time passes for one lease."""
        await self.database.execute("UPDATE task SET publish_until = now() - interval '1 s' WHERE id = $1", task_id)

    async def check_room(self) -> None:
        """What agents use is what their open attempts need."""
        wrong = await self.database.fetch(
            """SELECT g.id, g.used_cpu_milli, coalesce(sum(t.need_cpu_milli), 0) AS wanted
               FROM agent g LEFT JOIN attempt a ON a.agent_id = g.id AND NOT a.closed
                    LEFT JOIN task t ON t.id = a.task_id
               GROUP BY g.id HAVING g.used_cpu_milli <> coalesce(sum(t.need_cpu_milli), 0)"""
        )
        assert not wrong, wrong
