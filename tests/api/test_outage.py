"""A fault of the database that passes is no client's: requests wait, and none is answered 503, 429 or with a reset."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI

from tesgate.app.web import build_app
from tesgate.auth.authenticator import Authenticator
from tesgate.auth.tokens import hash_token
from tesgate.store.database import Database
from tesgate.store.tokens import TokenStore
from tests.api.conftest import TES, Context, make_context, serving, task, use_database
from tests.api.polling import Poller, Seen
from tests.store.proxy import Proxy

pytestmark = pytest.mark.slow

CLIENTS = 60
AWAY = 2.0
TOKEN = "a-token-of-some-length"

Start = Callable[[str, Path], str]


@pytest.fixture
def start() -> Generator[Start]:
    """A server, in a thread of its own, on a database."""
    with ExitStack() as stack:

        def made(database_url: str, directory: Path) -> str:
            context = make_context(directory)
            app = build_app(context)
            app.router.lifespan_context = lifespan(context, database_url)
            return stack.enter_context(serving(app))

        yield made


def lifespan(context: Context, url: str) -> Callable[[FastAPI], Any]:
    async def opened(_app: FastAPI) -> AsyncGenerator[None]:
        async with Database(url, min_size=2, max_size=6, application_name="tests") as database:
            use_database(context, database)
            yield

    return asynccontextmanager(opened)


async def answered(seen: Seen, more: int) -> None:
    """Until every poller had so many more answers."""
    wanted = [count + more for count in seen.answered]
    with anyio.fail_after(60):
        while any(count < want for count, want in zip(seen.answered, wanted, strict=True)):
            assert not seen.faults
            await anyio.sleep(0.02)


@pytest.mark.parametrize("fault", ["refused", "hangs", "lost"])
async def test_nobody_is_told_of_an_outage(fault: str, database_url: str, tmp_path: Path, start: Start) -> None:
    async with Proxy.before(database_url) as proxy:
        url = await asyncio.to_thread(start, proxy.url, tmp_path)
        async with httpx.AsyncClient(base_url=url + TES, timeout=60, trust_env=False) as client:
            ids = [(await client.post("/tasks", json=task())).json()["id"] for _ in range(20)]
            ended = asyncio.Event()
            seen = Seen()
            pollers = [Poller(url, number, seen) for number in range(CLIENTS)]
            requests = [("GET", f"{TES}/tasks/{one}", b"") for one in ids]
            requests[3::7] = [("GET", f"{TES}/tasks/{ids[0]}?view=FULL", b"")] * len(requests[3::7])
            requests[4::7] = [("GET", f"{TES}/tasks?view=BASIC&page_size=5", b"")] * len(requests[4::7])
            requests += [
                ("POST", f"{TES}/tasks", json.dumps(task()).encode()),
                ("POST", f"{TES}/tasks/{ids[1]}:cancel", b""),
            ]
            async with asyncio.TaskGroup() as group:
                for poller in pollers:
                    group.create_task(poller.run(requests, ended, 0.05))
                await answered(seen, 2)
                if fault == "refused":
                    await proxy.refuse()
                elif fault == "hangs":
                    proxy.hang()
                else:
                    proxy.lose()  # for ever; nobody is told
                if fault != "lost":
                    await anyio.sleep(AWAY)  # the length of the outage, not a wait
                    if fault == "refused":
                        await proxy.resume()
                    else:
                        proxy.flow()
                await answered(seen, 3)
                ended.set()
            assert seen.statuses.keys() == {200}, seen.statuses
            assert not seen.faults
            # Each POST made one task, whatever was sent again.
            (page,) = [(await client.get("/tasks?page_size=2000")).json()["tasks"]]
            assert len({item["id"] for item in page}) == len(page) >= 20


async def test_a_token_is_looked_up_once_for_all_who_wait(database: Database) -> None:
    asked: list[int] = []

    class Counting(TokenStore):
        async def _find_batch(self, batch: Any) -> Any:
            asked.append(len(batch))
            return await super()._find_batch(batch)

    store = Counting(database=database)
    await store.create(name="n", kind="user", hash=hash_token(TOKEN), subject="alice")
    who = Authenticator(mode="tokens", store=store)
    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    callers = await asyncio.gather(*(who.caller(headers) for _ in range(300)))
    assert {caller.subject for caller in callers} == {"alice"}
    assert len(asked) <= 2


async def test_a_list_of_everything_leaves_the_loop_to_others(database: Database, tmp_path: Path) -> None:
    context = make_context(tmp_path, database)
    content = "x" * 50_000
    body = task(inputs=[{"path": "/in/a", "content": content}])
    transport = httpx.ASGITransport(build_app(context))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        ids = [(await client.post(f"{TES}/tasks", json=body)).json()["id"] for _ in range(200)]
        listing = asyncio.ensure_future(client.get(f"{TES}/tasks?view=FULL&page_size=2000"))
        polls = 0
        while not listing.done():
            assert (await client.get(f"{TES}/tasks/{ids[0]}")).status_code == 200
            polls += 1
        # 200 tasks of 50 kB are read in a dozen slices: others are served between any two.
        assert polls >= 10
        shown = listing.result().json()
        # The page ends at its bound of bytes, and the rest comes with its token.
        assert 100 < len(shown["tasks"]) < 200
        assert len(listing.result().content) < 9 << 20
        found = [item["id"] for item in shown["tasks"]]
        while token := shown.get("next_page_token"):
            answer = await client.get(f"{TES}/tasks?view=FULL&page_size=2000&page_token={token}")
            shown = answer.json()
            found += [item["id"] for item in shown["tasks"]]
        assert found == ids[::-1]
        assert shown["tasks"][-1]["inputs"][0]["content"] == content
