"""Every class of statements that a gateway has, on its one database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tesgate.store.agents import AgentStore
from tesgate.store.attempts import AttemptStore
from tesgate.store.database import Database
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore
from tesgate.store.tokens import TokenStore
from tesgate.store.uploads import UploadStore
from tesgate.store.wakes import Wakes

__all__ = ["Stores"]


@dataclass(frozen=True, slots=True)
class Stores:
    """By what their rows are."""

    database: Database
    tasks: TaskStore
    attempts: AttemptStore
    agents: AgentStore
    replicas: ReplicaStore
    tokens: TokenStore
    uploads: UploadStore

    @classmethod
    def on(cls, database: Database, *, wakes: Wakes, ended: Callable[[str], None]) -> Stores:
        """`ended` is told the state of each task that a statement here ended."""
        return cls(
            database=database,
            tasks=TaskStore(database=database, wakes=wakes, ended=ended),
            attempts=AttemptStore(database=database),
            agents=AgentStore(database=database),
            replicas=ReplicaStore(database=database),
            tokens=TokenStore(database=database),
            uploads=UploadStore(database=database),
        )
