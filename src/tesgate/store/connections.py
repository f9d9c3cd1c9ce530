"""How each connection to PostgreSQL is set up: settings, plans, types; and what server must be at its other end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import asyncpg
import pydantic_core
from asyncpg.pool import PoolConnectionProxy

from tesgate.store.errors import StoreError
from tesgate.store.faults import place_of

__all__ = ["SERVER", "Connection", "Row", "check_server", "connect_options", "leave_as_is", "prepare_connection"]

logger = logging.getLogger(__name__)

Row = asyncpg.Record
if TYPE_CHECKING:  # the stubs have a parameter that the class has not
    Connection = PoolConnectionProxy[asyncpg.Record]
else:
    Connection = PoolConnectionProxy

OLDEST = 15
"""The oldest major version of PostgreSQL that the statements were tried on."""
CONNECTIONS_BESIDE = 2
"""That a process uses beside its pool: the one that listens, and a command such as `tesgate token`."""
CONNECT_SECONDS = 5.0
"""An attempt to connect that has no answer for so long is given up for a new one: its packets may have been lost."""

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

SERVER = (
    "SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS number,"
    " least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    "       nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1),"
    "       nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1)) AS allowed"
)
"""Asks the server for its version, and how many connections it allows to us in all."""


def connect_options(
    *, application_name: str, statement_timeout: float, lock_timeout: float, statement_cache_size: int
) -> dict[str, Any]:
    """How asyncpg is to connect; what they mean: `tesgate.store.database.Database`."""
    return {
        "statement_cache_size": statement_cache_size,
        # The server gives up first; this is for a network that says nothing any more.
        "command_timeout": statement_timeout + 5,
        "timeout": CONNECT_SECONDS,
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


def _encode(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else pydantic_core.to_json(value).decode()


async def prepare_connection(connection: asyncpg.Connection[Any] | Connection) -> None:
    """Let json and jsonb be Python values; ``bytes`` as an argument are JSON that is ready."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_encode, decoder=pydantic_core.from_json, format="text"
        )


async def leave_as_is(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """For a connection that goes back to the pool: asyncpg would send a RESET after every statement.

    Nothing here leaves anything in a session: no SET, no LISTEN, no session locks; transactions are ended by asyncpg.
    """


def check_server(row: Row | None, dsn: str, *, max_size: int) -> None:
    """Judge the answer to `SERVER`: warns of fewer connections than `max_size`. Raises `StoreError` for one too old."""
    if row is None:
        return
    if row["number"] < OLDEST * 10_000:
        raise StoreError(
            f"The database at {place_of(dsn)} is PostgreSQL {row['version']}, and tesgate needs {OLDEST} or "
            "newer: upgrade it, or give another one with database_url."
        )
    wanted = max_size + CONNECTIONS_BESIDE
    if row["allowed"] < wanted:
        logger.warning(
            "the database at %s allows %d connections in all and this process may want %d: lower "
            "database.max_size, or raise max_connections (or the role's CONNECTION LIMIT)",
            place_of(dsn),
            row["allowed"],
            wanted,
        )
