"""Fixtures of the whole suite: a real PostgreSQL with a database for each test, and the beds."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
import pytest_asyncio
import structlog

from tesgate.store.database import Database
from tests import beds
from tests.beds import postgres

T = TypeVar("T")

LONG = (
    "docker",
    "hostile",
    "tests/e2e",
    "tests/faults",
    "tests/replicas",
    "tests/runner",
    "tests/users",
    "tests/deploy",
)
"""Groups whose tests start processes and wait for them, by the beginning of their names."""

PLAIN = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)

_numbers = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a bed, so that ``make check`` can leave it out, and what must run in one process.

    With several processes (``-n 3``) a module's tests stay together, since they share gateways, and so do all that need
    the Docker engine: one process starts and stops it.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        needs = {*getattr(item, "fixturenames", ()), *_values(item)}
        for name in beds.NAMES:
            if name != "postgres" and name in needs:
                item.add_marker(pytest.mark.bed(name))
        group = item.nodeid.partition("::")[0]
        if "gateways" in needs:
            group = "hostile"  # three processes that all its modules share
        if "podman" in needs or "podman_rootless" in needs:
            group = "podman"
        group = "docker" if "docker" in needs else group
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    if hasattr(config, "workerinput"):
        order = sorted(groups, key=lambda group: (_turn(group), -len(groups[group]), group))
        items[:] = [item for group in order for item in groups[group]]


def _turn(group: str) -> int:
    """When a group has its turn (``--no-loadscope-reorder``): the long ones first, so that none is alone at the end."""
    return next((turn for turn, start in enumerate(LONG) if group.startswith(start)), len(LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """See that pytest-xdist has read the groups: without them, processes would stop each other's services."""
    config = session.config
    grouped = hasattr(config, "workerinput") and config.getvalue("loadgroup")
    if grouped and session.items and "@" not in session.items[0].nodeid:
        raise pytest.UsageError("this pytest-xdist does not keep groups of tests together with this pytest")


def _values(item: pytest.Item) -> set[str]:
    """Words among a test's parameters: fixtures with cases ask for a bed by its name."""
    spec = getattr(item, "callspec", None)
    return set() if spec is None else {value for value in spec.params.values() if isinstance(value, str)}


def pytest_configure() -> None:
    """Logs of what runs in this process, and signals.

    A shell that runs us in the background may have us ignore Ctrl-C, and all that we start would inherit that.
    """
    # Left alone, structlog paints each traceback with all variables, which takes longer than most tests.
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], PLAIN])
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


CLUSTERS = Path("/var/lib/tesgate")
"""Where root's embedded PostgreSQL goes when its own user cannot reach the data directory, as below pytest's 0700."""

_clusters_before = set(CLUSTERS.glob("postgres-*"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the clusters that this run left behind: those that are new and have no server.

    Another run on the same machine has such clusters too: TESGATE_TEST_LEAVE_CLUSTERS=1 where several go at once.
    """
    if os.environ.get("TESGATE_TEST_LEAVE_CLUSTERS") or hasattr(config, "workerinput"):
        return
    for cluster in set(CLUSTERS.glob("postgres-*")) - _clusters_before:
        if not (cluster / "postmaster.pid").exists() and not (cluster / "postgres" / "postmaster.pid").exists():
            shutil.rmtree(cluster, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several test processes tells the first one which beds stood."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["beds"] = [(outcome.name, outcome.seconds, outcome.reason) for outcome in beds.outcomes.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take note of the beds of another test process; one that it could not have matters more than one that it had."""
    for name, seconds, reason in getattr(node, "workeroutput", {}).get("beds", []):
        if reason is not None or name not in beds.outcomes:
            beds.outcomes[name] = beds.Outcome(name, seconds, reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which beds stood and which did not, and why."""
    if beds.outcomes:
        terminalreporter.section("beds")
        for outcome in beds.outcomes.values():
            terminalreporter.write_line(outcome.line())


@pytest.fixture(scope="session")
def postgres_server() -> Generator[postgres.Server]:
    """A PostgreSQL server with a migrated template database."""
    with beds.standing("postgres", postgres.serving) as server:
        yield server


@pytest_asyncio.fixture
async def empty_database_url(postgres_server: postgres.Server) -> AsyncGenerator[str]:
    """The URL of a database with nothing in it, for this test alone."""
    async with _database(postgres_server, template="template1") as url:
        yield url


@pytest_asyncio.fixture
async def database_url(postgres_server: postgres.Server) -> AsyncGenerator[str]:
    """The URL of a migrated database, for this test alone."""
    async with _database(postgres_server, template=postgres_server.template) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """An open `Database` on a migrated schema."""
    async with Database(database_url, min_size=1, max_size=8, application_name="tests") as opened:
        yield opened


def _database(server: postgres.Server, *, template: str) -> AbstractAsyncContextManager[str]:
    return server.database(f"test_{os.getpid()}_{next(_numbers)}", template=template)


@pytest_asyncio.fixture
async def enter() -> AsyncGenerator[Callable[[AbstractAsyncContextManager[T]], Awaitable[T]]]:
    """``await enter(context)`` holds an async context manager until the test ends.

    Task groups must be left by the task that entered them, which pytest's fixtures do not grant: so each context
    has a task of its own. What fails in it fails the test.
    """
    leave = anyio.Event()

    async with anyio.create_task_group() as group:

        async def hold(context: AbstractAsyncContextManager[Any], *, task_status: anyio.abc.TaskStatus[Any]) -> None:
            async with context as value:
                task_status.started(value)
                await leave.wait()

        async def entered(context: AbstractAsyncContextManager[T]) -> T:
            value: T = await group.start(hold, context)
            return value

        yield entered
        leave.set()


@pytest.fixture(scope="session")
def docker() -> Generator[Any]:
    """The Docker bed: whatever ``tests.beds.docker.serving`` gives."""
    with beds.standing("docker") as bed:
        yield bed


@pytest.fixture(scope="session")
def podman() -> Generator[Any]:
    """Root's Podman (`tests.beds.podman.Podman`)."""
    with beds.standing("podman") as bed:
        yield bed


@pytest.fixture(scope="session")
def podman_rootless() -> Generator[Any]:
    """An ordinary user's Podman (`tests.beds.podman.Podman`)."""
    with beds.standing("podman_rootless") as bed:
        yield bed


@pytest.fixture(scope="session")
def bubblewrap() -> Generator[Any]:
    """A bubblewrap that works on this machine (`tests.beds.bubblewrap.Bubblewrap`)."""
    with beds.standing("bubblewrap") as bed:
        yield bed


@pytest.fixture(scope="session")
def python39() -> Generator[Any]:
    """A Python 3.9 with the runner's dependencies (`tests.beds.python39.Python39`)."""
    with beds.standing("python39") as bed:
        yield bed


@pytest.fixture(scope="session")
def ftp() -> Generator[Any]:
    """FTP servers (`tests.beds.ftp.Servers`)."""
    with beds.standing("ftp") as bed:
        yield bed


@pytest.fixture(scope="session")
def s3() -> Generator[Any]:
    """Two S3 servers (`tests.beds.s3.Servers`)."""
    with beds.standing("s3") as bed:
        yield bed


@pytest.fixture(scope="session")
def clients() -> Generator[Any]:
    """Model classes of older clients in an environment of their own (`tests.beds.clients.Clients`)."""
    with beds.standing("clients") as bed:
        yield bed


@pytest.fixture
def repository() -> Path:
    """The checkout's root directory."""
    return Path(__file__).resolve().parent.parent
