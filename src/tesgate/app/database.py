"""From the settings to an open database with a schema that is ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from tesgate.app.places import DataDir
from tesgate.config import Settings
from tesgate.store.database import Database
from tesgate.store.deployment import claim_deployment
from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.migrations import migrate, prepare_schema
from tesgate.store.partitions import PartitionStore
from tesgate.store.refusals import refusals

__all__ = ["Opened", "open_database", "open_for_migration"]


@dataclass(frozen=True)
class Opened:
    """A database that may be used."""

    database: Database
    deployment: str
    key: bytes
    embedded: EmbeddedPostgres | None


@asynccontextmanager
async def open_database(settings: Settings, place: DataDir) -> AsyncIterator[Opened]:
    """Start or find PostgreSQL, migrate the embedded one (others only by `tesgate migrate`), and check whose it is."""
    key = place.secret_key(settings)
    async with _connected(settings, place) as (database, embedded):
        with refusals(database):
            if await prepare_schema(database, automatic=embedded is not None):
                await _partitions(settings, database).cut()
            deployment = await claim_deployment(database, deployment_id=settings.deployment_id, secret=key)
        yield Opened(database, deployment, key, embedded)


async def open_for_migration(settings: Settings, place: DataDir) -> list[str]:
    """Bring the schema to this version; the steps that were taken."""
    async with _connected(settings, place) as (database, _):
        with refusals(database):
            steps = [str(step) for step in await migrate(database)]
            await _partitions(settings, database).cut()
            return steps


def _partitions(settings: Settings, database: Database) -> PartitionStore:
    return PartitionStore(database=database, width=timedelta(days=settings.retention.partition_days))


@asynccontextmanager
async def _connected(settings: Settings, place: DataDir) -> AsyncIterator[tuple[Database, EmbeddedPostgres | None]]:
    pool = settings.database

    @asynccontextmanager
    async def database(url: str) -> AsyncIterator[Database]:
        made = Database(url, min_size=pool.min_size, max_size=pool.max_size, statement_timeout=pool.command_timeout)
        await made.open(deadline=pool.start_timeout)
        try:
            yield made
        finally:
            await made.close()

    if settings.database_url is not None:
        async with database(settings.database_url) as opened:
            yield opened, None
    else:
        async with EmbeddedPostgres(place.path) as embedded, database(embedded.dsn) as opened:
            yield opened, embedded
