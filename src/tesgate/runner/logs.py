"""Follows the executors' stdout and stderr on the host and sends what is new to the gateway's workspace."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial
from typing import Callable, Dict, List, Optional, Tuple

import anyio
import anyio.to_thread

from .gateway import Backoff, Conflict, GatewayClient, GatewayFault, Gone
from .journal import Journal
from .places import open_place
from .report import AttemptRef
from .transfer.faults import PathRefused

__all__ = ["LogFollower", "decode_tail"]

CHUNK = 1 << 20
TICK = 1.0
_NOTED = 16 << 20
"""So many bytes may be sent again by a runner that starts anew."""


def decode_tail(data: bytes, limit: int) -> str:
    """Turn the end of a stream into text that any database stores: UTF-8 with replacement, without NUL."""
    return data[-limit:].decode("utf-8", "replace").replace("\0", "\ufffd") if limit > 0 else ""


@dataclass
class _Stream:
    executor: int
    name: str
    place: str
    offset: int = 0
    """Everything before it has been sent."""
    noted: int = 0
    size: int = 0
    handle: Optional[int] = None
    ended: bool = False
    spare: Tuple[int, bytes] = (0, b"")
    """Offset and bytes of the tail, for where the file itself cannot be reached."""

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            os.close(handle)


class LogFollower:
    """All streams of one attempt, sent one after the other; nobody waits, except in `drained`.

    `changed(executor, stream, tail)` is called when a running executor has written something.
    """

    def __init__(
        self,
        *,
        client: GatewayClient,
        ref: AttemptRef,
        token: str,
        journal: Journal,
        attempt_dir: str,
        cap: int,
        tail_bytes: int,
        changed: Callable[[int, str, str], None],
        log: logging.LoggerAdapter,  # type: ignore[type-arg]  # 3.9 cannot subscript it at run time
    ) -> None:
        self._client, self._ref, self._token, self._journal = client, ref, token, journal
        self._attempt_dir, self._cap, self._tail_bytes = attempt_dir, cap, tail_bytes
        self._changed, self._log = changed, log
        self._streams: Dict[Tuple[int, str], _Stream] = {}
        self._event: Optional[anyio.Event] = None
        self._idle: Optional[anyio.Event] = None
        self._sent = 0
        self._given_up = False
        self.open_live: Optional[Callable[[str], int]] = None
        """Opens streams in mounts of roots (places that begin with ``live/``)."""

    def follow(self, executor: int, name: str, place: str) -> None:
        """Begin to follow one stream of a running executor; idempotent."""
        if (executor, name) not in self._streams:
            noted = self._journal.find("logged", executor=executor, stream=name)
            offset = int(noted["offset"]) if noted is not None else 0
            self._streams[executor, name] = _Stream(executor, name, place, offset=offset, noted=offset)
        self._wake()

    def end(self, executor: int, name: str, place: str, size: int, tail: bytes) -> None:
        """Say that a stream has ended with `size` bytes in all, the last of which are `tail`."""
        self.follow(executor, name, place)
        stream = self._streams[executor, name]
        stream.ended, stream.size = True, size
        stream.spare = (max(0, size - len(tail)), tail)
        if self._rest(stream) <= 0:
            self._finish(stream)
        self._wake()

    def unsent(self) -> int:
        """Return the bytes that ended streams still have to send."""
        return sum(max(0, self._rest(stream)) for stream in self._streams.values() if stream.ended)

    async def drained(self, patience: float) -> bool:
        """Wait until every ended stream has been sent; False when nothing moved for `patience` seconds."""
        while self.unsent() and not self._given_up:
            before = self._sent
            self._idle = anyio.Event()
            with anyio.move_on_after(patience):
                await self._idle.wait()
            if self.unsent() and self._sent == before:
                return False
        return not self._given_up

    async def run(self) -> None:
        """Send what is new, about once a second, until cancelled; at once when a stream has ended."""
        backoff = Backoff()
        try:
            while not self._given_up:
                self._event = anyio.Event()
                busy = False
                try:
                    for stream in list(self._streams.values()):
                        busy = await self._step(stream) or busy
                    backoff.reset()
                except Gone:
                    self._give_up()
                    return
                except GatewayFault as exc:
                    self._log.info("no logs for now: %s", exc)
                    await self._client.pause(backoff.next())
                    continue
                if not busy:
                    with anyio.move_on_after(TICK if self._streams else None):
                        await self._event.wait()
        finally:
            for stream in self._streams.values():
                stream.close()

    # -- inside ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()

    def _moved(self) -> None:
        self._sent += 1
        if self._idle is not None:
            self._idle.set()

    def _give_up(self) -> None:
        self._given_up = True
        self._moved()

    def _rest(self, stream: _Stream) -> int:
        return min(stream.size, self._cap) - stream.offset

    def _finish(self, stream: _Stream) -> None:
        stream.close()
        self._streams.pop((stream.executor, stream.name), None)
        self._moved()

    async def _step(self, stream: _Stream) -> bool:
        """Look at one stream and send at most one chunk; True if there is more to do at once."""
        grown = self._look(stream)
        if grown and not stream.ended:
            tail = await anyio.to_thread.run_sync(partial(self._read, stream, max(0, grown - self._tail_bytes), grown))
            self._changed(stream.executor, stream.name, decode_tail(tail, self._tail_bytes))
        if self._rest(stream) > 0:
            offset, data, kept = await anyio.to_thread.run_sync(partial(self._chunk, stream))
            if data:
                try:
                    await self._client.put_log(self._ref, self._token, stream.executor, stream.name, offset, data)
                except Conflict as exc:
                    self._go_back(stream, offset, exc, kept)
                else:
                    stream.offset = offset + len(data)
                    self._moved()
            elif stream.ended:
                stream.offset = stream.size  # truncated by the task itself: there is nothing more to be had
        if stream.ended and self._rest(stream) <= 0:
            self._journal.append("logged", executor=stream.executor, stream=stream.name, offset=stream.offset)
            self._finish(stream)
        elif stream.offset - stream.noted >= _NOTED:
            self._journal.append("logged", executor=stream.executor, stream=stream.name, offset=stream.offset)
            stream.noted = stream.offset
        return self._rest(stream) > 0

    def _go_back(self, stream: _Stream, sent: int, exc: Conflict, kept: bool) -> None:
        """The gateway has less than we thought (another workspace, a full disk): go on where it says, if we can."""
        if exc.offset is None or exc.offset >= sent:
            raise exc
        if not kept:
            # Going back would lead here again, without end. The tail itself is in the executor's log all the same.
            self._log.warning("the gateway lacks a piece of %s that is gone here too: %s", stream.name, exc)
            stream.offset = stream.size  # only the tail is left, and it does not follow on what the gateway has
        else:
            stream.offset = stream.noted = exc.offset

    def _look(self, stream: _Stream) -> int:
        """Return the new size if the stream has grown, else 0."""
        if stream.handle is None:
            try:
                if self.open_live is not None and stream.place.startswith("live/"):
                    stream.handle = self.open_live(stream.place)
                else:
                    stream.handle = open_place(self._attempt_dir, stream.place)
            except (OSError, PathRefused):
                return 0  # not there yet, or the task has hidden it: at the end the tail must do
        size = os.fstat(stream.handle).st_size
        if stream.ended or size <= stream.size:
            return 0
        stream.size = size
        return size

    def _read(self, stream: _Stream, start: int, end: int) -> bytes:
        if stream.handle is None:
            return b""
        pieces: List[bytes] = []
        while start < end:
            piece = os.pread(stream.handle, end - start, start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def _chunk(self, stream: _Stream) -> Tuple[int, bytes, bool]:
        """Offset and bytes of what comes next, and whether the file has them (and all before them)."""
        end = min(stream.size, self._cap, stream.offset + CHUNK)
        if stream.handle is not None:
            data = self._read(stream, stream.offset, end)
            if data:
                return stream.offset, data, True
        if not stream.ended:
            return stream.offset, b"", False
        start, tail = stream.spare
        begin = max(start, stream.offset)
        return begin, tail[begin - start :][: max(0, self._cap - begin)], False
