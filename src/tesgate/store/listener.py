"""NOTIFY, both ways: it wakes, it never informs, and losing all of it costs one poll interval.

`Listener` holds a connection of its own and calls its subscribers with each payload. A payload is ids joined by commas,
and the empty one says "look at everything"; after every reconnect each subscriber gets that, because what was sent
meanwhile is lost. `Notifier` sends, gathered and never inside a task's own transaction: the commit lock of NOTIFY would
serialize all writers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anyio
import anyio.abc
import asyncpg

from tesgate.store.database import Database
from tesgate.store.errors import DatabaseUnavailable
from tesgate.store.faults import is_fault

__all__ = ["EVERYTHING", "Listener", "Notifier"]

logger = logging.getLogger(__name__)

EVERYTHING = ""
"""The payload that says: look at everything."""
PAYLOAD_BYTES = 7900
"""PostgreSQL takes payloads shorter than 8000 bytes."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 5.0

Subscriber = Callable[[str], None]


class Listener:
    """Listens on `channels` until cancelled, through every loss of the connection."""

    def __init__(
        self, dsn: str, *, channels: Sequence[str], ping: float = 5, first_wait: float = FIRST_WAIT_SECONDS
    ) -> None:
        """`ping`: seconds of silence after which the connection is tried, and which an answer may take."""
        self._dsn = dsn
        self._channels = tuple(channels)
        self._ping = ping
        self._first_wait = first_wait
        self._subscribers: dict[str, list[Subscriber]] = {channel: [] for channel in channels}

    def subscribe(self, channel: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every payload of `channel`; it must not block. Returns how to end that."""
        self._subscribers[channel].append(subscriber)

        def unsubscribe() -> None:
            if subscriber in self._subscribers[channel]:
                self._subscribers[channel].remove(subscriber)

        return unsubscribe

    def deliver(self, channel: str, payload: str) -> None:
        """Tell the subscribers of this process, as a notification would."""
        for subscriber in tuple(self._subscribers.get(channel, ())):
            try:
                subscriber(payload)
            except Exception:
                logger.exception("a subscriber of %s failed", channel)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Listen for ever; `started` once the first connection listens."""
        wait = self._first_wait
        started = False
        while True:
            lost = anyio.Event()
            connection: asyncpg.Connection[asyncpg.Record] | None = None
            try:
                connection = await self._connect(lost)
                wait = self._first_wait
                if not started:
                    started = True
                    task_status.started()
                for channel in self._channels:
                    self.deliver(channel, EVERYTHING)
                await self._watch(connection, lost)
                logger.warning("the connection that listens was lost")
            except Exception as exc:
                # Whatever it is (a failover that has no primary yet is none of the server's errors): nothing is lost by
                # trying again, and the gateway ends with this loop.
                logger.warning("cannot listen to the database: %s", exc, exc_info=not _is_known(exc))
            finally:
                if connection is not None:
                    connection.terminate()
            await anyio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    async def _connect(self, lost: anyio.Event) -> asyncpg.Connection[asyncpg.Record]:
        settings = {"application_name": "tesgate listener", "timezone": "UTC"}
        connection = await asyncpg.connect(self._dsn, timeout=max(self._ping, 1), server_settings=settings)
        try:
            connection.add_termination_listener(lambda _: lost.set())
            with anyio.fail_after(max(self._ping, 1)):
                for channel in self._channels:
                    await connection.add_listener(channel, self._receive)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _receive(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self.deliver(channel, str(payload))

    async def _watch(self, connection: asyncpg.Connection[asyncpg.Record], lost: anyio.Event) -> None:
        """Return when the connection is gone. A connection that is cut off says nothing: so it is asked."""
        while not lost.is_set():
            with anyio.move_on_after(self._ping):
                await lost.wait()
            if not lost.is_set():
                await connection.execute("SELECT 1", timeout=self._ping)


class Notifier:
    """Sends at most one NOTIFY for each channel in `interval` seconds, and wakes this process at once."""

    def __init__(self, database: Database, *, listener: Listener | None = None, interval: float = 0.02) -> None:
        self._database = database
        self._listener = listener
        self._interval = interval
        self._pending: dict[str, set[str]] = {}
        self._event = anyio.Event()

    def notify(self, channel: str, ids: Iterable[str] = ()) -> None:
        """Say that something about `ids` (none: about everything) changed. Call it after the commit; never blocks."""
        told = set(ids) or {EVERYTHING}
        if self._listener is not None:
            self._listener.deliver(channel, _payload(told))
        self._pending.setdefault(channel, set()).update(told)
        self._event.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send for ever. While the database is away what was to be said is kept."""
        task_status.started()
        while True:
            await self._event.wait()
            pending, self._pending, self._event = self._pending, {}, anyio.Event()
            try:
                await self._database.execute(
                    "SELECT pg_notify(channel, payload) FROM unnest($1::text[], $2::text[]) AS n(channel, payload)",
                    list(pending),
                    [_payload(ids) for ids in pending.values()],
                )
            except Exception as exc:
                if not isinstance(exc, DatabaseUnavailable) and not is_fault(exc):
                    logger.error("cannot notify: %s", exc, exc_info=not _is_known(exc))
                for channel in pending:
                    self._pending.setdefault(channel, set()).add(EVERYTHING)
                self._event.set()
                await anyio.sleep(1)
            await anyio.sleep(self._interval)


def _is_known(exc: Exception) -> bool:
    return isinstance(exc, asyncpg.PostgresError) or is_fault(exc)


def _payload(ids: set[str]) -> str:
    if EVERYTHING in ids:
        return EVERYTHING
    joined = ",".join(sorted(ids))
    return joined if len(joined.encode()) <= PAYLOAD_BYTES else EVERYTHING
