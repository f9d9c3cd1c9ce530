"""The use cases of TES: create, get, list and cancel tasks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import anyio

from tesgate.errors import BadRequest, TaskNotFound, Unavailable
from tesgate.model.caller import Caller
from tesgate.model.ids import TaskIds, is_task_id
from tesgate.model.intake import IntakeRules, accept
from tesgate.model.pools import PoolRule, allowed_pools, check_pool
from tesgate.model.records import Inserted, ListQuery, NewTask, TaskRecord, View
from tesgate.services.dialects import OldDialect
from tesgate.services.views import task_json

__all__ = ["TaskStore", "Tasks", "decode_page_token", "encode_page_token"]

_MAX_KEY = 255

FIRST_SLICE = 16
LARGEST_SLICE = 128
"""Whole tasks that a list reads at once: as many as have some `SLICE_BYTES` together, going by those before."""
SLICE_BYTES = 1 << 19
PAGE_BYTES = 8 << 20
"""A list's page of whole tasks is complete when it has so many bytes."""
LARGE_WAIT_SECONDS = 20.0
LARGE_PAGES = 2
"""Pages of whole tasks that are put together at the same time; the next one waits for its turn."""


class TaskStore(Protocol):
    """What the service needs of the store. Every method is one short transaction and sees only the caller's tasks."""

    async def insert_task(self, caller: Caller, new: NewTask) -> Inserted:
        """Store `new`; returns after the commit. Raises `IdempotencyConflict`."""

    async def get_task(self, caller: Caller, task_id: str, *, full: bool) -> TaskRecord:
        """Read one task; without `full` streams, content and system logs may be left out. Raises `TaskNotFound`."""

    async def get_state(self, caller: Caller, task_id: str) -> str:
        """Read a task's state, the leanest way. Raises `TaskNotFound`."""

    async def get_tasks(self, caller: Caller, task_ids: Sequence[str], *, full: bool) -> list[TaskRecord]:
        """Read several tasks, in this order; those that are gone are left out."""

    async def list_tasks(self, caller: Caller, query: ListQuery) -> list[TaskRecord]:
        """Ids and states of at most `query.limit` tasks, newest first."""

    async def cancel_task(self, caller: Caller, task_id: str) -> str:
        """Record the wish; returns the new state. Idempotent: an ended task stays as it is. Raises `TaskNotFound`."""


class Tasks:
    """What can be done with tasks, whoever asks."""

    def __init__(
        self,
        *,
        store: TaskStore,
        rules: IntakeRules,
        new_id: Callable[[], str] | None = None,
        share_with_group: bool = False,
        pools: Sequence[PoolRule] = (),
    ) -> None:
        """`share_with_group`: members of a caller's first group see and cancel what the caller submits."""
        self._share_with_group = share_with_group
        self._pools = pools
        self._large = anyio.Semaphore(LARGE_PAGES)
        self._store = store
        self._rules = rules
        self._new_id = new_id or TaskIds()

    async def create(self, caller: Caller, body: Any, *, idempotency_key: str | None = None) -> Inserted:
        """Check `body` (decoded JSON) and store it. The answer comes after the commit."""
        if idempotency_key is not None and not (0 < len(idempotency_key) <= _MAX_KEY and idempotency_key.isprintable()):
            raise BadRequest(f"Idempotency-Key: must be 1 to {_MAX_KEY} printable characters, such as a random UUID.")
        accepted = accept(body, self._rules)
        pools = allowed_pools(self._pools, caller)
        check_pool(accepted.pool, pools)
        new = NewTask(
            id=self._new_id(),
            owner=caller.subject,
            group=caller.groups[0] if caller.groups and self._share_with_group else None,
            name=accepted.document.get("name"),
            document=accepted.document,
            tags=accepted.tags,
            need=accepted.need,
            idempotency_key=idempotency_key,
            body_hash=_body_hash(body) if idempotency_key is not None else None,
            notes=accepted.notes,
            pools=pools,
        )
        return await self._store.insert_task(caller, new)

    async def state(self, caller: Caller, task_id: str) -> str:
        """State of one task. Raises `TaskNotFound`."""
        if not is_task_id(task_id):
            raise TaskNotFound(task_id)
        return await self._store.get_state(caller, task_id)

    async def get(self, caller: Caller, task_id: str, view: View, *, old: OldDialect | None = None) -> bytes:
        """One task in one view, as JSON; `old`: in the dialect of TES 1.0. Raises `TaskNotFound`."""
        if not is_task_id(task_id):
            raise TaskNotFound(task_id)
        return task_json(await self._store.get_task(caller, task_id, full=view == "FULL"), view, old=old)

    async def page(
        self,
        caller: Caller,
        *,
        view: View,
        page_size: int,
        page_token: str | None = None,
        name_prefix: str | None = None,
        states: Sequence[str] | None = None,
        tags: tuple[tuple[str, str | None], ...] = (),
        old: OldDialect | None = None,
    ) -> list[bytes]:
        """One page, newest first: a ``ListTasksResponse`` as pieces of JSON.

        A page of large tasks ends early, at `PAGE_BYTES` (but never before its first task). `states`: only tasks in one
        of them (None: in any). `old`: in the dialect of TES 1.0.
        """
        query = ListQuery(
            limit=page_size + 1,  # one more than shown: that is how the last page is known
            name_prefix=name_prefix,
            states=states or (),
            tags=tags,
            after=decode_page_token(page_token) if page_token else None,
        )
        # A state that nothing is ever shown in has an empty list.
        found = [] if states is not None and not states else await self._store.list_tasks(caller, query)
        shown = found[:page_size]
        last = shown[-1].id if len(found) > page_size else None
        if view == "MINIMAL":
            tasks = [b",".join([task_json(task, view, old=old) for task in shown])]
        else:
            with anyio.move_on_after(LARGE_WAIT_SECONDS) as waiting:
                await self._large.acquire()
            if waiting.cancelled_caught:
                raise Unavailable("Too many pages of whole tasks are being read now; send the same request again.")
            try:
                tasks, stopped_at = await self._documents(caller, [task.id for task in shown], view, old)
            finally:
                self._large.release()
            last = stopped_at or last
        end = b"]}" if last is None else b'],"next_page_token":"%b"}' % encode_page_token(last).encode()
        return [b'{"tasks":[', *tasks, end]

    async def _documents(
        self, caller: Caller, task_ids: Sequence[str], view: View, old: OldDialect | None
    ) -> tuple[list[bytes], str | None]:
        """The tasks' documents, and the id after which the page had to stop.

        Read and written slice by slice: the event loop serves others in between, and memory holds one slice of rows.
        """
        pieces: list[bytes] = []
        size, last = 0, ""
        start, count = 0, FIRST_SLICE
        while ids := task_ids[start : start + count]:
            for task in await self._store.get_tasks(caller, ids, full=view == "FULL"):
                if pieces and size >= PAGE_BYTES:
                    return pieces, last
                piece = task_json(task, view, old=old)
                size += len(piece)
                pieces += (b",", piece) if pieces else (piece,)
                last = task.id
            start += len(ids)
            count = max(1, min(LARGEST_SLICE, SLICE_BYTES * start // max(size, 1)))
        return pieces, None

    async def cancel(self, caller: Caller, task_id: str) -> str:
        """Ask for a task's end; a task that has ended stays as it is. Raises `TaskNotFound`."""
        if not is_task_id(task_id):
            raise TaskNotFound(task_id)
        return await self._store.cancel_task(caller, task_id)


def _body_hash(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def encode_page_token(last_id: str) -> str:
    """Opaque token of the page after `last_id`; it holds no state of ours and thus outlives restarts and inserts."""
    raw = last_id.encode()
    return base64.urlsafe_b64encode(b"1" + zlib.crc32(raw).to_bytes(4, "big") + raw).rstrip(b"=").decode()


def decode_page_token(token: str) -> str:
    """Id after which the page begins. Raises `BadRequest` for anything that `encode_page_token` did not make."""
    try:
        raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    last_id = raw[5:].decode("ascii", "replace")
    # Compared as a whole: base64 has more than one spelling of the same bytes.
    if not is_task_id(last_id) or encode_page_token(last_id) != token.rstrip("="):
        raise BadRequest(
            "page_token: was not made by this service; give next_page_token of the page before as it is, "
            "or leave page_token away to begin with the first page"
        )
    return last_id
