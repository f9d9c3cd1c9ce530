"""Who may do what: credentials, owners, kinds of tokens, CORS."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest_asyncio

from tesgate.app.web import build_app
from tesgate.auth.authenticator import Authenticator
from tesgate.auth.tokens import TokensFile, hash_token, make_token
from tesgate.store.database import Database
from tesgate.store.tokens import TokenStore
from tests.api.conftest import TES, make_context, task

ALICE, BOB, ROOT = "alice-token-0123456789", "bob-token-0123456789xx", "root-token-0123456789x"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest_asyncio.fixture
async def client(tmp_path: Path, database: Database) -> AsyncGenerator[httpx.AsyncClient]:
    (tmp_path / "tokens").write_text(f"# people\nalice:{ALICE}:lab\nbob:{BOB}\nroot:{ROOT}::admin\n")
    context = make_context(
        tmp_path, database, auth={"mode": "tokens"}, cors={"allow_origins": ["https://portal.example.org"]}
    )
    context.authenticator = Authenticator(
        mode="tokens", tokens_file=TokensFile(tmp_path / "tokens"), store=TokenStore(database=database)
    )
    transport = httpx.ASGITransport(build_app(context), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as opened:
        yield opened


async def test_without_credentials(client: httpx.AsyncClient) -> None:
    calls = [("GET", "/tasks"), ("POST", "/tasks"), ("GET", "/tasks/x"), ("POST", "/tasks/x:cancel")]
    for method, path in [*calls, ("GET", "/tasks/x/logs/1/0/stdout")]:
        for value in (None, "Bearer wrong", "Basic Tm9uZTpOb25l", "Basic !", "Digest x", "Bearer", ""):
            answer = await client.request(method, TES + path, headers={"Authorization": value} if value else {})
            assert answer.status_code == 401, (method, path, value)
            assert answer.json()["status_code"] == 401
            assert "Bearer" in answer.headers["www-authenticate"] and "Basic" in answer.headers["www-authenticate"]
    assert (await client.get("/nowhere")).status_code == 404
    assert (await client.get(f"{TES}/service-info")).status_code == 200
    assert (await client.get("/healthz")).status_code == 200


async def test_owners(client: httpx.AsyncClient) -> None:
    posted = await client.post(f"{TES}/tasks", json=task(), headers=bearer(BOB))
    id = posted.json()["id"]
    for token, code in ((BOB, 200), (ALICE, 404), (ROOT, 200)):
        for view in ("MINIMAL", "FULL"):
            got = await client.get(f"{TES}/tasks/{id}?view={view}", headers=bearer(token))
            assert got.status_code == code
        listed = await client.get(f"{TES}/tasks", headers=bearer(token))
        assert len(listed.json()["tasks"]) == (1 if code == 200 else 0)
    assert (await client.post(f"{TES}/tasks/{id}:cancel", headers=bearer(ALICE))).status_code == 404
    assert (await client.get(f"{TES}/tasks/{id}", headers=bearer(BOB))).json()["state"] == "QUEUED"
    basic = base64.b64encode(f"anything:{BOB}".encode()).decode()
    answer = await client.post(f"{TES}/tasks/{id}:cancel", headers={"Authorization": f"Basic {basic}"})
    assert answer.status_code == 200


async def test_one_key_of_two_people_makes_two_tasks(client: httpx.AsyncClient) -> None:
    ids = {
        (await client.post(f"{TES}/tasks", json=task(), headers={**bearer(token), "Idempotency-Key": "k"})).json()["id"]
        for token in (ALICE, BOB)
    }
    assert len(ids) == 2


async def test_tokens_of_the_database(client: httpx.AsyncClient, database: Database) -> None:
    store = TokenStore(database=database)
    user, agent = make_token("user"), make_token("agent")
    assert user.startswith("tgu_") and agent.startswith("tga_")
    assert await store.create(name="carol-laptop", kind="user", hash=hash_token(user), subject="carol")
    assert await store.create(name="agent-1", kind="agent", hash=hash_token(agent), subject="agent-1", pool="default")
    assert (await client.get(f"{TES}/tasks", headers=bearer(user))).status_code == 200
    refused = await client.get(f"{TES}/tasks", headers=bearer(agent))
    assert refused.status_code == 401 and "tga_" in refused.json()["msg"] and agent not in refused.text


async def test_cors_is_for_the_origins_that_are_named(client: httpx.AsyncClient) -> None:
    for origin, allowed in (("https://portal.example.org", True), ("https://evil.example", False)):
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        answer = await client.options(f"{TES}/tasks", headers=asked)
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
        posted = await client.post(f"{TES}/tasks", json=task(), headers={**bearer(BOB), "Origin": origin})
        assert posted.status_code == (200 if allowed else 403)
