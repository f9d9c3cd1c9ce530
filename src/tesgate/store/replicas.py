"""Replicas: who is there, who took over from whom, and who runs the loops that only one may run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from tesgate.store.attempts import Holder
from tesgate.store.database import Database
from tesgate.store.queries import load_queries

__all__ = ["ReplicaStore"]


class ReplicaStore:
    """Statements on ``replica`` and ``singleton``."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._sql = load_queries("replicas")

    async def enter(self, replica_id: str, *, host: str, roles: Sequence[str]) -> Holder:
        """Take the next epoch of this replica's id."""
        return Holder(replica_id, await self._database.fetchval(self._sql["enter"], replica_id, host, list(roles)))

    async def beat(self, holder: Holder) -> int | None:
        """The heartbeat: how many other replicas live. None: another epoch of this replica has begun."""
        others: int | None = await self._database.fetchval(self._sql["beat"], holder.replica_id, holder.epoch)
        return others

    async def leave(self, holder: Holder) -> None:
        """Stopped in order: the others may adopt at once, and no crash is counted."""
        await self._database.execute(self._sql["drop_singletons"], holder.replica_id, holder.epoch)
        await self._database.execute(self._sql["leave"], holder.replica_id, holder.epoch)

    async def adopt(self, holder: Holder, silent_for: timedelta) -> dict[str, bool]:
        """Protocol row *adopt*: take over what silent or gone replicas follow; by task, whether they crashed."""
        rows = await self._database.fetch(self._sql["adopt"], holder.replica_id, holder.epoch, silent_for)
        return {row["id"]: row["crashed"] for row in rows}

    async def hold_singleton(self, holder: Holder, name: str, lease: timedelta) -> bool:
        """Take or keep the right to run a loop of which there is one."""
        held = await self._database.fetchval(self._sql["hold_singleton"], name, holder.replica_id, holder.epoch, lease)
        return held is not None

    async def forget(self) -> None:
        """Rows of replicas that have been gone for long and hold nothing."""
        await self._database.execute(self._sql["forget_replicas"])
