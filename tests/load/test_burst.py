"""A burst of tasks through a whole gateway, its loops and its HTTP, on agents that speak the protocol, not run it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from benchmarks.scripted_agent import Script, ScriptedAgent

from tesgate.app.gateway import Gateway
from tesgate.app.places import DataDir
from tesgate.app.web import build_app
from tesgate.config import Settings
from tesgate.runner.gateway import GatewayClient
from tesgate.store.database import Database
from tesgate.store.queries import load_queries

OWNERS = ("anna", "bert", "cleo")
TOKEN = "0123456789abcdef0123456789abcdef-"
DOCUMENT = {"executors": [{"image": "busybox", "command": ["true"]}]}
WITH_OUTPUT = {**DOCUMENT, "outputs": [{"path": "/out/a", "url": "https://example.org/a"}]}

NAMES = {
    **{load_queries(file)[name]: name for file in ("attempts", "tasks", "task_reads") for name in load_queries(file)},
    load_queries("agents")["hear_agent"]: "hear_agent",
}
"""Statements that are about tasks. What replicas, agents, tokens and partitions ask for themselves is not counted."""
IDLE = {
    *("held_attempts", "reset_crashes", "expired_tasks", "keeping_logs", "forget_keys"),
    *("task_counts", "oldest_waiting", "count_leases"),
}
"""Of these, what loops send whether or not there are tasks."""


@dataclass
class Standing:
    """A gateway in this process, and what it has sent to its database."""

    gateway: Gateway
    url: str
    agent_token: Path
    sent: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def client(self, owner: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self.url}/ga4gh/tes/v1",
            headers={"authorization": f"Bearer {TOKEN}{owner}"},
            trust_env=False,
            timeout=60,
            limits=httpx.Limits(max_connections=8),
        )

    async def quiet(self) -> int:
        """Wait until nothing is said but what is always said; how much was said so far."""
        last = -1
        while last != (now := sum(name not in IDLE for name in self.sent)):
            last = now
            await asyncio.sleep(0.5)
        return len(self.sent)


@asynccontextmanager
async def standing(base: Path, database_url: str, sent: list[str]) -> AsyncGenerator[Standing]:
    tokens = base / "tokens"
    tokens.write_text("".join(f"{owner}:{TOKEN}{owner}\n" for owner in OWNERS))
    settings = Settings(
        data_dir=base / "data",
        database_url=database_url,
        auth={"mode": "tokens", "tokens_file": tokens},
        # What comes after an interval comes not at all: everything here happens because something woke it.
        control={"dispatch_interval": 3600.0},
    )
    place = DataDir(settings.data_dir)
    place.make()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with listener:
        async with Gateway.open(settings, place) as gateway, anyio.create_task_group() as group:
            server = uvicorn.Server(
                uvicorn.Config(
                    build_app(gateway, gateway),
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                    timeout_graceful_shutdown=5,
                )
            )
            server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
            group.start_soon(gateway.supervise().run)
            stopped = anyio.Event()

            async def serve() -> None:
                await server.serve(sockets=[listener])
                stopped.set()

            group.start_soon(serve)
            await gateway.issue_agent_token()
            await until("the gateway to know that it is alone", lambda: gateway.wakes.alone)
            try:
                yield Standing(gateway, url, place.agent_token, sent)
            finally:
                gateway.wakes.close()
                server.should_exit = True
                # It closes its socket itself: a number that is closed under the loop leaves it deaf for the next one.
                with anyio.CancelScope(shield=True), anyio.fail_after(30):
                    await stopped.wait()
            group.cancel_scope.cancel()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement by name, from when it is sent."""
    noted: list[str] = []
    for name in ("fetch", "fetchrow", "fetchval", "execute"):
        real = getattr(Database, name)

        async def send(self: Database, sql: str, *args: object, real: Any = real, **more: Any) -> Any:
            if sql in NAMES:
                noted.append(NAMES[sql])
            return await real(self, sql, *args, **more)

        monkeypatch.setattr(Database, name, send)
    return noted


@asynccontextmanager
async def agents(
    to: Standing, count: int, slots: int, script: Script, *, wait: float = 20.0
) -> AsyncGenerator[list[ScriptedAgent]]:
    async with AsyncExitStack() as stack:
        made: list[ScriptedAgent] = []
        for _ in range(count):
            client = GatewayClient(url=to.url, token_file=str(to.agent_token), concurrency=4)
            stack.callback(client.close)
            made.append(ScriptedAgent(client=client, slots=slots, script=script, wait=wait))
        async with anyio.create_task_group() as group:
            for agent in made:
                group.start_soon(agent.run)
            try:
                yield made
            finally:
                for agent in made:
                    agent.end()


async def until(what: str, ask: Callable[[], Any], seconds: float = 100.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not ask():
        assert asyncio.get_running_loop().time() < deadline, f"waited {seconds:g} s for {what}"
        await asyncio.sleep(0.02)


def tasks_of_the_loop() -> Counter[str]:
    """Who lives in this event loop, by kind."""
    return Counter(task.get_name().rstrip("0123456789").partition("-")[0] for task in asyncio.all_tasks())


async def test_a_burst_runs_through_in_the_order_of_the_queue(
    tmp_path: Path, database_url: str, sent: list[str]
) -> None:
    async with standing(tmp_path, database_url, sent) as gateway:
        await burst(gateway)


async def burst(gateway: Standing) -> None:
    """120 tasks of three owners on 24 slots: each once, each owner's in order, owners in turn, and nothing is left."""
    counts = {"anna": 90, "bert": 15, "cleo": 15}
    ids: dict[str, list[str]] = {}
    await gateway.quiet()
    for owner, count in counts.items():
        async with gateway.client(owner) as client:
            answers = await asyncio.gather(*(client.post("/tasks", json=DOCUMENT) for _ in range(count)))
        assert {answer.status_code for answer in answers} == {200}
        ids[owner] = sorted(answer.json()["id"] for answer in answers)
    await gateway.quiet()
    before, connections = tasks_of_the_loop(), sum(gateway.gateway._database.connections())
    mark = len(gateway.sent)

    async with agents(gateway, 2, 12, Script(), wait=1.0) as made:
        await until("120 ends", lambda: sum(len(agent.ended) for agent in made) == 120)
        await until("everything to be forgotten", lambda: not any(len(agent) for agent in made))
        begun = [name for agent in made for name in agent.begun]
        assert len({task for task, _, _ in begun}) == len(begun) == 120
        assert {number for _, number, _ in begun} == {1}
        for owner in OWNERS:
            async with gateway.client(owner) as client:
                found = await asyncio.gather(*(client.get(f"/tasks/{task}") for task in ids[owner]))
                states = Counter(answer.json()["state"] for answer in found)
            assert states == {"COMPLETE": counts[owner]}

    said = Counter(name for name in gateway.sent[mark:] if name not in (*IDLE, "get_states"))
    assert sum(said.values()) <= 6 * 120, said
    rows = await gateway.gateway._database.fetch("SELECT task_id, assigned_at FROM attempt")
    at = {row["task_id"]: row["assigned_at"] for row in rows}
    for owner in OWNERS:
        assert [at[task] for task in ids[owner]] == sorted(at[task] for task in ids[owner])
    # Who came later with little does not wait for who came first with much.
    for owner in ("bert", "cleo"):
        last = max(at[task] for task in ids[owner])
        assert sum(at[task] < last for task in ids["anna"]) <= 15

    rooms = await gateway.gateway._database.fetch("SELECT used_cpu_milli, used_ram_bytes, used_disk_bytes FROM agent")
    assert [tuple(row.values()) for row in rooms] == [(0, 0, 0)] * 2
    await until("drivers and requests to end", lambda: tasks_of_the_loop() <= before, 30)
    assert sum(gateway.gateway._database.connections()) <= max(connections, 10)
    assert not await gateway.gateway._database.fetchval("SELECT count(*) FROM task WHERE phase <> 'ended'")


async def test_the_critical_path_has_six_round_trips_and_three_requests(
    tmp_path: Path, database_url: str, sent: list[str]
) -> None:
    async with standing(tmp_path, database_url, sent) as gateway:
        await one_after_the_other(gateway)


async def one_after_the_other(gateway: Standing) -> None:
    """POST, the dispatcher's look and assignment, the orders; the lease and the end. Reports are not waited for."""
    async with agents(gateway, 1, 4, Script(outputs=True)) as (agent,), gateway.client("anna") as client:
        await until("the agent's session", lambda: "agent_orders" in gateway.sent)
        for number in range(1, 4):
            begin = await gateway.quiet()
            answer = await client.post("/tasks", json=WITH_OUTPUT)
            assert answer.status_code == 200
            await until("the end", lambda number=number: len(agent.ended) == number)  # type: ignore[misc]
            await until("the word to forget it", lambda: not len(agent))
            await gateway.quiet()
            path = [name for name in gateway.sent[begin:] if name not in IDLE]
            start = path.index("agent_orders") + 1
            assert path[:start] == ["insert_tasks", "waiting_tasks", "assign", "agent_orders"], path
            said = Counter(path)
            assert (said["publish"], said["finish"], said["report"], said["assign"]) == (1, 1, 1, 1)
            assert start + said["publish"] + said["finish"] <= 6
            # Beside the path: the report, what listed the attempt, and the poll that forgets it.
            assert set(path) <= {
                *path[:start],
                *("report", "publish", "finish", "hear_agent", "acknowledge"),
            }, path
            assert said["acknowledge"] <= 1
    page = (await metrics(gateway)).decode()
    requests = {
        line.partition('route="/internal/v1/')[2].partition('"')[0]: float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith("tesgate_http_request_seconds_count") and "/internal/" in line
    }
    # On the path: the poll's answer with the start, publish, finish.
    assert (requests["attempts/publish"], requests["attempts/finish"], requests["attempts/report"]) == (3, 3, 3)


async def metrics(gateway: Standing) -> bytes:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{gateway.url}/metrics")).content
