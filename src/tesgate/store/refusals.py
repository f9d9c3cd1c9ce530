"""What a database that is not ours, or not quite, says at start, as one sentence for the person who gave its URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from tesgate.store.database import Database
from tesgate.store.errors import SchemaMismatch, StoreError
from tesgate.store.faults import place_of

__all__ = ["refusals"]


@contextmanager
def refusals(database: Database) -> Iterator[None]:
    """Turns what PostgreSQL raises for rights and shapes that are wrong into `StoreError`s with the way out."""
    place = place_of(database.dsn)
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as exc:
        raise StoreError(
            f"The user of database_url lacks a right in the database at {place} ({exc}): make it the owner of the "
            "database, or GRANT ALL on its schema and on all tables and sequences in it."
        ) from exc
    except (asyncpg.SyntaxOrAccessError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as exc:
        raise SchemaMismatch(
            f"The tables in the database at {place} are not those of tesgate ({exc}): give tesgate a database of its "
            "own with database_url."
        ) from exc
