"""A database of its own for each test, made without a loop: the gateways are processes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator

import anyio
import pytest

from tests.beds.postgres import Server

_numbers = itertools.count(1)


@pytest.fixture
def external(postgres_server: Server) -> Generator[str]:
    """The URL of a migrated database on the shared server."""
    name = f"faults_{os.getpid()}_{next(_numbers)}"
    anyio.run(postgres_server.run, f"CREATE DATABASE {name} TEMPLATE {postgres_server.template} STRATEGY FILE_COPY")
    yield postgres_server.url(name)
    anyio.run(postgres_server.run, f"DROP DATABASE {name} WITH (FORCE)")
