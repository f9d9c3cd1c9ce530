"""A deployment for each module: its tests start, kill and stop replicas of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator
from typing import Any

import anyio
import pytest

from tests.beds.postgres import Server
from tests.replicas.fleet import Agent, Fleet, Replica

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def fleet(postgres_server: Server, bubblewrap: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Fleet]:
    """Nothing of it runs yet but its database."""
    name = f"fleet_{os.getpid()}_{next(_numbers)}"
    anyio.run(postgres_server.run, f"CREATE DATABASE {name}")
    made = Fleet(tmp_path_factory.mktemp("fleet"), postgres_server.url(name))
    try:
        yield made
    finally:
        made.close()
        anyio.run(postgres_server.run, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def a(fleet: Fleet) -> Replica:
    """Where clients ask."""
    return fleet.replica("a")


@pytest.fixture
def b(fleet: Fleet) -> Replica:
    """Where the agent polls."""
    return fleet.replica("b")


@pytest.fixture
def agent(fleet: Fleet, b: Replica) -> Agent:
    """Polls at B."""
    return fleet.agent("one", b)
