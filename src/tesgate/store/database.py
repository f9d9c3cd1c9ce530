"""The one door to PostgreSQL: a pool of connections that waits for a database which is away for a moment."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import anyio
import asyncpg
import pydantic_core
from asyncpg.pool import PoolConnectionProxy

from tesgate.store.errors import DatabaseUnavailable, StoreError

__all__ = ["Connection", "Database", "Row", "is_fault", "place_of", "prepare_connection"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Row = asyncpg.Record
if TYPE_CHECKING:  # the stubs have a parameter that the class has not
    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = PoolConnectionProxy

FIRST_WAIT_SECONDS = 0.05
LONGEST_WAIT_SECONDS = 1.0

LOST = (
    OSError,  # ConnectionError and TimeoutError among them
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting, cancelled by statement_timeout
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # after a failover, until the name leads to the new primary
    asyncpg.InternalClientError,
)
"""The database's or the network's fault, and perhaps a passing one."""

ROLLED_BACK = (asyncpg.TransactionRollbackError, asyncpg.LockNotAvailableError)
"""The statement surely left nothing behind: a deadlock, a serialization failure, lock_timeout."""

PLANNING = {
    # Statements name what they look for by arguments: the plan does not depend on the values, and a generic one that
    # leaves partitions out when it starts costs a tenth of planning anew. (Left to itself the server would always plan
    # anew, since it compares costs before pruning.) Lists alone plan for their values: store/tasks.py.
    "plan_cache_mode": "force_generic_plan",
    # Every statement finds its rows by an index. A plan that was made while a partition was empty must not read all of
    # it when it is full.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "random_page_cost": "1.1",
    "max_parallel_workers_per_gather": "0",
}

CLOSED = ("connection is closed", "connection has been released", "pool is clos", "underlying connection is closed")


def is_fault(exc: BaseException) -> bool:
    """Whether `exc` is a fault of connection or server, not of the statement."""
    if isinstance(exc, asyncpg.InterfaceError):  # covers wrong arguments too
        return any(text in str(exc) for text in CLOSED)
    return isinstance(exc, LOST)


def place_of(dsn: str) -> str:
    """Where the database is, without user and password: for messages."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    if not host:
        host = next((pair[5:] for pair in parts.query.split("&") if pair.startswith("host=")), "localhost")
    return f"{host}{parts.path}"


def _encode(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else pydantic_core.to_json(value).decode()


async def prepare_connection(connection: asyncpg.Connection[Any] | Connection) -> None:
    """Let json and jsonb be Python values; ``bytes`` as an argument are JSON that is ready."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_encode, decoder=pydantic_core.from_json, format="text"
        )


class Database:
    """A pool of connections. ``async with Database(dsn) as database``, or `open` and `close`.

    Every call waits up to `patience` seconds for a connection, as long as the database is away. A statement that was
    sent and whose connection was lost is sent again only if that is harmless (a SELECT, or ``idempotent=True``, or the
    server said that it was rolled back); otherwise `DatabaseUnavailable` leaves its outcome unknown. Errors of
    the statement itself (constraints, syntax) are asyncpg's own and pass through.
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
        lock_timeout: float = 10,
        statement_cache_size: int = 200,
    ) -> None:
        """Times are seconds. A `statement_cache_size` of 0 is for a pooler in transaction mode."""
        self._dsn = dsn
        self._patience = patience
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._min_size, self._max_size = min_size, max_size
        self._connect_options: dict[str, Any] = {
            "statement_cache_size": statement_cache_size,
            # The server gives up first; this is for a network that says nothing any more.
            "command_timeout": statement_timeout + 5,
            "timeout": patience,
            "server_settings": {
                "application_name": application_name,
                "statement_timeout": str(int(statement_timeout * 1000)),
                "lock_timeout": str(int(lock_timeout * 1000)),
                "idle_in_transaction_session_timeout": str(int(statement_timeout * 1000)),
                "timezone": "UTC",
                "jit": "off",
                **PLANNING,
            },
        }

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
            raise StoreError(f"The database at {place_of(self._dsn)} refuses us: {exc}. See database_url.") from exc

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
        self, sql: str, *args: object, idempotent: bool | None = None, custom_plan: bool = False
    ) -> list[Row]:
        """All rows. Raises `DatabaseUnavailable`.

        `custom_plan`: planned for these values, which costs a round trip or two and some of the server's time.
        """

        async def planned(connection: Connection) -> list[Row]:
            async with connection.transaction(readonly=True):
                await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
                return await connection.fetch(sql, *args)

        async def as_always(connection: Connection) -> list[Row]:
            return await connection.fetch(sql, *args)

        return cast(list[Row], await self._run(planned if custom_plan else as_always, sql, idempotent))

    async def fetchrow(self, sql: str, *args: object, idempotent: bool | None = None) -> Row | None:
        """The first row, or None. Raises `DatabaseUnavailable`."""
        return cast(Row | None, await self._run(lambda connection: connection.fetchrow(sql, *args), sql, idempotent))

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
                raise self._unavailable(exc) from exc
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)

    async def _begin(self, isolation: str | None) -> tuple[Connection, Any]:
        pool = self._open_pool()
        connection = await pool.acquire(timeout=self._patience)
        try:
            transaction = connection.transaction(isolation=cast(Any, isolation))
            await transaction.start()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await pool.release(connection)
            raise
        return connection, transaction

    async def _run(self, send: Callable[[Connection], Awaitable[Any]], sql: str, idempotent: bool | None) -> Any:
        if idempotent is None:
            idempotent = sql.lstrip()[:6].upper() == "SELECT"
        sent = False

        async def attempt() -> Any:
            nonlocal sent
            sent = False
            async with self._open_pool().acquire(timeout=self._patience) as connection:
                sent = True
                return await send(connection)

        def again(exc: BaseException) -> bool:
            # A timeout that was spent is not spent again, and a full disk does not empty itself.
            if isinstance(exc, asyncpg.QueryCanceledError | TimeoutError | asyncpg.DiskFullError) and sent:
                return False
            return idempotent or not sent or isinstance(exc, ROLLED_BACK)

        return await self._patiently(attempt, again=again)

    async def _patiently(
        self, call: Callable[[], Awaitable[T]], *, again: Callable[[BaseException], bool], patience: float | None = None
    ) -> T:
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return await call()
            except (*LOST, *ROLLED_BACK, asyncpg.InterfaceError) as exc:
                fault = is_fault(exc)
                if not fault and not isinstance(exc, ROLLED_BACK):
                    raise
                if not again(exc) or time.monotonic() + wait > deadline:
                    raise self._unavailable(exc) from exc
                logger.info("the database is away, trying again: %s", _said(exc))
            await anyio.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    def _open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        if self._pool is None:
            raise StoreError("The database is not open.")
        return self._pool

    def _unavailable(self, exc: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"The database at {place_of(self._dsn)} is not available: {_said(exc)}.")


def _said(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200].rstrip(".") or type(exc).__name__
