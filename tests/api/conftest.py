"""The API on a real PostgreSQL: in process for most tests, behind a real uvicorn for the clients."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI

from tesgate.app.web import build_app
from tesgate.auth.authenticator import Authenticator
from tesgate.config import FileRoot, Settings
from tesgate.model.intake import IntakeRules
from tesgate.services.agents import Agents
from tesgate.services.tasks import Tasks
from tesgate.storage.workspace import FileWorkspace, Workspace
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes
from tesgate.telemetry import Metrics

TES = "/ga4gh/tes/v1"


@dataclass
class Context:
    """An `ApiContext` that tests may change."""

    settings: Settings
    authenticator: Authenticator
    workspace: Workspace
    tasks: Tasks | None = None
    agents: Agents | None = None
    metrics: Metrics = field(default_factory=Metrics)
    backend_parameters: Sequence[str] = ()
    not_ready: list[str] = field(default_factory=list)

    async def readiness(self) -> Sequence[str]:
        return self.not_ready


def settings_for(directory: Path, **changes: Any) -> Settings:
    roots = [FileRoot(name="data", path=directory)]
    return Settings(**{"data_dir": directory, "file_roots": roots, **changes})


def make_context(directory: Path, database: Database | None = None, **changes: Any) -> Context:
    settings = settings_for(directory, **changes)
    context = Context(
        settings=settings,
        authenticator=Authenticator(mode="none"),
        workspace=FileWorkspace(directory, max_bytes=1 << 20),
    )
    if database is not None:
        use_database(context, database)
    return context


def use_database(context: Context, database: Database) -> None:
    rules = IntakeRules(context.settings.limits, context.settings.defaults, frozenset(context.backend_parameters))
    context.tasks = Tasks(store=TaskStore(database=database, wakes=Wakes()), rules=rules)


@pytest.fixture
def context(tmp_path: Path, database: Database) -> Context:
    return make_context(tmp_path, database)


@pytest_asyncio.fixture
async def client(context: Context) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as opened:
        yield opened


class Untouchable:
    """A store for requests that must be refused before anything is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest_asyncio.fixture
async def gatekeeper(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of an API whose store must not be reached."""
    context = make_context(tmp_path)
    rules = IntakeRules(context.settings.limits, context.settings.defaults)
    context.tasks = Tasks(store=Untouchable(), rules=rules)
    transport = httpx.ASGITransport(build_app(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as opened:
        yield opened


def task(**fields: Any) -> dict[str, Any]:
    return {"executors": [{"image": "alpine", "command": ["echo", "hello"]}], **fields}


@contextmanager
def serving(app: FastAPI) -> Generator[str]:
    """A real uvicorn on a free port, in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.01)
    try:
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def live(tmp_path: Path, database_url: str) -> Serve:
    """``with live(auth={"mode": "tokens"}) as url``: a server with a database of its own."""

    @contextmanager
    def start(prepare: Callable[[Context], None] | None = None, **changes: Any) -> Generator[str]:
        context = make_context(tmp_path, **changes)
        if prepare is not None:
            prepare(context)
        app = build_app(context)
        database = Database(database_url, min_size=1, max_size=4, application_name="tests")

        async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
            async with database:
                use_database(context, database)
                yield

        app.router.lifespan_context = asynccontextmanager(lifespan)
        with serving(app) as url:
            yield url

    return start
