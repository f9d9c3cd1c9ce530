"""Partitions by time: cut ahead, dropped when all their tasks are past retention.

A task's id begins with its time (`tesgate.model.ids`), so a range of ids is a span of time. ``task`` and its siblings
``attempt``, ``log`` and ``task_event`` have the same ranges: ``…_earlier``, one for each span (``…_20261101``), and
``…_later``. The two at the ends are empty as long as clocks are right; with them every id has a place, whatever a clock
says, and, other than a default partition, they do not keep lists from reading the partitions one after the other.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from tesgate.model.ids import id_time, ids_from
from tesgate.store.database import Connection, Database, Row
from tesgate.store.errors import StoreError
from tesgate.store.queries import load_queries

__all__ = ["Partition", "PartitionStore"]

logger = logging.getLogger(__name__)

TABLES = {"task": "id", "attempt": "task_id", "log": "task_id", "task_event": "task_id"}
"""With the column that they are partitioned by."""
EARLIER, LATER = "earlier", "later"
MILLISECOND = timedelta(milliseconds=1)
END = "~"
"""Behind every id."""

_BOUNDS = re.compile(r"FOR VALUES FROM \((?:'([0-9a-z]+)'|MINVALUE)\) TO \((?:'([0-9a-z]+)'|MAXVALUE)\)")
_WORD = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Partition:
    """A range of ids, from `lower` on and below `upper`; None: without end."""

    suffix: str
    lower: str | None
    upper: str | None


class PartitionStore:
    """Cuts and drops; every method may be called by any number of processes, and gives up where it would block others.

    The tables are locked for some milliseconds, and waited for half a second at most.
    """

    def __init__(self, *, database: Database, width: timedelta) -> None:
        """`width`: what a partition that is cut from now on spans."""
        self._database = database
        self._width = max(1, width // MILLISECOND)
        self._sql = load_queries("partitions")

    async def read(self) -> tuple[list[Partition], int]:
        """In the order of their ids, and the database's time in milliseconds."""
        rows = await self._database.fetch(self._sql["read_partitions"])
        return _partitions(rows), rows[0]["now_ms"]

    async def cut(self, *, now: int | None = None) -> bool:
        """See to it that the present and the span after it have their partitions; False: others were in the way.

        `now` (milliseconds since 1970) is the database's time, unless a test or a benchmark plays another.
        """
        partitions, present = await self.read()
        now = present if now is None else now
        later = partitions[-1]
        if later.lower is not None and id_time(later.lower) > now + self._width:
            return True
        end = now - now % self._width
        if later.lower is not None and id_time(later.lower) > end - 100 * self._width:
            end = id_time(later.lower)  # else nobody was here for long: one wide partition, not hundreds of empty ones
        bounds = [later.lower or ids_from(end)]
        while end <= now + self._width:
            end += self._width
            bounds.append(ids_from(end))
        return await self._alone(lambda connection: self._cut(connection, later, bounds))

    async def _cut(self, connection: Connection, later: Partition, bounds: list[str]) -> bool:
        if later not in await self._now(connection):
            return False
        for table, key in TABLES.items():
            await self._do(connection, "detach", table=table, suffix=LATER)
            if later.lower is None:
                await self._do(connection, "create", table=table, suffix=EARLIER, lower=None, upper=bounds[0])
            for lower, upper in itertools.pairwise(bounds):
                await self._do(connection, "create", table=table, suffix=_suffix(lower), lower=lower, upper=upper)
            await self._do(connection, "move_rows", table=table, key=key, upper=bounds[-1])
            await self._do(connection, "attach", table=table, suffix=LATER, lower=bounds[-1], upper=None)
        logger.info("partitions cut up to %s", _suffix(bounds[-1]))
        return True

    async def drop_oldest(self, keep: timedelta) -> bool:
        """Drop the oldest partition if all its tasks ended longer ago than `keep`; False: it stays."""
        partitions, now = await self.read()
        spans = [one for one in partitions if one.lower is not None and one.upper is not None]
        if not spans or id_time(spans[0].upper or "") + keep // MILLISECOND > now:
            return False
        oldest, lower, upper = spans[0], spans[0].lower, spans[0].upper
        can_go = self._sql["can_go"].format(suffix=_safe(oldest.suffix))
        if not await self._database.fetchval(can_go, keep):
            return False
        # Before their tasks: a key that leads nowhere would be worse than one that is forgotten a moment too early.
        while await self._database.execute(self._sql["forget_keys"], lower, upper) != "DELETE 0":
            pass

        async def drop(connection: Connection) -> bool:
            if oldest not in await self._now(connection) or not await connection.fetchval(can_go, keep):
                return False
            await self._do(connection, "drop", suffix=oldest.suffix)
            for table in TABLES:
                await self._do(connection, "detach", table=table, suffix=EARLIER)
                await self._do(connection, "attach", table=table, suffix=EARLIER, lower=None, upper=upper)
            logger.info("the partition %s was dropped", oldest.suffix)
            return True

        return await self._alone(drop)

    async def one_by_one(self, keep: timedelta) -> tuple[str, str]:
        """Ids below the first and from the second on are for retention to delete, the others go by `drop_oldest`.

        That is what lies in partitions that should have been dropped (a task of theirs is open, or ended late) or at
        the ends; and everything where tasks are kept for less than a partition spans.
        """
        partitions, now = await self.read()
        if keep // MILLISECOND < self._width:
            return END, END
        below = ""
        for one in partitions:
            if one.upper is not None and (one.lower is None or id_time(one.upper) + keep // MILLISECOND <= now):
                below = one.upper
        return below, partitions[-1].lower or ""

    async def _alone(self, change: Callable[[Connection], Awaitable[bool]]) -> bool:
        try:
            async with self._database.transaction() as connection:
                if not await connection.fetchval(self._sql["take_turn"]):
                    return False
                await connection.execute(self._sql["lock_timeout"])
                await connection.execute(self._sql["lock_tables"])
                return await change(connection)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            logger.info("the tables were busy, partitions are left for the next round")
            return False

    async def _now(self, connection: Connection) -> list[Partition]:
        return _partitions(await connection.fetch(self._sql["read_partitions"]))

    async def _do(self, connection: Connection, name: str, **values: str | None) -> None:
        """A statement with names and bounds in it, which cannot be arguments."""
        written = {
            key: {"lower": "MINVALUE", "upper": "MAXVALUE"}[key] if value is None else _safe(value)
            for key, value in values.items()
        }
        for key in ("lower", "upper"):
            if values.get(key) is not None:
                written[key] = f"'{written[key]}'"
        await connection.execute(self._sql[name].format(**written))


def _partitions(rows: Sequence[Row]) -> list[Partition]:
    found = []
    for row in rows:
        bounds = _BOUNDS.fullmatch(row["bounds"])
        if bounds is None:
            raise StoreError(f"The partition task_{row['suffix']} was not made by tesgate: {row['bounds']}.")
        found.append(Partition(row["suffix"], bounds[1], bounds[2]))
    return sorted(found, key=lambda one: one.lower or "")


def _safe(word: str) -> str:
    if not _WORD.fullmatch(word):
        raise ValueError(word)
    return word


def _suffix(lower: str) -> str:
    """The day on which it begins, and the time where it is not midnight."""
    moment = datetime.fromtimestamp(id_time(lower) / 1000, UTC)
    return f"{moment:%Y%m%d}" if id_time(lower) % 86_400_000 == 0 else f"{moment:%Y%m%dt%H%M%S}"
