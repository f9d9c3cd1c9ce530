"""The routes of operators, and tasks that ask for pools, labels and GPUs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest_asyncio

from tesgate.app.web import build_app
from tesgate.auth.authenticator import Authenticator
from tesgate.auth.tokens import TokensFile
from tesgate.model.intake import IntakeRules
from tesgate.model.placement import Need
from tesgate.model.pools import PoolRule
from tesgate.model.wishes import BACKEND_PARAMETERS
from tesgate.services.agents import Agents
from tesgate.services.tasks import Tasks
from tesgate.store.agents import AgentStore, NewAgent
from tesgate.store.database import Database
from tesgate.store.tasks import TaskStore
from tesgate.store.wakes import Wakes
from tests.api.conftest import TES, make_context, task

ALICE, ROOT = "alice-token-0123456789", "root-token-0123456789x"
AGENTS = "/tesgate/v1/agents"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest_asyncio.fixture
async def client(tmp_path: Path, database: Database) -> AsyncGenerator[httpx.AsyncClient]:
    (tmp_path / "tokens").write_text(f"alice:{ALICE}:lab\nroot:{ROOT}::admin\n")
    context = make_context(tmp_path, database, auth={"mode": "tokens"})
    context.authenticator = Authenticator(mode="tokens", tokens_file=TokensFile(tmp_path / "tokens"))
    store = AgentStore(database=database)
    context.agents = Agents(store=store, open_to_all=False, woken=lambda: None)
    settings = context.settings
    context.tasks = Tasks(
        store=TaskStore(database=database, wakes=Wakes()),
        rules=IntakeRules(settings.limits, settings.defaults, frozenset(BACKEND_PARAMETERS)),
        pools=[PoolRule("lab", groups=frozenset({"lab"})), PoolRule("cloud", callers=frozenset({"bob"}))],
    )
    context.backend_parameters = BACKEND_PARAMETERS
    await store.register(
        NewAgent("i1", "lab", "node1", "0.9", Need(2500, 10**9, 0, 1), ("docker",), (), {"a": "b"}, ("z",))
    )
    transport = httpx.ASGITransport(build_app(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as opened:
        yield opened


async def test_admins_alone_see_and_drain_agents(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", AGENTS), ("POST", f"{AGENTS}/node1:drain"), ("POST", f"{AGENTS}/node1:undrain")):
        assert (await client.request(method, path)).status_code == 401
        refused = await client.request(method, path, headers=bearer(ALICE))
        assert (refused.status_code, refused.json()["status_code"]) == (403, 403)
    answer = await client.get(AGENTS, headers=bearer(ROOT))
    (agent,) = answer.json()["agents"]
    assert agent["capacity"] == {"cpu_cores": 2.5, "ram_gb": 1.0, "disk_gb": 0.0, "gpus": 1}
    assert (agent["host"], agent["pool"], agent["state"], agent["zones"]) == ("node1", "lab", "open", ["z"])
    told = await client.post(f"{AGENTS}/node1:drain", headers=bearer(ROOT))
    assert told.json() == {"agents": ["i1"], "hosts": ["node1"]}
    assert (await client.get(AGENTS, headers=bearer(ROOT))).json()["agents"][0]["state"] == "draining"
    assert (await client.post(f"{AGENTS}/i1:undrain", headers=bearer(ROOT))).status_code == 200
    assert (await client.get(AGENTS, headers=bearer(ROOT))).json()["agents"][0]["state"] == "open"
    assert (await client.post(f"{AGENTS}/nobody:drain", headers=bearer(ROOT))).status_code == 404


async def test_no_page_of_another_origin_drains(client: httpx.AsyncClient) -> None:
    for word in ("drain", "undrain"):
        for origin, code in (("https://evil.example", 403), ("http://t", 200)):
            asked = await client.post(f"{AGENTS}/node1:{word}", headers={**bearer(ROOT), "Origin": origin})
            assert asked.status_code == code, (word, origin)
        assert asked.json()["hosts"] == ["node1"]


async def test_a_task_may_ask_for_its_owners_pools_alone(client: httpx.AsyncClient, database: Database) -> None:
    async def post(token: str, parameters: dict[str, str], **more: object) -> httpx.Response:
        resources = {"backend_parameters": parameters, **more}
        return await client.post(f"{TES}/tasks", json=task(resources=resources), headers=bearer(token))

    good = await post(ALICE, {"POOL": "lab", "labels": "a=b", "gpus": "1", "else": "x"}, zones=["z"])
    assert good.status_code == 200
    row = await database.fetchrow("SELECT pools, need_gpus FROM task WHERE id = $1", good.json()["id"])
    assert row is not None and (row["pools"], row["need_gpus"]) == (["lab"], 1)
    shown = (await client.get(f"{TES}/tasks/{good.json()['id']}?view=FULL", headers=bearer(ALICE))).json()
    assert shown["resources"]["backend_parameters"] == {"POOL": "lab", "labels": "a=b", "gpus": "1"}
    assert "(supported: gpus, labels, pool)" in shown["logs"][0]["system_logs"][0]
    for parameters in ({"pool": "cloud"}, {"pool": "no such"}, {"labels": "x"}, {"gpus": "many"}):
        refused = await post(ALICE, parameters)
        assert refused.status_code == 400
        assert refused.json()["msg"].startswith(f"resources.backend_parameters.{next(iter(parameters))}: ")
    strict = await post(ALICE, {"vm_size": "x"}, backend_parameters_strict=True)
    assert strict.status_code == 400 and "(supported: gpus, labels, pool)" in strict.json()["msg"]
    assert (await post(ROOT, {"pool": "cloud"})).status_code == 200
    info = (await client.get(f"{TES}/service-info")).json()
    assert info["tesResources_backend_parameters"] == ["gpus", "labels", "pool"]
