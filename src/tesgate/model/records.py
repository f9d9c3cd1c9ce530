"""What goes into the store and what comes out of it, free of SQL and of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

__all__ = ["AttemptRecord", "Inserted", "ListQuery", "NewTask", "Resources", "TaskRecord", "View"]

View = Literal["MINIMAL", "BASIC", "FULL"]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task needs at least, defaults filled in."""

    cpu_cores: float
    ram_bytes: int
    disk_bytes: int
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class NewTask:
    """A checked request, ready to be inserted."""

    id: str
    owner: str
    group: str | None
    name: str | None
    document: Mapping[str, Any]
    """The request as the client is shown it again: no nulls, no read-only fields, ``type`` filled in."""
    tags: Mapping[str, str]
    need: Resources
    idempotency_key: str | None = None
    body_hash: str | None = None
    """SHA-256 (hex) of the body in canonical form; compared when `idempotency_key` comes again."""
    notes: Sequence[str] = ()
    """The first ``system_logs``, such as parameters that were dropped."""
    pools: Sequence[str] | None = None
    """Where it may go, as its owner's rights were at submission; None: to every pool that is everybody's."""


@dataclass(frozen=True, slots=True)
class Inserted:
    """Answer of an insert."""

    id: str
    existed: bool
    """The idempotency key was known: `id` is the first task's."""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt: one entry of TES ``logs[]``."""

    number: int
    start_time: datetime | str | None = None
    end_time: datetime | str | None = None
    executors: Sequence[Mapping[str, Any]] = ()
    """Each in the form of `tesgate.runner.report.ExecutorReport`."""
    system_logs: Sequence[str] = ()
    outputs: Sequence[Mapping[str, Any]] = ()
    """Each with ``url``, ``path`` and ``size_bytes`` (int)."""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task as the store knows it."""

    id: str
    state: str
    document: Mapping[str, Any] | str | None = None
    """As values or as the JSON text that was stored; None where only MINIMAL was asked."""
    created_at: datetime | None = None
    attempts: Sequence[AttemptRecord] = ()


@dataclass(frozen=True, slots=True)
class ListQuery:
    """One page of a list, newest first."""

    limit: int
    name_prefix: str | None = None
    states: Sequence[str] = ()
    """Only tasks in one of these; empty: whatever the state."""
    tags: Sequence[tuple[str, str | None]] = ()
    """Key and value that must both match; a value of None matches any value of that key."""
    after: str | None = None
    """Id of the last task of the page before."""
