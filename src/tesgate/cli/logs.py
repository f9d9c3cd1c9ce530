"""Reads the logs of a task piece by piece: from tesgate's own route, or from the FULL view of another server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tesgate.cli.client import TERMINAL
from tesgate.cli.failure import Exit, Failure

__all__ = ["LogReader", "LogSource"]


class LogSource(Protocol):
    """What is asked of the server."""

    def get(self, task_id: str, view: str = ...) -> dict[str, Any]:
        """Read one task."""

    def log_bytes(self, task_id: str, attempt: int, executor: int, stream: str, offset: int) -> bytes | None:
        """Bytes from `offset` on; None where there is no such route (or no such log yet)."""


class LogReader:
    """Remembers how far each log was read; `step` prints what is new."""

    def __init__(
        self,
        source: LogSource,
        task_id: str,
        *,
        streams: Sequence[str] = ("stdout", "stderr"),
        executor: int | None = None,
        attempt: int | None = None,
    ) -> None:
        self._source = source
        self._task_id = task_id
        self._streams = tuple(streams)
        self._executor = executor
        self._attempt = attempt
        self._read: dict[tuple[int, int, str], int] = {}
        self._shown: set[tuple[int, int, str]] = set()

    def step(self, write: Callable[[str, bytes], None]) -> bool:
        """Give what is new to ``write(stream, data)``; whether more may come. Raises `Failure`."""
        # The state is read first: what is written before a terminal state is complete once that state is seen.
        task = self._source.get(self._task_id, "FULL")
        attempts = task.get("logs") or []
        if self._attempt is not None and self._attempt >= len(attempts) and task.get("state") in TERMINAL:
            raise Failure(f"There is no attempt {self._attempt + 1}; the task had {len(attempts)}.", Exit.NOT_FOUND)
        number = self._attempt if self._attempt is not None else max(len(attempts) - 1, 0)
        entries = list(attempts[number].get("logs") or []) if number < len(attempts) else []
        running = task.get("state") not in TERMINAL
        # A running executor has no entry yet; only tesgate's route can show it.
        count = min(len(entries) + running, max(len(task.get("executors") or []), len(entries)))
        for index in range(count):
            if self._executor in (None, index):
                for stream in self._streams:
                    self._read_one(number, index, stream, entries[index] if index < len(entries) else None, write)
        return running

    def _read_one(
        self,
        attempt: int,
        executor: int,
        stream: str,
        entry: dict[str, Any] | None,
        write: Callable[[str, bytes], None],
    ) -> None:
        key = (attempt, executor, stream)
        while key not in self._shown:
            offset = self._read.get(key, 0)
            data = self._source.log_bytes(self._task_id, attempt, executor, stream, offset)
            if data is None:
                if entry is not None:
                    if offset == 0:
                        write(stream, (entry.get(stream) or "").encode())
                    self._shown.add(key)
                return
            if not data:
                if entry is not None:
                    self._shown.add(key)
                return
            write(stream, data)
            self._read[key] = offset + len(data)
