"""A PostgreSQL for tests: the wheel's, without durability, or the server of $TESGATE_TEST_DATABASE_URL."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import anyio
import asyncpg

from tesgate.store.database import Database
from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.errors import StoreError
from tesgate.store.migrations import load_migrations, migrate
from tests.beds import BedUnavailable

__all__ = ["Server", "serving"]

FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "autovacuum": "off",
}


@dataclass(frozen=True)
class Server:
    """A server on which the tests may make databases."""

    admin_url: str
    template: str
    """The name of a migrated database that nobody is connected to."""
    binaries: Path | None
    """The directory of psql and pg_dump; None for a server that was given."""

    def url(self, database: str) -> str:
        return urlunsplit(urlsplit(self.admin_url)._replace(path=f"/{database}"))

    @asynccontextmanager
    async def database(self, name: str, *, template: str) -> AsyncGenerator[str]:
        """The URL of a fresh copy of `template`, dropped at the end."""
        await self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        try:
            yield self.url(name)
        finally:
            with anyio.CancelScope(shield=True):
                await self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.admin_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def serving() -> Generator[Server]:
    """Start (or find) the server and migrate its template once."""
    if given := os.environ.get("TESGATE_TEST_DATABASE_URL"):
        yield from _with_template(given, None)
        return
    with tempfile.TemporaryDirectory(prefix="tesgate-postgres-") as directory:
        Path(directory).chmod(0o711)
        embedded = EmbeddedPostgres(Path(directory), settings=FAST)
        try:
            anyio.run(embedded.start)
        except StoreError as exc:
            raise BedUnavailable(str(exc)) from exc
        try:
            yield from _with_template(embedded.dsn, embedded.binaries)
        finally:
            anyio.run(embedded.stop)


def _with_template(admin_url: str, binaries: Path | None) -> Generator[Server]:
    server = Server(admin_url, f"template_{os.getpid()}", binaries)

    async def make() -> None:
        await server.run(f"CREATE DATABASE {server.template}")
        async with Database(server.url(server.template), min_size=1, max_size=1) as database:
            await migrate(database, load_migrations())

    anyio.run(make)
    try:
        yield server
    finally:
        anyio.run(server.run, f"DROP DATABASE {server.template} WITH (FORCE)")
