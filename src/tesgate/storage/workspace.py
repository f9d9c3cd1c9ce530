"""Where whole stdout and stderr lie: ``logs/<task>/<attempt>/<step>.<stream>`` below one directory or prefix.

The contract, and the workspace of files; `tesgate.storage.s3.workspace` is the one of objects.
"""

from __future__ import annotations

import heapq
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, Protocol

import anyio.to_thread

from tesgate.errors import Conflict, NotFound
from tesgate.model.ids import is_task_id

__all__ = ["FileWorkspace", "LogRange", "OffsetGap", "Stream", "Workspace", "log_name", "no_log"]

Stream = Literal["stdout", "stderr"]

_CHUNK = 256 * 1024


class OffsetGap(Conflict):
    """The bytes do not follow on what is there; `size` is where to go on."""

    def __init__(self, size: int) -> None:
        super().__init__(f"The log has {size} bytes so far; go on there.", headers={"upload-offset": str(size)})
        self.size = size


class LogRange(Protocol):
    """An open piece of a log. What is appended later is not in it. Must be read to its end, or closed."""

    @property
    def size(self) -> int:
        """Of the whole log, at the moment it was opened."""
        ...

    @property
    def start(self) -> int:
        """Where the piece begins."""
        ...

    @property
    def length(self) -> int:
        """Bytes of the piece."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The bytes; closes it at the end, and when the reader goes away."""
        ...

    def close(self) -> None:
        """Close without reading. Idempotent."""
        ...


class Workspace(Protocol):
    """What the gateway keeps of its tasks itself. No method holds more than a few chunks in memory.

    Where it cannot be reached now, a method raises `Unavailable` (or OSError): runners keep what they could not send.
    """

    async def write_at(self, task: str, attempt: int, step: int, stream: Stream, offset: int, data: bytes) -> int:
        """Write `data` at `offset` and return the log's size. It is there to stay, and to be read by every replica.

        Repeatable: the same bytes may be written again. What lies beyond the bound is dropped silently (the runner
        bounds it too). Raises `OffsetGap` where a hole would come about, so that whoever lost its place learns where to
        go on.
        """
        ...

    async def open_range(
        self, task: str, attempt: int, step: int, stream: Stream, start: int = 0, stop: int | None = None
    ) -> LogRange:
        """Open bytes ``start:stop`` (Python's rules, negative `start` counts from the end).

        Raises `NotFound` where nothing was written yet.
        """
        ...

    async def tasks(self, *, after: str, limit: int) -> list[str]:
        """Ids of tasks that have logs here, in order, from behind `after` on."""
        ...

    async def remove(self, task: str) -> None:
        """Remove all logs of a task; nothing there is success."""
        ...

    async def settle(self, task: str) -> None:
        """Give what has not been written to for long its final form; there may be nothing to do."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


def log_name(task: str, attempt: int, step: int, stream: Stream) -> str:
    """``<task>/<attempt>/<step>.<stream>``. Raises `NotFound` for what cannot be one.

    The names come from URLs: nothing but an id and two numbers ever becomes part of a path.
    """
    if not is_task_id(task) or attempt < 0 or step < 0 or stream not in ("stdout", "stderr"):
        raise NotFound("There is no such log.")
    return f"{task}/{int(attempt)}/{int(step)}.{stream}"


def no_log(attempt: int, step: int, stream: Stream) -> NotFound:
    """What is said where nothing was written yet."""
    return NotFound(f"There is no {stream} of executor {step} in attempt {attempt} (yet).")


@dataclass(frozen=True)
class _FileRange:
    size: int
    start: int
    length: int
    file: FileIO

    async def chunks(self) -> AsyncIterator[bytes]:
        position, left = self.start, self.length
        with self.file:
            while left > 0:
                chunk = await anyio.to_thread.run_sync(os.pread, self.file.fileno(), min(_CHUNK, left), position)
                if not chunk:
                    return
                yield chunk
                position, left = position + len(chunk), left - len(chunk)

    def close(self) -> None:
        self.file.close()


class FileWorkspace:
    """Files of this replica alone. Every method works in a thread; none holds more than one chunk in memory."""

    def __init__(self, root: Path, *, max_bytes: int = 1 << 30) -> None:
        self._logs = root / "logs"
        self._max_bytes = max_bytes

    async def write_at(self, task: str, attempt: int, step: int, stream: Stream, offset: int, data: bytes) -> int:
        """See `Workspace`."""
        path = self._path(task, attempt, step, stream)
        return await anyio.to_thread.run_sync(self._write_at, path, offset, data)

    async def open_range(
        self, task: str, attempt: int, step: int, stream: Stream, start: int = 0, stop: int | None = None
    ) -> LogRange:
        """See `Workspace`."""
        path = self._path(task, attempt, step, stream)
        try:
            file, size = await anyio.to_thread.run_sync(self._open, path)
        except FileNotFoundError:
            raise no_log(attempt, step, stream) from None
        first, last, _ = slice(start, stop).indices(size)
        length = max(0, last - first)
        return _FileRange(size, first, length, file)

    async def tasks(self, *, after: str, limit: int) -> list[str]:
        """See `Workspace`."""
        return await anyio.to_thread.run_sync(self._tasks, after, limit)

    async def remove(self, task: str) -> None:
        """See `Workspace`."""
        if is_task_id(task):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(self._logs / task, ignore_errors=True))

    async def settle(self, task: str) -> None:
        """Files grow in place."""

    async def aclose(self) -> None:
        """Nothing is held open."""

    def _path(self, task: str, attempt: int, step: int, stream: Stream) -> Path:
        return self._logs / log_name(task, attempt, step, stream)

    def _tasks(self, after: str, limit: int) -> list[str]:
        if not self._logs.is_dir():
            return []
        with os.scandir(self._logs) as entries:
            return heapq.nsmallest(limit, (entry.name for entry in entries if entry.name > after))

    def _write_at(self, path: Path, offset: int, data: bytes) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, flags, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if offset < 0 or offset > size:
                if offset >= self._max_bytes:
                    return size
                raise OffsetGap(size)
            view = memoryview(data)[: max(0, self._max_bytes - offset)]
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
            return max(size, offset)
        finally:
            os.close(descriptor)

    @staticmethod
    def _open(path: Path) -> tuple[FileIO, int]:
        file = FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")
        return file, os.fstat(file.fileno()).st_size
