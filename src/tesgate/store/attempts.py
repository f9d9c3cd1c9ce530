"""The protocol's table as statements: one method is one row of it, one statement, one commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pydantic_core

from tesgate.model.placement import Pick
from tesgate.store.database import WITHIN_WRITE, Database
from tesgate.store.gather import Gather, one_of_each
from tesgate.store.queries import load_queries

__all__ = ["Assigned", "AttemptStore", "Closed", "Held", "Holder", "Order", "Said", "Words", "words_of"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A replica in one of its epochs: who follows an attempt."""

    replica_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """An attempt that has just been given to an agent."""

    task_id: str
    version: int
    number: int
    agent_id: str
    external_name: str


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt as the answer to a poll sees it."""

    task_id: str
    number: int
    closed: bool
    acknowledged: bool
    canceling: bool
    version: int
    its_own: bool
    """The attempt was given to the agent that polls."""
    external_name: str
    document: dict[str, Any] | None
    """Only of one that is to be started: what its plan is computed from."""


@dataclass(frozen=True, slots=True)
class Words:
    """What a runner's message says, ready for the row."""

    instance: str
    version: int
    snapshot: dict[str, Any]
    tails: list[dict[str, str]] | None
    started: bool
    """An executor of it was started."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a message of the runner did."""

    stop: bool
    leased: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Message:
    """One message of a runner, on its way into a gathered statement."""

    task_id: str
    number: int
    words: Words
    lease: timedelta = timedelta(0)
    state: str = ""
    outputs: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """Where closing an attempt left its task."""

    phase: str
    state: str


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that a replica follows."""

    task_id: str
    number: int
    version: int
    phase: str
    state: str
    released: bool
    crashes: int
    backend: str
    external_name: str
    handle: dict[str, Any] | None
    agent_id: str | None
    age: float


class AttemptStore:
    """Statements on attempts: what the dispatcher, the owners, the agents and the runners do."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._sql = load_queries("attempts")
        # Messages of one moment go in one statement: one commit, and one write of each agent's room for all of them.
        self._reports: Gather[_Message, Said | None] = Gather(self._report_batch, max_batch=200)
        self._publishes: Gather[_Message, Said | None] = Gather(self._publish_batch, max_batch=200)
        self._finishes: Gather[_Message, Said | None] = Gather(self._finish_batch, max_batch=200)

    async def assign(
        self, holder: Holder, picks: Sequence[Pick], *, backend: str, keeps: bool, prefix: str
    ) -> list[Assigned]:
        """Protocol row *assign*, many at once: attempt and room together.

        `keeps`: the backend holds something that must be released after the end. `prefix` is the deployment's part
        of external names. What is not in the answer found no room or was taken by another replica.
        """
        rows = await self._database.fetch(
            self._sql["assign"],
            [pick.task_id for pick in picks],
            [pick.version for pick in picks],
            [pick.agent_id for pick in picks],
            holder.replica_id,
            holder.epoch,
            backend,
            not keeps,
            prefix,
        )
        return [
            Assigned(row["id"], row["version"], row["number"], row["agent_id"], row["external_name"]) for row in rows
        ]

    async def orders(self, agent_id: str, have: Sequence[tuple[str, int]]) -> list[Order]:
        """All that the answer to a poll depends on."""
        rows = await self._database.fetch(
            self._sql["agent_orders"],
            agent_id,
            [task for task, _ in have],
            [number for _, number in have],
            idempotent=True,
        )
        return [Order(*row.values()) for row in rows]

    async def acknowledge(self, agent_id: str, attempts: Sequence[tuple[str, int]]) -> None:
        """Protocol row *acknowledge*."""
        if attempts:
            await self._database.execute(
                self._sql["acknowledge"],
                agent_id,
                [task for task, _ in attempts],
                [number for _, number in attempts],
                idempotent=True,
            )

    async def report(self, task_id: str, number: int, words: Words, lease: timedelta) -> Said | None:
        """Protocol row *report*, gathered; None: not this runner's any more."""
        return await self._reports.call(_Message(task_id, number, words, lease))

    async def publish(self, task_id: str, number: int, words: Words, lease: timedelta) -> Said | None:
        """Protocol row *publish*, gathered: the lease, unless another attempt's lives; None: as `report`."""
        return await self._publishes.call(_Message(task_id, number, words, lease))

    async def finish(
        self, task_id: str, number: int, words: Words, state: str, outputs: Sequence[Mapping[str, Any]]
    ) -> Said | None:
        """Protocol row *finish*, gathered: the terminal state, with room and lease given back in the same statement."""
        return await self._finishes.call(_Message(task_id, number, words, state=state, outputs=outputs))

    async def _report_batch(self, batch: Sequence[_Message]) -> list[Said | Exception | None]:
        return await self._leasing("report", batch)

    async def _publish_batch(self, batch: Sequence[_Message]) -> list[Said | Exception | None]:
        return await self._leasing("publish", batch)

    async def _leasing(self, name: str, batch: Sequence[_Message]) -> list[Said | Exception | None]:
        # The span is the deployment's, the same for all.
        def more(part: Sequence[_Message]) -> list[Any]:
            return [[message.words.started for message in part], batch[0].lease]

        return await self._say(name, batch, more)

    async def _finish_batch(self, batch: Sequence[_Message]) -> list[Said | Exception | None]:
        def more(part: Sequence[_Message]) -> list[Any]:
            return [[message.state for message in part], [_json(message.outputs) for message in part]]

        return await self._say("finish", batch, more)

    async def _say(
        self, name: str, batch: Sequence[_Message], more: Callable[[Sequence[_Message]], list[Any]]
    ) -> list[Said | Exception | None]:
        async def ask(part: list[_Message]) -> dict[str, Said]:
            rows = await self._database.fetch(
                self._sql[name],
                [message.task_id for message in part],
                [message.number for message in part],
                [message.words.instance for message in part],
                [message.words.version for message in part],
                [_json(message.words.snapshot) for message in part],
                [None if message.words.tails is None else _json(message.words.tails) for message in part],
                *more(part),
                idempotent=True,
                within=WITHIN_WRITE,
            )
            return {row["task_id"]: Said(row["stop"], row["leased"], row["done"]) for row in rows}

        return await one_of_each(batch, lambda message: message.task_id, ask)

    async def close(
        self,
        task_id: str,
        number: int,
        kind: Literal["failed", "stopped", "lost"],
        *,
        note: str,
        max_attempts: int,
        backoff: timedelta,
        retry: bool = True,
        instance: str | None = None,
        holder: Holder | None = None,
        version: int | None = None,
        words: Words | None = None,
        poll: tuple[int, int] | None = None,
    ) -> Closed | None:
        """Protocol rows *failed*, *stopped* (runner: `instance`) and *lost attempt* (owner: `holder`, `version`).

        `poll` is the session and number of the poll that it was missing from. None: the guard did not hold, and
        nothing has changed.
        """
        row = await self._database.fetchrow(
            self._sql["close_attempt"],
            task_id,
            number,
            kind,
            note,
            max_attempts,
            backoff,
            instance,
            None if holder is None else holder.replica_id,
            None if holder is None else holder.epoch,
            version,
            None if words is None else words.snapshot,
            None if words is None else words.tails,
            retry,
            None if words is None else words.version,
            None if poll is None else poll[0],
            None if poll is None else poll[1],
            idempotent=True,
        )
        return None if row is None else Closed(row["phase"], row["state"])

    async def said_before(self, task_id: str, number: int, words: Words) -> bool:
        """Whether this very message closed the attempt, and is only repeated."""
        return bool(
            await self._database.fetchval(self._sql["said_before"], task_id, number, words.instance, words.version)
        )

    async def store_handle(
        self, holder: Holder, task_id: str, number: int, version: int, handle: dict[str, Any]
    ) -> int | None:
        """Protocol row *launch*: the row's new version, or None when it is not this holder's any more."""
        version_now: int | None = await self._database.fetchval(
            self._sql["store_handle"], task_id, number, version, holder.replica_id, holder.epoch, handle
        )
        return version_now

    async def mark_released(self, task_id: str, number: int) -> None:
        """The backend holds nothing of this attempt any more."""
        await self._database.execute(self._sql["mark_released"], task_id, number, idempotent=True)

    async def held(self, holder: Holder, task_id: str | None = None) -> list[Held]:
        """What this holder follows: all, or one task."""
        rows = await self._database.fetch(
            self._sql["held_attempts"], holder.replica_id, holder.epoch, task_id, idempotent=True
        )
        return [Held(*row.values()) for row in rows]

    async def count_crash(self, holder: Holder, task_id: str, number: int) -> tuple[int, int] | None:
        """Count that following this attempt raised: crashes so far and the row's new version."""
        row = await self._database.fetchrow(self._sql["count_crash"], task_id, number, holder.replica_id, holder.epoch)
        return None if row is None else (row["crashes"], row["version"])

    async def suspect(self, holder: Holder, task_id: str, number: int) -> int | None:
        """Count a crash before acting on this row: should we die of it, the count stays. The count; None: not ours."""
        crashes: int | None = await self._database.fetchval(
            self._sql["suspect"], task_id, number, holder.replica_id, holder.epoch
        )
        return crashes

    async def acquit(self, holder: Holder, task_id: str, number: int, crashes: int) -> None:
        """Take back what `suspect` counted, its answer: acting on this row did no harm."""
        await self._database.execute(
            self._sql["acquit"], task_id, number, holder.replica_id, holder.epoch, crashes, idempotent=True
        )

    async def reset_crashes(self, holder: Holder, task_ids: Sequence[str]) -> None:
        """A minute of life of whoever follows these tasks."""
        if task_ids:
            await self._database.execute(self._sql["reset_crashes"], list(task_ids), holder.replica_id, holder.epoch)

    async def exists(self, task_id: str, number: int) -> bool:
        """Whether there is such an attempt, open or closed."""
        return bool(await self._database.fetchval(self._sql["attempt_of"], task_id, number))


def _json(value: Any) -> str:
    return pydantic_core.to_json(value).decode()


def words_of(instance: str, version: int, snapshot: dict[str, Any]) -> Words:
    """Split a runner's snapshot (plain JSON) into what goes into the row and the tails that go beside it."""
    executors = snapshot.get("executors", [])
    tails = [{name: executor.pop(name, "") for name in ("stdout", "stderr")} for executor in executors]
    return Words(
        instance=instance,
        version=version,
        snapshot=snapshot,
        tails=tails if any(tail["stdout"] or tail["stderr"] for tail in tails) else None,
        started=bool(executors),
    )
