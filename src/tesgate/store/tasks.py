"""Tasks as clients see them: submit, get, list, cancel, and the queue that the dispatcher reads.

Every method's first argument is the `Caller` or it is the system's own. Another caller's task is a task that does
not exist.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any

from pydantic_core import to_json

from tesgate.errors import IdempotencyConflict, TaskNotFound
from tesgate.model.caller import Caller
from tesgate.model.placement import AgentRoom, Candidate, Need
from tesgate.model.planning import local_paths
from tesgate.model.records import AttemptRecord, Inserted, ListQuery, NewTask, TaskRecord
from tesgate.store.agents import room_of
from tesgate.store.database import Database, Row
from tesgate.store.gather import Gather
from tesgate.store.queries import load_queries
from tesgate.store.wakes import Wakes

__all__ = ["Head", "TaskStore", "behind_prefix", "list_statement"]

INDEXED_NAME = 64
"""Characters of a name that its index has (schema.sql: task_name)."""
LAST_CHARACTER = 0x10FFFF

PATIENCE = 20.0
"""Seconds after which a client is told that the database is away; the statement under way by then may take its own
patience more. Workflow engines end a whole run for one 503, so it is worth the wait. A client that stops listening
earlier and submits again needs an Idempotency-Key, or may have two tasks."""
WITHIN = 3.0
"""Seconds in which a statement on a few rows has its answer, unless server or network hang."""
WITHIN_WRITE = 6.0
"""The same where disks must confirm, or many rows are looked at."""
WITHIN_LIST = 10.0
"""The same for a list of many conditions; the server ends one that takes four fifths of it."""
log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Head:
    """What a round of the dispatcher goes by."""

    candidates: list[Candidate]
    rooms: list[tuple[str, AgentRoom]]
    """Open agents with their pools; none where nothing waits."""
    more: bool
    """Behind these there may be others."""


class TaskStore:
    """Statements on ``task`` that act for a caller."""

    def __init__(self, *, database: Database, wakes: Wakes, ended: Callable[[str], None] = lambda state: None) -> None:
        """`ended(state)` is told of every task that ends by a statement of this store."""
        self._ended = ended
        self._database = database
        self._wakes = wakes
        self._newest_spans: tuple[float, Sequence[str]] = (0.0, ())
        self._sql = {**load_queries("tasks"), **load_queries("task_reads")}
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

    # the system's own

    async def waiting(self, limit: int) -> list[Candidate]:
        """The head of the queue: owners in turn, in each one's share the oldest first."""
        return (await self.head(limit)).candidates

    async def head(
        self,
        limit: int,
        *,
        served: str = "",
        known: Mapping[str, Sequence[tuple[str, bool]]] = MappingProxyType({}),
        behind: Mapping[str, str] = MappingProxyType({}),
    ) -> Head:
        """The head of the queue, from the owner behind `served` on, with the open agents of all pools.

        `known`: local paths of tasks that were seen before, by id; their documents are not read again. `behind`: of
        these owners only what stands behind these ids.
        """
        rows = await self._database.fetch(
            self._sql["waiting_tasks"],
            limit,
            served,
            list(known),
            list(behind),
            list(behind.values()),
            idempotent=True,
        )
        candidates = [
            Candidate(
                task_id=row["id"],
                version=row["version"],
                need=Need(row["need_cpu_milli"], row["need_ram_bytes"], row["need_disk_bytes"]),
                paths=tuple(known[row["id"]]) if row["id"] in known else _paths(row["document"]),
                age=row["age"],
                reason=row["wait_reason"],
                owner=row["owner"],
                last=row["last"],
            )
            for row in rows
        ]
        agents = (rows[0]["agents"] or []) if rows else []
        return Head(
            candidates=candidates,
            rooms=[(agent["pool"], room_of(agent)) for agent in agents],
            more=any(row["more"] for row in rows),
        )

    async def note_reasons(self, reasons: Mapping[str, str]) -> None:
        """Write down why tasks wait."""
        if reasons:
            sentences = [_storable(text) for text in reasons.values()]
            await self._database.execute(self._sql["note_reasons"], list(reasons), sentences)

    async def refuse(self, refused: Mapping[str, tuple[int, str]]) -> None:
        """End waiting tasks (id to version and sentence) that nothing here can ever run, in SYSTEM_ERROR."""
        if refused:
            await self._database.fetch(
                self._sql["refuse_waiting"],
                list(refused),
                [version for version, _ in refused.values()],
                [_storable(sentence) for _, sentence in refused.values()],
            )

    async def end_pending(self) -> list[str]:
        """Write the ends that waited for a publish lease which is now over; the tasks' ids."""
        rows = await self._database.fetch(self._sql["end_pending"])
        for row in rows:
            self._ended(row["state"])
        return [row["id"] for row in rows]

    async def counts(self) -> dict[tuple[str, str], int]:
        """Open tasks by state and backend (``none`` for those that nobody has)."""
        rows = await self._database.fetch(self._sql["task_counts"])
        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            key = (row["state"], row["backend"])
            counts[key] = counts.get(key, 0) + row["tasks"]
        return counts

    async def leases(self) -> int:
        """Attempts that hold a publish lease."""
        return await self._database.fetchval(self._sql["count_leases"]) or 0

    async def queue_age(self) -> float:
        """Seconds for which the oldest waiting task has been waiting; 0 with an empty queue."""
        return await self._database.fetchval(self._sql["oldest_waiting"]) or 0.0

    async def expired(self, keep: timedelta, limit: int, *, below: str, behind: str) -> list[str]:
        """Ended tasks older than `keep`, of those with an id below `below`, or from `behind` on."""
        rows = await self._database.fetch(self._sql["expired_tasks"], keep, limit, below, behind)
        return [row["id"] for row in rows]

    async def delete(self, task_ids: Sequence[str]) -> None:
        """Retention: rows of ended tasks go, with their attempts, tails and events."""
        await self._database.execute(self._sql["delete_tasks"], list(task_ids))

    async def keeping_logs(self, task_ids: Sequence[str], keep: timedelta | None) -> set[str]:
        """Which of these tasks' logs are still kept, `keep` after the end (None: as long as the row)."""
        return {row["id"] for row in await self._database.fetch(self._sql["keeping_logs"], list(task_ids), keep)}


def milli(cores: float) -> int:
    """Cores to the thousandths that rooms are counted in, rounded up."""
    return max(1, -int(-cores * 1000 // 1))


def visible(caller: Caller, owner: str, group: str | None) -> bool:
    """Whether `caller` may know of a task of this owner and group."""
    return caller.admin or owner == caller.subject or (group is not None and group in caller.groups)


def behind_prefix(prefix: str) -> str | None:
    """The first text behind all that begin with `prefix`, in the order of code points; None: there is none."""
    for length in range(len(prefix), 0, -1):
        number = ord(prefix[length - 1]) + 1
        if number <= LAST_CHARACTER:
            # No text has surrogates.
            return prefix[: length - 1] + chr(0xE000 if 0xD800 <= number <= 0xDFFF else number)
    return None


def list_statement(caller: Caller, query: ListQuery, spans: Sequence[str] = ()) -> tuple[str, list[Any]]:
    """A list's statement: fixed fragments and numbered arguments, only as many as the query has conditions.

    With `spans` (ids, newest first) it is one query behind the other, each for the ids from a span's begin on: whether
    a tag or a prefix is frequent is then judged for each span by itself, and nothing is read behind the one that fills
    the page. Over all at once PostgreSQL would take one way for all, and walk through years to find what is old.
    """
    arguments: list[Any] = []

    def argument(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    conditions: list[str] = []
    if not caller.admin:
        mine = f"owner = {argument(caller.subject)}"
        if caller.groups:
            mine = f'({mine} OR "group" = ANY({argument(list(caller.groups))}::text[]))'
        conditions.append(mine)
    if query.after is not None:
        conditions.append(f"id < {argument(query.after)}")
    states = [f"state = {argument(state)}" for state in query.states]
    if query.name_prefix:
        beginning = query.name_prefix[:INDEXED_NAME]
        conditions.append(f"left(name, {INDEXED_NAME}) >= {argument(beginning)}")
        if (end := behind_prefix(beginning)) is not None:
            conditions.append(f"left(name, {INDEXED_NAME}) < {argument(end)}")
        if beginning != query.name_prefix:
            conditions.append(f"starts_with(name, {argument(query.name_prefix)})")
    exact = {key: value for key, value in query.tags if value is not None}
    for key, value in query.tags:
        if value is None:
            conditions.append(f"tags ? {argument(key)}")
        elif exact[key] != value:
            conditions.append("false")  # one key cannot have two values
    if exact:
        conditions.append(f"tags @> {argument(exact)}::jsonb")
    limit = argument(query.limit)
    parts = []
    spans = [span for span in spans if query.after is None or span < query.after]
    for newer, span in zip([None, *spans], [*spans, None], strict=True):
        place = [f"id >= {argument(span)}"] if span is not None else []
        if newer is not None:
            place.append(f"id < {argument(newer)}")
        parts.append(f"({_page([*conditions, *place], states, limit)})")
    return f"{' UNION ALL '.join(parts)} LIMIT {limit}" if spans else parts[0][1:-1], arguments


def _page(conditions: Sequence[str], states: Sequence[str], limit: str) -> str:
    """One page's query. Of several states it is one query each, merged: each has an index in the right order.

    With all states in one condition PostgreSQL would read every task that is in them, and sort.
    """

    def page(*state: str) -> str:
        where = " AND ".join([*conditions, *state]) or "true"
        return f"SELECT id, state FROM task WHERE {where} ORDER BY id DESC LIMIT {limit}"  # noqa: S608

    if len(states) < 2:
        return page(*states)
    merged = " UNION ALL ".join(f"({page(state)})" for state in states)
    return f"SELECT id, state FROM ({merged}) AS pages ORDER BY id DESC LIMIT {limit}"  # noqa: S608


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


def _storable(text: str) -> str:
    """PostgreSQL holds no NUL and no half surrogate (the bytes of a file's name that are not UTF-8).

    A sentence that quotes one would end the statement, and with it the queue of everybody.
    """
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def _paths(document: Any) -> tuple[tuple[str, bool], ...]:
    """Local paths of a task. A document that cannot be read holds up nobody else: its own plan fails and says so."""
    try:
        return tuple(local_paths(document))
    except Exception:
        log.exception("a task's document cannot be read")
        return ()
