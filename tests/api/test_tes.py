"""TES 1.1 on a real database, in process."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest

from tests.api.conftest import TES, Context, task

Client = httpx.AsyncClient


async def create(client: Client, **fields: Any) -> str:
    answer = await client.post(f"{TES}/tasks", json=task(**fields))
    assert answer.status_code == 200, answer.text
    assert list(answer.json()) == ["id"]
    return str(answer.json()["id"])


async def get(client: Client, id: str, view: str | None = None) -> Any:
    answer = await client.get(f"{TES}/tasks/{id}", params={"view": view} if view else None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status_code: int, *words: str) -> None:
    assert answer.status_code == status_code, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"msg", "status_code"}
    assert body["status_code"] == status_code
    for word in words:
        assert word in body["msg"]


async def test_minimal_is_the_default_and_holds_two_fields(client: Client) -> None:
    id = await create(client, name="n")
    assert await get(client, id) == {"id": id, "state": "QUEUED"}
    assert await get(client, id, "MINIMAL") == {"id": id, "state": "QUEUED"}


async def test_only_what_was_sent_is_echoed(client: Client) -> None:
    sent = task(
        name="n",
        inputs=[{"path": "/in/a", "url": "s3://bucket/a", "streamable": True}, {"path": "/in/b", "content": "text"}],
        outputs=[{"path": "/out/a", "url": "/data/a"}],
        resources={"cpu_cores": 2.0, "ram_gb": 1.5},
        tags={"a": "b"},
        volumes=["/vol/A/"],
    )
    id = await create(client, **sent)
    full = await get(client, id, "FULL")
    created = full.pop("creation_time")
    assert created.endswith("Z")
    sent["inputs"][0]["type"] = sent["inputs"][1]["type"] = sent["outputs"][0]["type"] = "FILE"
    assert full == {**sent, "id": id, "state": "QUEUED", "logs": full["logs"]}
    assert full["resources"]["cpu_cores"] == 2 and "2.0" not in json.dumps(full["resources"])
    basic = await get(client, id, "BASIC")
    assert [sorted(item) for item in basic["inputs"]] == [["path", "streamable", "type", "url"], ["path", "type"]]
    for log in basic["logs"]:
        assert "system_logs" not in log


async def test_fractional_cores_come_back_as_sent(client: Client) -> None:
    full = await get(client, await create(client, resources={"cpu_cores": 0.5}), "FULL")
    assert full["resources"] == {"cpu_cores": 0.5}


async def test_nulls_and_read_only_fields_do_not_count(client: Client) -> None:
    """What pydantic-tes and generated clients send."""
    body = {
        **task(),
        **dict.fromkeys(("name", "description", "inputs", "outputs", "volumes", "tags", "logs", "creation_time")),
        "id": "mine",
        "state": "UNKNOWN",
        "logs": [{"nonsense": 1}],
        "creation_time": 5,
        "resources": dict.fromkeys(("cpu_cores", "ram_gb", "disk_gb", "preemptible", "zones", "backend_parameters")),
        "vendor": {"extension": True},
    }
    body["executors"] = [{**body["executors"][0], **dict.fromkeys(("workdir", "stdin", "stdout", "stderr", "env"))}]
    answer = await client.post(f"{TES}/tasks", json=body)
    assert answer.status_code == 200, answer.text
    id = answer.json()["id"]
    assert id != "mine"
    full = await get(client, id, "FULL")
    assert set(full) == {"id", "state", "executors", "resources", "logs", "creation_time"}
    assert full["executors"] == task()["executors"]


async def test_a_full_task_can_be_sent_again(client: Client) -> None:
    full = await get(client, await create(client, name="again"), "FULL")
    answer = await client.post(f"{TES}/tasks", json=full)
    assert answer.status_code == 200
    assert answer.json()["id"] != full["id"]


async def test_unsupported_backend_parameters_are_dropped_with_a_note(client: Client, context: Context) -> None:
    id = await create(client, resources={"backend_parameters": {"INVALID": "PARAMETER"}})
    full = await get(client, id, "FULL")
    assert full["resources"] == {"backend_parameters": {}}
    assert any("'INVALID' is not supported" in line for log in full["logs"] for line in log["system_logs"])
    strict = task(resources={"backend_parameters": {"INVALID": "P"}, "backend_parameters_strict": True})
    refused(await client.post(f"{TES}/tasks", json=strict), 400, "resources.backend_parameters", "INVALID")
    strict["resources"]["backend_parameters"] = {}
    assert (await client.post(f"{TES}/tasks", json=strict)).status_code == 200


async def test_unknown_ids(client: Client) -> None:
    for id in ("unknown", "01h00000000000000000000000", "x" * 3000, "a%00b", "%ff", "a b"):
        for view in ("MINIMAL", "BASIC", "FULL"):
            refused(await client.get(f"{TES}/tasks/{id}", params={"view": view}), 404)
        refused(await client.post(f"{TES}/tasks/{id}:cancel"), 404)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("view=minimal", ("view", "MINIMAL")),
        ("state=DONE", ("state", "COMPLETE")),
        ("page_size=0", ("page_size", "2047")),
        ("page_size=2048", ("page_size", "2047")),
        ("page_size=-1", ("page_size",)),
        ("page_size=ten", ("page_size",)),
        ("page_size=%D9%A1", ("page_size",)),
        ("page_token=garbage", ("page_token", "next_page_token")),
        ("page_token=%FF%00", ()),
        ("page_token=MQ", ("page_token",)),
        ("tag_value=a", ("tag_value",)),
        ("tag_key=a&" * 101, ("tag_key", "100")),
        ("name_prefix=%00", ("NUL",)),
    ],
)
async def test_wrong_parameters(gatekeeper: Client, query: str, words: tuple[str, ...]) -> None:
    refused(await gatekeeper.get(f"{TES}/tasks?{query}"), 400, *words)


async def test_pages_walk_over_everything_newest_first(client: Client) -> None:
    ids = [await create(client, name=f"t{number}") for number in range(7)]
    assert sorted(ids) == ids
    seen: list[str] = []
    token = None
    pages = 0
    while pages == 0 or token:
        params = {"page_size": "3", **({"page_token": token} if token else {})}
        page = (await client.get(f"{TES}/tasks", params=params)).json()
        assert [set(item) for item in page["tasks"]] == [{"id", "state"}] * len(page["tasks"])
        seen += [item["id"] for item in page["tasks"]]
        token = page.get("next_page_token")
        pages += 1
        if pages == 1:
            await create(client, name="later")  # does not disturb the pages that follow
    assert seen == ids[::-1]
    assert pages == 3
    whole = (await client.get(f"{TES}/tasks", params={"page_size": "2047"})).json()
    assert len(whole["tasks"]) == 8
    assert "next_page_token" not in whole


async def test_a_page_that_is_exactly_full_is_the_last(client: Client) -> None:
    for _ in range(2):
        await create(client)
    assert "next_page_token" not in (await client.get(f"{TES}/tasks?page_size=2")).json()


_TAGS = [
    ({"foo": "bar"}, "tag_key=foo&tag_value=bar", True),
    ({"foo": "bat"}, "tag_key=foo&tag_value=bar", False),
    ({"foo": ""}, "tag_key=foo&tag_value=", True),
    ({"foo": "bar", "baz": "bat"}, "tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", True),
    ({"foo": "bar", "baz": "bat"}, "tag_key=foo&tag_value=bar", True),
    ({"foo": "bar"}, "tag_key=foo&tag_value=bar&tag_key=baz&tag_value=bat", False),
    ({"foo": "bar"}, "tag_key=foo&tag_value=", True),
    ({}, "tag_key=foo&tag_value=", False),
    ({"foo": "bar"}, "tag_key=foo", True),
    ({"foo": "bar", "baz": "x"}, "tag_key=foo&tag_key=baz&tag_value=bar", True),
    ({"foo": "bar"}, "tag_key=foo&tag_key=baz&tag_value=bar", False),
    ({"a%": "b_"}, "tag_key=a%25&tag_value=b_", True),
]


async def test_tags_as_the_specification_has_them(client: Client) -> None:
    for number, (tags, query, match) in enumerate(_TAGS):
        id = await create(client, tags=tags, name=f"case{number}.")
        found = (await client.get(f"{TES}/tasks?name_prefix=case{number}.&{query}")).json()["tasks"]
        assert [item["id"] for item in found] == ([id] if match else []), (tags, query)


async def test_filters_by_name_and_state(client: Client) -> None:
    id = await create(client, name="50%_a")
    await create(client, name="50ax")
    await client.post(f"{TES}/tasks/{id}:cancel")
    for query in ("name_prefix=50%25_", "state=CANCELED", "name_prefix=50&state=CANCELED&view=FULL"):
        found = (await client.get(f"{TES}/tasks?{query}")).json()["tasks"]
        assert [item["id"] for item in found] == [id], query
    assert (await client.get(f"{TES}/tasks?name_prefix=50&state=RUNNING")).json() == {"tasks": []}


@pytest.mark.parametrize("separator", [":", "%3A", "%3a"])
async def test_cancel_is_idempotent(client: Client, separator: str) -> None:
    id = await create(client)
    for _ in range(3):
        answer = await client.post(f"{TES}/tasks/{id}{separator}cancel")
        assert (answer.status_code, answer.json()) == (200, {})
    full = await get(client, id, "FULL")
    assert full["state"] == "CANCELED"
    assert full["logs"][0]["logs"] == [] and full["logs"][0]["outputs"] == []


async def test_idempotency_key(client: Client) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = await client.post(f"{TES}/tasks", json=task(name="a"), headers=headers)
    body = json.dumps({"name": "a", **task()}, indent=3)
    again = await client.post(f"{TES}/tasks", content=body, headers={**headers, "Content-Type": "application/json"})
    assert again.json() == first.json()
    refused(await client.post(f"{TES}/tasks", json=task(name="b"), headers=headers), 409, "Idempotency-Key")
    assert len((await client.get(f"{TES}/tasks")).json()["tasks"]) == 1
    for key in ("", "x" * 256, "a\x01b"):
        answer = await client.post(f"{TES}/tasks", json=task(), headers={"Idempotency-Key": key})
        refused(answer, 400, "Idempotency-Key")


async def test_many_at_once_with_one_key_make_one_task(client: Client) -> None:
    found: list[str] = []

    async def post() -> None:
        answer = await client.post(f"{TES}/tasks", json=task(), headers={"Idempotency-Key": "same"})
        found.append(answer.json()["id"])

    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(post)
    assert len(found) == 12 and len(set(found)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"nonsense",
        b"[]",
        b"5",
        b"null",
        b'{"executors":[{"image":"a","command":["b"]}],"executors":[]}',
        b'{"executors":[{"image":"a","command":["b"]}],"resources":{"cpu_cores":NaN}}',
        b'{"executors":[{"image":"a","command":["b"]}],"resources":{"cpu_cores":-Infinity}}',
        b'{"executors":[{"image":"a","command":["b"]}],"resources":{"cpu_cores":1e999}}',
        b'{"executors":[{"image":"a","command":["b"]}],"resources":{"cpu_cores":' + b"9" * 5000 + b"}}",
        b'{"executors":[{"image":"a","command":["b\xff"]}]}',
        b'{"executors":[{"image":"a","command":["b\\u0000"]}]}',
        b'{"executors":[{"image":"a","command":["b\\ud800"]}]}',
        b'{"executors":[{"image":"a","command":["b"]}],"tags":{"\\udc00":"x"}}',
        b'{"executors":[{"image":"a","command":["b"]}],"tags":{"\\u0000":"x"}}',
        b'{"executors":[{"image":"a","command":["b\x00"]}]}',
        b'\xef\xbb\xbf{"executors":[{"image":"a","command":["b"]}]}',
        b'{"executors":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"executors":[{"image":"a","command":["b"]}],"x":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    ],
    ids=lambda body: body[:60].decode("latin-1"),
)
async def test_bodies_that_are_no_task(gatekeeper: Client, body: bytes) -> None:
    answer = await gatekeeper.post(f"{TES}/tasks", content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400)


async def test_texts_that_only_look_dangerous(client: Client) -> None:
    body = rb'{"name":"\\u0000 \ud83d\ude00 \\ud800","executors":[{"image":"a","command":["b"]}]}'
    answer = await client.post(
        f"{TES}/tasks", content=body, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert answer.status_code == 200
    assert (await get(client, answer.json()["id"], "FULL"))["name"] == "\\u0000 \U0001f600 \\ud800"


async def test_sizes(client: Client, context: Context) -> None:
    limits = context.settings.limits
    content = "é" * (limits.max_content_bytes // 2)
    ok = task(inputs=[{"path": "/in/a", "content": content}])
    answer = await client.post(f"{TES}/tasks", json=ok)
    assert answer.status_code == 200
    assert (await get(client, answer.json()["id"], "FULL"))["inputs"][0]["content"] == content
    ok["inputs"][0]["content"] += "x"
    refused(await client.post(f"{TES}/tasks", json=ok), 400, "inputs[0].content", str(limits.max_content_bytes))
    big = b" " * (limits.max_body_bytes + 1)
    json_type = {"Content-Type": "application/json"}
    refused(await client.post(f"{TES}/tasks", content=big, headers=json_type), 413, str(limits.max_body_bytes))

    async def stream() -> Any:
        for _ in range(limits.max_body_bytes // (1 << 20) + 1):
            yield b" " * (1 << 20)

    refused(await client.post(f"{TES}/tasks", content=stream(), headers=json_type), 413, str(limits.max_body_bytes))


async def test_media_types(client: Client) -> None:
    body = json.dumps(task()).encode()
    for kind in ("application/json", "application/json; charset=utf-8", "application/vnd.tes+json", None):
        headers = {"Content-Type": kind} if kind else {}
        assert (await client.post(f"{TES}/tasks", content=body, headers=headers)).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await client.post(f"{TES}/tasks", content=body, headers={"Content-Type": kind})
        refused(answer, 415, "application/json")


_ORIGINS = [
    ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
    ("http://localhost:8000", "localhost:8000", True),
    ("http://evil.example", "127.0.0.1:8000", False),
    ("http://127.0.0.1:9999", "127.0.0.1:8000", False),
    ("http://rebound.example:8000", "rebound.example:8000", False),
    ("null", "127.0.0.1:8000", False),
]


async def test_pages_of_others_cannot_start_tasks(client: Client) -> None:
    for origin, host, allowed in _ORIGINS:
        headers = {"Origin": origin, "Host": host, "Content-Type": "application/json"}
        answer = await client.post(f"{TES}/tasks", content=json.dumps(task()), headers=headers)
        if allowed:
            assert answer.status_code == 200, origin
        else:
            refused(answer, 403, "cors.allow_origins")
            refused(await client.post(f"{TES}/tasks/x:cancel", headers=headers), 403)


async def test_browsers_read_under_local_names_only(client: Client) -> None:
    """DNS rebinding: to the browser the stranger's page is of the same origin, and sends no Origin with a GET."""
    for host, allowed in (("127.0.0.1:8000", True), ("[::1]:8000", True), ("rebound.example:8000", False)):
        headers = {"Host": host, "Sec-Fetch-Site": "same-origin"}
        answer = await client.get(f"{TES}/tasks", headers=headers)
        log = await client.get(f"{TES}/tasks/{'0' * 26}/logs/1/0/stdout", headers=headers)
        if allowed:
            assert answer.status_code == 200
            assert log.status_code == 404
        else:
            refused(answer, 403, "localhost")
            refused(log, 403)
    # Programs are not browsers; whatever name leads here is theirs to know.
    assert (await client.get(f"{TES}/tasks", headers={"Host": "tes.example"})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/ga4gh/tes/v1",
        "/ga4gh/tes/v1/",
        "/ga4gh/tes/v1/tasks/",
        "/ga4gh/tes/v1/service-info/",
        "/ga4gh/tes/v1/tasks/a/b",
        "/ga4gh/tes/v1/ga4gh/tes/v1/tasks",
        "/ga4gh/tes/v1/v1/tasks",
        "/ga4gh/tes/v2/tasks",
        "/tasks",
        "/v1/nothing",
        "/ga4gh/wes/v1/service-info",
    ],
)
async def test_unknown_paths_are_404_whatever_the_method(gatekeeper: Client, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        answer = await gatekeeper.request(method, path)
        refused(answer, 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/tasks", "GET, HEAD, POST, OPTIONS"),
        ("PUT", "/tasks/x", "GET, HEAD, OPTIONS"),
        ("DELETE", "/tasks/x", "GET, HEAD, OPTIONS"),
        ("GET", "/tasks/x:cancel", "POST, OPTIONS"),
        ("POST", "/service-info", "GET, HEAD, OPTIONS"),
    ],
)
async def test_wrong_methods(gatekeeper: Client, method: str, path: str, allow: str) -> None:
    answer = await gatekeeper.request(method, TES + path)
    refused(answer, 405, method)
    assert answer.headers["allow"] == allow
    options = await gatekeeper.options(TES + path)
    assert (options.status_code, options.headers["allow"], options.content) == (204, allow, b"")


async def test_head_is_get_without_a_body(client: Client) -> None:
    id = await create(client)
    for path in (f"{TES}/tasks/{id}", f"{TES}/tasks/{id}?view=FULL", f"{TES}/tasks", f"{TES}/service-info"):
        got, head = await client.get(path), await client.head(path)
        assert head.content == b""
        assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize("prefix", ["/v1", "//v1", "/ga4gh/tes/v1", "/ga4gh/tes//v1"])
async def test_every_prefix(client: Client, prefix: str) -> None:
    # httpx takes `//v1` for a host; clients send it as a path.
    base = "http://127.0.0.1:8000"
    posted = await client.post(f"{base}{prefix}/tasks", json=task())
    assert posted.status_code == 200
    id = posted.json()["id"]
    assert (await client.get(f"{base}{prefix}/tasks/{id}")).json()["id"] == id
    assert (await client.get(f"{base}{prefix}/service-info")).json()["type"]["artifact"] == "tes"
    assert set((await client.get(f"{base}{prefix}/tasks/service-info")).json()) == {"name", "doc", "storage"}


async def test_service_info(client: Client, context: Context) -> None:
    info = (await client.get(f"{TES}/service-info")).json()
    assert info["type"] == {"group": "org.ga4gh", "artifact": "tes", "version": "1.1.0"}
    assert info["storage"] == [f"file://{context.settings.file_roots[0].path}"]
    assert info["tesResources_backend_parameters"] == []
    assert {"id", "name", "organization", "version", "description"} <= set(info)
    assert "contactUrl" not in info


async def test_credentials_are_ignored_while_authentication_is_off(client: Client) -> None:
    for value in ("Basic Tm9uZTpOb25l", "Bearer whatever", "nonsense", "Basic !!"):
        answer = await client.get(f"{TES}/tasks", headers={"Authorization": value})
        assert answer.status_code == 200


async def test_a_database_that_is_away_is_503(client: Client, context: Context, monkeypatch: Any) -> None:
    from tesgate.store.errors import DatabaseUnavailable

    async def away(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailable("no answer")

    monkeypatch.setattr(context.tasks, "page", away)
    refused(await client.get(f"{TES}/tasks"), 503)

    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(context.tasks, "page", broken)
    answer = await client.get(f"{TES}/tasks")
    refused(answer, 500)
    assert "secret" not in answer.text
