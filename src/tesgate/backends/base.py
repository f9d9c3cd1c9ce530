"""The contract of everything that runs tasks. The unit is one attempt with all its executors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

__all__ = ["AttemptRef", "Backend", "BackendError", "Handle", "Launch", "Listed", "Lost", "Observation", "Running"]

Handle = dict[str, Any]
"""A backend's own small JSON, stored with the attempt."""


class BackendError(Exception):
    """A backend cannot do what was asked now; the caller tries again later. One sentence."""


@dataclass(frozen=True, slots=True)
class AttemptRef:
    """Names an attempt on a backend.

    A crash between launch and storing the handle is ordinary: `handle` may be None.
    """

    task_id: str
    number: int
    external_name: str
    handle: Handle | None = None
    agent_id: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What a backend needs to start an attempt."""

    ref: AttemptRef
    document: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """The backend still has it: queued, running or ending."""

    task_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The backend does not have it any more, and nobody has finished it."""

    task_id: str
    number: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Listed:
    """Everything that the backend has of ours was yielded once; from here on come changes."""


Observation = Running | Lost | Listed


class Backend(Protocol):
    """Where attempts run.

    All methods may be called by any replica and again after a crash. They raise `BackendError` when the backend
    does not answer; cancellation of the caller leaves nothing half done that a second call would not mend.
    """

    name: str
    """The name in rows, logs and metrics."""
    keeps: bool
    """The backend holds something of an attempt (a pod, a job) until `release`."""

    def check(self, document: Mapping[str, Any]) -> list[str]:
        """Pure. Warnings for backend parameters that this backend does not know."""
        ...

    async def launch(self, launch: Launch) -> Handle | None:
        """Create or adopt by external name; idempotent ("already exists" adopts), returns when accepted.

        None: there is nothing to store.
        """
        ...

    async def inspect(self, ref: AttemptRef) -> Observation:
        """One authoritative read: `Running`, or `Lost` when it is gone."""
        ...

    def watch(self) -> AsyncIterator[Observation]:
        """All of ours, then `Listed`, then changes, for ever; lists again by itself after a gap."""
        ...

    async def cancel(self, ref: AttemptRef, grace: timedelta) -> None:
        """Ask it to stop; idempotent, gone is success. That it has stopped is said by the runner or `inspect`."""
        ...

    async def release(self, ref: AttemptRef) -> None:
        """Remove what is left; idempotent; only called after the terminal state is stored."""
        ...
