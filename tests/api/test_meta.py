"""Probes, metrics and the documentation pages."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx
import pytest_asyncio

from tesgate.app.web import build_app
from tests.api.conftest import TES, Context, make_context, task


@pytest_asyncio.fixture
async def bare(tmp_path: Path) -> AsyncGenerator[tuple[httpx.AsyncClient, Context]]:
    context = make_context(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(context)), base_url="http://t") as client:
        yield client, context


async def test_probes(bare) -> None:
    client, context = bare
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).status_code == 200
    context.not_ready.append("The database does not answer.")
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"msg": "The database does not answer.", "status_code": 503}
    assert (await client.get("/healthz")).status_code == 200


async def test_metrics_name_the_route_and_not_the_path(client: httpx.AsyncClient) -> None:
    id = (await client.post(f"{TES}/tasks", json=task())).json()["id"]
    await client.get(f"{TES}/tasks/{id}")
    await client.get(f"/v1/tasks/{id}")
    await client.get("/nowhere/at/all")
    text = (await client.get("/metrics")).text
    assert 'tesgate_http_request_seconds_count{method="GET",route="/ga4gh/tes/v1/tasks/{id}",status="200"} 1.0' in text
    # Whoever still speaks the old dialect can be seen.
    assert 'tesgate_http_request_seconds_count{method="GET",route="/v1/tasks/{id}",status="200"} 1.0' in text
    assert 'route="none",status="404"' in text
    assert "tesgate_tasks_submitted_total 1.0" in text
    assert id not in text and "nowhere" not in text


async def test_pages_load_nothing_from_elsewhere(bare) -> None:
    client, _ = bare
    assert (await client.get("/")).headers["location"] == "/docs"
    for page in ("/docs", "/redoc"):
        text = (await client.get(page)).text
        links = re.findall(r"""(?:src|href)=["']([^"']+)""", text)
        assert links
        for link in links:
            assert link.startswith("/"), f"{page} loads {link}"
            assert (await client.get(link)).status_code == 200
    missing = await client.get("/docs/static/nothing.js")
    assert missing.status_code == 404 and missing.json()["status_code"] == 404


async def test_errors_of_the_framework_have_the_one_shape(bare) -> None:
    client, _ = bare
    for method, path, code in (
        ("POST", "/healthz", 405),
        ("DELETE", f"{TES}/tasks/x/logs/1/0/stdout", 405),
        ("GET", "/healthz/", 404),
        ("GET", f"{TES}/tasks/x/logs/1/x/stdout", 400),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == code
        assert set(answer.json()) == {"msg", "status_code"} and answer.json()["status_code"] == code
        assert code != 405 or "GET" in answer.headers["allow"]
