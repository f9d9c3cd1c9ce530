"""What an error of asyncpg means: whose fault it is, whether the statement left anything behind, and how it is said."""

from __future__ import annotations

from urllib.parse import urlsplit

import asyncpg

from tesgate.store.errors import DatabaseUnavailable

__all__ = ["LOST", "ROLLED_BACK", "is_fault", "place_of", "said", "unavailable"]

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

_CLOSED = ("connection is closed", "connection has been released", "pool is clos", "underlying connection is closed")


def is_fault(exc: BaseException) -> bool:
    """Whether `exc` is a fault of connection or server, not of the statement."""
    if isinstance(exc, asyncpg.InterfaceError):  # covers wrong arguments too
        return any(text in str(exc) for text in _CLOSED)
    return isinstance(exc, LOST)


def place_of(dsn: str) -> str:
    """Where the database is, without user and password: for messages."""
    parts = urlsplit(dsn)
    host = parts.netloc.rpartition("@")[2]
    if not host:
        host = next((pair[5:] for pair in parts.query.split("&") if pair.startswith("host=")), "localhost")
    return f"{host}{parts.path}"


def said(exc: BaseException) -> str:
    """The first line of what an error says, without a full stop."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:200].rstrip(".") or type(exc).__name__


def unavailable(dsn: str, exc: BaseException) -> DatabaseUnavailable:
    """What callers are told of a fault that was waited for in vain."""
    fault = DatabaseUnavailable(f"The database at {place_of(dsn)} is not available: {said(exc)}.")
    fault.passing = not isinstance(exc, asyncpg.DiskFullError | asyncpg.QueryCanceledError)
    fault.locked = isinstance(exc, asyncpg.LockNotAvailableError)
    return fault
