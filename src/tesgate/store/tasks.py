"""Tasks as clients see them: submit, get, list, cancel.

Every method's first argument is the `Caller` or it is the system's own. Another caller's task is a task that does
not exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any

from pydantic_core import to_json

from tesgate.errors import IdempotencyConflict, TaskNotFound
from tesgate.model.caller import Caller
from tesgate.model.records import AttemptRecord, Inserted, ListQuery, NewTask, TaskRecord
from tesgate.store.database import WITHIN, WITHIN_LIST, WITHIN_WRITE, Database, Row
from tesgate.store.gather import Gather
from tesgate.store.lists import behind_prefix, list_statement
from tesgate.store.queue import Head, TaskQueue
from tesgate.store.wakes import Wakes

__all__ = ["Head", "TaskStore", "behind_prefix", "list_statement"]

PATIENCE = 20.0
"""Seconds after which a client is told that the database is away; the statement under way by then may take its own
patience more. Workflow engines end a whole run for one 503, so it is worth the wait. A client that stops listening
earlier and submits again needs an Idempotency-Key, or may have two tasks."""


@dataclass(frozen=True, slots=True)
class _Owned:
    owner: str
    group: str | None
    state: str


@dataclass(frozen=True, slots=True)
class _Read:
    owner: str
    group: str | None
    task: TaskRecord


class TaskStore(TaskQueue):
    """Statements on ``task`` that act for a caller."""

    def __init__(self, *, database: Database, wakes: Wakes, ended: Callable[[str], None] = lambda state: None) -> None:
        """`ended(state)` is told of every task that ends by a statement of this store."""
        super().__init__(database=database, ended=ended)
        self._wakes = wakes
        self._newest_spans: tuple[float, Sequence[str]] = (0.0, ())
        self._inserts: Gather[NewTask, Inserted] = Gather(self._insert_batch, max_batch=200, patience=PATIENCE)
        self._states: Gather[str, _Owned | None] = Gather(self._state_batch, max_batch=500, patience=PATIENCE)
        # One by one, but only so many at once: they leave connections to others, and wait for a database that is away.
        self._cancels: Gather[tuple[Caller, str], str] = Gather(
            self._cancel, max_batch=1, concurrency=4, patience=PATIENCE
        )
        self._lists: Gather[tuple[Caller, ListQuery], list[TaskRecord]] = Gather(
            self._list, max_batch=1, concurrency=2, patience=PATIENCE
        )
        self._slices: Gather[tuple[bool, Sequence[str]], list[_Read]] = Gather(
            self._slice, max_batch=1, concurrency=2, patience=PATIENCE
        )
        # Small batches: documents may be large.
        self._basic: Gather[str, _Read | None] = Gather(
            partial(self._task_batch, False), max_batch=32, patience=PATIENCE
        )
        self._full: Gather[str, _Read | None] = Gather(partial(self._task_batch, True), max_batch=32, patience=PATIENCE)

    def gathered(self) -> dict[str, tuple[int, int]]:
        """Calls and batches so far, by what was gathered."""
        return {name: (g.calls, g.batches) for name, g in (("inserts", self._inserts), ("states", self._states))}

    # submit

    async def insert_task(self, caller: Caller, new: NewTask) -> Inserted:
        """Protocol row *submit*; returns after the commit.

        Raises `IdempotencyConflict` when the key was used with another body.
        """
        del caller  # the owner stands in `new`
        inserted = await self._inserts.call(new)
        if not inserted.existed:
            self._wakes.queue()
        return inserted

    async def _insert_batch(self, batch: Sequence[NewTask]) -> list[Inserted | Exception]:
        rows = await self._database.fetch(
            self._sql["insert_tasks"],
            [new.id for new in batch],
            [new.owner for new in batch],
            [new.group for new in batch],
            [new.name or "" for new in batch],
            [to_json(new.document).decode() for new in batch],
            [to_json(new.tags).decode() for new in batch],
            [to_json(new.notes).decode() for new in batch],
            [milli(new.need.cpu_cores) for new in batch],
            [new.need.ram_bytes for new in batch],
            [new.need.disk_bytes for new in batch],
            [new.idempotency_key for new in batch],
            [new.body_hash for new in batch],
            [new.need.gpus for new in batch],
            [None if new.pools is None else ",".join(new.pools) for new in batch],
            idempotent=True,
            within=WITHIN_WRITE,
        )
        made = {row["id"] for row in rows}
        return [Inserted(new.id, False) if new.id in made else await self._existing(new) for new in batch]

    async def _existing(self, new: NewTask) -> Inserted | Exception:
        row = await self._database.fetchrow(
            self._sql["find_idempotent"], new.id, new.owner, new.idempotency_key, idempotent=True, within=WITHIN
        )
        if row is None:
            return RuntimeError("a task vanished between its insert and its reading")
        if row["id"] == new.id:
            return Inserted(new.id, False)  # the connection was lost after the commit, and the insert was sent again
        if row["body_hash"] != new.body_hash:
            return IdempotencyConflict()
        return Inserted(row["id"], True)

    # read

    async def get_state(self, caller: Caller, task_id: str) -> str:
        """The state alone (MINIMAL); gathered. Raises `TaskNotFound`."""
        owned = await self._states.call(task_id)
        if owned is None or not visible(caller, owned.owner, owned.group):
            raise TaskNotFound(task_id)
        return owned.state

    async def _state_batch(self, batch: Sequence[str]) -> list[_Owned | Exception | None]:
        rows = await self._database.fetch(self._sql["get_states"], list(set(batch)), within=WITHIN)
        found = {row["id"]: _Owned(row["owner"], row["group"], row["state"]) for row in rows}
        return [found.get(task_id) for task_id in batch]

    async def get_task(self, caller: Caller, task_id: str, *, full: bool) -> TaskRecord:
        """The whole task; tails and system logs only where `full`; gathered. Raises `TaskNotFound`."""
        read = await (self._full if full else self._basic).call(task_id)
        if read is None or not visible(caller, read.owner, read.group):
            raise TaskNotFound(task_id)
        return read.task

    async def get_tasks(self, caller: Caller, task_ids: Sequence[str], *, full: bool) -> list[TaskRecord]:
        """Those of these tasks that there still are, in this order, read by one statement."""
        found = await self._slices.call((full, task_ids))
        return [read.task for read in found if visible(caller, read.owner, read.group)]

    async def _slice(self, batch: Sequence[tuple[bool, Sequence[str]]]) -> list[list[_Read] | Exception]:
        return [[read for read in await self._task_batch(*one) if isinstance(read, _Read)] for one in batch]

    async def _task_batch(self, full: bool, batch: Sequence[str]) -> list[_Read | Exception | None]:
        rows = await self._database.fetch(self._sql["get_tasks"], list(dict.fromkeys(batch)), full, within=WITHIN_WRITE)
        found: dict[str, _Read] = {}
        for task_id, group in groupby(rows, key=lambda row: row["id"]):
            attempts = list(group)
            first = attempts[0]
            told = [] if first["number"] is None else attempts
            task = _task_record(first, told, notes=first["task_notes"], full=full)
            found[task_id] = _Read(first["owner"], first["group"], task)
        return [found.get(task_id) for task_id in batch]

    async def list_tasks(self, caller: Caller, query: ListQuery) -> list[TaskRecord]:
        """Ids and states of one page, newest first: only what `caller` may see. `get_tasks` reads the rest."""
        return await self._lists.call((caller, query))

    async def _list(self, batch: Sequence[tuple[Caller, ListQuery]]) -> list[list[TaskRecord] | Exception]:
        ((caller, query),) = batch
        sql, arguments = list_statement(caller, query, await self._spans() if query.tags or query.name_prefix else ())
        rows = await self._database.fetch(sql, *arguments, idempotent=True, within=WITHIN_LIST, custom_plan=True)
        return [[TaskRecord(row["id"], row["state"]) for row in rows]]

    async def _spans(self) -> Sequence[str]:
        """Where the newer partitions begin, newest first; a minute old at most, for nothing depends on it but time."""
        read_at, spans = self._newest_spans
        if time.monotonic() - read_at > 60 or not spans:
            rows = await self._database.fetch(self._sql["newest_partitions"], within=WITHIN)
            spans = [row["lower"] for row in rows]
            self._newest_spans = (time.monotonic(), spans)
        return spans

    async def list_events(self, caller: Caller, task_id: str) -> list[dict[str, Any]]:
        """What was decided about a task, in order. Raises `TaskNotFound`."""
        await self.get_state(caller, task_id)
        rows = await self._database.fetch(self._sql["list_events"], task_id)
        return [{**dict(row), "at": _time(row["at"])} for row in rows]

    # cancel

    async def cancel_task(self, caller: Caller, task_id: str) -> str:
        """Protocol row *cancel*; the state that the task has now. Idempotent, a terminal task stays as it is.

        Raises `TaskNotFound`.
        """
        return await self._cancels.call((caller, task_id))

    async def _cancel(self, batch: Sequence[tuple[Caller, str]]) -> list[str | Exception]:
        ((caller, task_id),) = batch
        row = await self._database.fetchrow(
            self._sql["cancel_task"],
            task_id,
            caller.admin,
            caller.subject,
            list(caller.groups),
            idempotent=True,
            within=WITHIN_WRITE,
        )
        if row is None:
            return [TaskNotFound(task_id)]
        if row["changed"]:
            self._wakes.task(task_id)
            if row["agent_id"] is not None:
                self._wakes.agent(row["agent_id"])
        state: str = row["state"]
        if row["changed"] and state == "CANCELED":
            self._ended(state)
        return [state]


def milli(cores: float) -> int:
    """Cores to the thousandths that rooms are counted in, rounded up."""
    return max(1, -int(-cores * 1000 // 1))


def visible(caller: Caller, owner: str, group: str | None) -> bool:
    """Whether `caller` may know of a task of this owner and group."""
    return caller.admin or owner == caller.subject or (group is not None and group in caller.groups)


def _task_record(row: Row, attempts: Sequence[Row], *, notes: Sequence[str], full: bool) -> TaskRecord:
    records = [_attempt_record(attempt, full=full) for attempt in attempts]
    extra = [*notes]
    if row["phase"] == "waiting" and row["wait_reason"]:
        extra.append(row["wait_reason"])
    if full and extra:
        # What was said before the first attempt, and why it waits, stands in the entry that clients read.
        first = records[0] if records else AttemptRecord(number=1)
        records[:1] = [_with_notes(first, before=notes)]
        if len(extra) > len(notes):
            records[-1:] = [_with_notes(records[-1], after=extra[len(notes) :])]
    return TaskRecord(row["id"], row["state"], row["document"], row["created_at"], tuple(records))


def _with_notes(record: AttemptRecord, *, before: Sequence[str] = (), after: Sequence[str] = ()) -> AttemptRecord:
    return AttemptRecord(
        record.number,
        record.start_time,
        record.end_time,
        record.executors,
        (*before, *record.system_logs, *after),
        record.outputs,
        record.metadata,
    )


def _attempt_record(row: Row, *, full: bool) -> AttemptRecord:
    snapshot: Mapping[str, Any] = row["snapshot"] or {}
    executors = [dict(executor) for executor in snapshot.get("executors", [])]
    for executor, tail in zip(executors, row["tails"] or [], strict=False):
        executor.update(tail)
    metadata = {str(key): str(value) for key, value in snapshot.get("metadata", {}).items()}
    if row["backend"]:
        metadata["backend"] = row["backend"]
    return AttemptRecord(
        number=row["number"],
        start_time=_time(row["reported_at"]),
        end_time=_time(row["ended_at"]),
        executors=tuple(executors),
        system_logs=(*snapshot.get("system_logs", []), *row["notes"]) if full else (),
        outputs=tuple(row["outputs"] or ()),
        metadata=metadata,
    )


def _time(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
