"""The one door to PostgreSQL: a pool of connections that waits for a database which is away for a moment."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import anyio
import asyncpg

from tesgate.store.connections import (
    SERVER,
    Connection,
    Row,
    check_server,
    connect_options,
    leave_as_is,
    prepare_connection,
)
from tesgate.store.errors import DatabaseUnavailable, StoreError
from tesgate.store.faults import LOST, ROLLED_BACK, is_fault, place_of, said, unavailable

__all__ = ["WITHIN", "WITHIN_LIST", "WITHIN_WRITE", "Connection", "Database", "Row", "Usage"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

WITHIN = 3.0
"""Seconds in which a statement on a few rows has its answer, unless server or network hang."""
WITHIN_WRITE = 6.0
"""The same where disks must confirm, or many rows are looked at."""
WITHIN_LIST = 10.0
"""The same for a list of many conditions; the server ends one that takes four fifths of it."""
FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 0.5
SAY_AGAIN_SECONDS = 10.0


@dataclass
class Usage:
    """What the pool went through since the start, for the metrics."""

    waiting: int = 0
    """Calls that wait for a connection now."""
    waits: int = 0
    seconds: float = 0.0
    """Waited for connections in all."""
    outlived: int = 0
    """Calls that met a fault of the database and had their answer in the end."""
    given_up: int = 0
    """Calls that did not."""

    def wait(self) -> Callable[[], None]:
        """A call begins to wait; call the result when it has its connection, and again at the end."""
        began: float | None = time.monotonic()
        self.waiting += 1

        def done() -> None:
            nonlocal began
            if began is not None:
                self.waiting -= 1
                self.waits += 1
                self.seconds += time.monotonic() - began
                began = None

        return done


class Database:
    """A pool of connections. ``async with Database(dsn) as database``, or `open` and `close`.

    Every call waits up to `patience` seconds for a connection, as long as the database is away. A statement that was
    sent and whose connection was lost is sent again only if that is harmless (a SELECT, or ``idempotent=True``, or the
    server said that it was rolled back); otherwise `DatabaseUnavailable` leaves its outcome unknown. Errors of
    the statement itself (constraints, syntax) are asyncpg's own and pass through.

    `within` (seconds) is for what clients wait for: a statement that has no answer by then was sent to a server or over
    a network that hangs. Its connection is given up, the idle ones are not trusted any more, and it is sent again where
    that is harmless.
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int = 2,
        max_size: int = 16,
        application_name: str = "tesgate",
        patience: float = 10,
        statement_timeout: float = 30,
        lock_timeout: float = 4,
        statement_cache_size: int = 200,
    ) -> None:
        """Times are seconds; `lock_timeout` is shorter than the `within` of what locks: the server says it first.

        A `statement_cache_size` of 0 is for a pooler in transaction mode.
        """
        self._dsn = dsn
        self._patience = patience
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._min_size, self._max_size = min_size, max_size
        self._said_at = -math.inf
        self.usage = Usage()
        self._connect_options = connect_options(
            application_name=application_name,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            statement_cache_size=statement_cache_size,
        )

    @property
    def dsn(self) -> str:
        """The URL; it may hold a password."""
        return self._dsn

    def connections(self) -> tuple[int, int]:
        """Connections in use and idle ones."""
        if self._pool is None:
            return 0, 0
        idle = self._pool.get_idle_size()
        return self._pool.get_size() - idle, idle

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self, *, deadline: float = 60) -> None:
        """Connect, waiting up to `deadline` seconds for the database.

        Raises `DatabaseUnavailable`, or `StoreError` where waiting would not help (password, no such database).
        """

        async def connect() -> asyncpg.Pool[asyncpg.Record]:
            return await asyncpg.create_pool(
                self._dsn,
                min_size=self._min_size,
                max_size=self._max_size,
                init=prepare_connection,
                reset=leave_as_is,
                **self._connect_options,
            )

        try:
            self._pool = await self._patiently(connect, again=lambda exc: True, patience=deadline)
        except (
            asyncpg.InvalidAuthorizationSpecificationError,
            asyncpg.InvalidCatalogNameError,
            asyncpg.InsufficientPrivilegeError,
            asyncpg.ClientConfigurationError,
        ) as exc:
            raise StoreError(
                f"The database at {place_of(self._dsn)} refuses us: {said(exc)}. Correct user, password or database "
                "name in database_url, or let this user in (pg_hba.conf, GRANT CONNECT)."
            ) from exc
        except DatabaseUnavailable as exc:
            raise DatabaseUnavailable(
                f"{exc} It was waited for {deadline:g} s: start it, or correct database_url."
            ) from exc
        try:
            check_server(await self.fetchrow(SERVER), self._dsn, max_size=self._max_size)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Return what is in use, then close every connection; after five seconds without waiting. Idempotent."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(5) as scope:
                await pool.close()
            if scope.cancelled_caught:
                pool.terminate()

    async def fetch(
        self,
        sql: str,
        *args: object,
        idempotent: bool | None = None,
        within: float | None = None,
        custom_plan: bool = False,
    ) -> list[Row]:
        """All rows. Raises `DatabaseUnavailable`.

        `custom_plan`: planned for these values, which costs two round trips and some of the server's time.
        """

        async def planned(connection: Connection) -> list[Row]:
            # Not asyncpg's own transaction: its BEGIN and ROLLBACK have no deadline.
            try:
                begin = "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_custom_plan"
                if within is not None:
                    # What is slow is told by the server, so that it is not taken for a network that is silent.
                    begin += f"; SET LOCAL statement_timeout = {round(within * 800)}"
                await connection.execute(begin, timeout=within)
                rows = await connection.fetch(sql, *args, timeout=within)
                await connection.execute("COMMIT", timeout=within)
            except TimeoutError:
                raise  # `_run` gives up this connection, and the others with it
            except BaseException:
                connection.terminate()
                raise
            return rows

        async def as_always(connection: Connection) -> list[Row]:
            return await connection.fetch(sql, *args, timeout=within)

        send = planned if custom_plan else as_always
        return cast(list[Row], await self._run(send, sql, idempotent, within=within))

    async def fetchrow(
        self, sql: str, *args: object, idempotent: bool | None = None, within: float | None = None
    ) -> Row | None:
        """The first row, or None. Raises `DatabaseUnavailable`."""
        row = await self._run(
            lambda connection: connection.fetchrow(sql, *args, timeout=within), sql, idempotent, within=within
        )
        return cast(Row | None, row)

    async def fetchval(self, sql: str, *args: object, idempotent: bool | None = None) -> Any:
        """The first column of the first row, or None. Raises `DatabaseUnavailable`."""
        return await self._run(lambda connection: connection.fetchval(sql, *args), sql, idempotent)

    async def execute(self, sql: str, *args: object, idempotent: bool | None = None) -> str:
        """Run a statement and return its tag (``UPDATE 1``). Raises `DatabaseUnavailable`."""
        return cast(str, await self._run(lambda connection: connection.execute(sql, *args), sql, idempotent))

    @asynccontextmanager
    async def transaction(self, *, isolation: str | None = None) -> AsyncGenerator[Connection]:
        """One short transaction: committed at the end of the block, rolled back if that raises.

        Await nothing but the connection inside. Never repeated by itself. Raises `DatabaseUnavailable`.
        """
        connection, transaction = await self._patiently(lambda: self._begin(isolation), again=lambda exc: True)
        pool = self._open_pool()
        try:
            try:
                yield connection
            except BaseException:
                with anyio.CancelScope(shield=True):
                    try:
                        await transaction.rollback()
                    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as exc:
                        # The server rolls back by itself; what went wrong in the block is worth more.
                        logger.debug("a rollback failed: %s", exc)
                raise
            with anyio.CancelScope(shield=True):
                await transaction.commit()
        except Exception as exc:
            if is_fault(exc) and not isinstance(exc, DatabaseUnavailable):
                raise unavailable(self._dsn, exc) from exc
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)

    async def _begin(self, isolation: str | None) -> tuple[Connection, Any]:
        pool = self._open_pool()
        done = self.usage.wait()
        try:
            connection = await pool.acquire(timeout=self._patience)
        finally:
            done()
        try:
            transaction = connection.transaction(isolation=cast(Any, isolation))
            await transaction.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)
            raise
        return connection, transaction

    async def _run(
        self,
        send: Callable[[Connection], Awaitable[Any]],
        sql: str,
        idempotent: bool | None,
        *,
        within: float | None = None,
    ) -> Any:
        if idempotent is None:
            idempotent = sql.lstrip()[:6].upper() == "SELECT"
        sent = False
        deadline = time.monotonic() + self._patience

        async def attempt() -> Any:
            nonlocal sent
            sent = False
            left = max(deadline - time.monotonic(), FIRST_WAIT_SECONDS)
            done = self.usage.wait()
            try:
                async with self._open_pool().acquire(timeout=left) as connection:
                    done()
                    sent = True
                    try:
                        return await send(connection)
                    except TimeoutError:
                        # No answer at all, not even that of the server's own timeout. Asking it to cancel could hang
                        # too.
                        connection.terminate()
                        await self._open_pool().expire_connections()
                        raise
            finally:
                done()

        def again(exc: BaseException) -> bool:
            # A timeout that was spent is not spent again, and a full disk does not empty itself.
            if isinstance(exc, asyncpg.QueryCanceledError | asyncpg.DiskFullError) and sent:
                return False
            if isinstance(exc, asyncpg.LockNotAvailableError) and within is not None:
                return False  # who asked decides whether to wait for this row again: others may wait for the answer
            if isinstance(exc, TimeoutError) and sent:
                return idempotent and within is not None
            return idempotent or not sent or isinstance(exc, ROLLED_BACK)

        return await self._patiently(attempt, again=again)

    async def _patiently(
        self, call: Callable[[], Awaitable[T]], *, again: Callable[[BaseException], bool], patience: float | None = None
    ) -> T:
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        wait = FIRST_WAIT_SECONDS
        repeated = False
        while True:
            try:
                result = await call()
                self.usage.outlived += repeated
                return result
            except (*LOST, *ROLLED_BACK, asyncpg.InterfaceError) as exc:
                fault = is_fault(exc)
                if not fault and not isinstance(exc, ROLLED_BACK):
                    raise
                if not again(exc) or time.monotonic() + wait > deadline:
                    self.usage.given_up += 1
                    raise unavailable(self._dsn, exc) from exc
                self._say_away(exc)
                repeated = True
            await anyio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    def _say_away(self, exc: BaseException) -> None:
        """A line now and then, however many calls wait."""
        if time.monotonic() - self._said_at >= SAY_AGAIN_SECONDS:
            self._said_at = time.monotonic()
            logger.warning("the database at %s is away, trying again: %s", place_of(self._dsn), said(exc))

    def _open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        if self._pool is None:
            raise StoreError("The database is not open.")
        return self._pool
