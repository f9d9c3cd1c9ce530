"""Our document is the application's, and it holds all of the official one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml
from openapi_spec_validator import validate
from tools.export_openapi import render

from tesgate.api.old_openapi import old_document
from tesgate.api.openapi import tes_document
from tesgate.app.web import build_app
from tesgate.services.dialects import NEW_FIELDS
from tesgate.store.database import Database
from tests.api.conftest import TES, Context, make_context, task, use_database
from tests.beds import is_required

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def official() -> Any:
    for place in (os.environ.get("TESGATE_SPECS"), ROOT.parent / "shared" / "specs"):
        if place and (Path(place) / "tes-1.1.0.bundled.json").exists():
            return json.loads((Path(place) / "tes-1.1.0.bundled.json").read_text("utf-8"))
    reason = "the official documents are not here; set TESGATE_SPECS to a directory that has tes-1.1.0.bundled.json"
    if is_required("specs"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.parametrize("name", ["tes.yaml", "tes-1.0.yaml", "tesgate.yaml"])
def test_the_exported_files_are_the_applications(name: str) -> None:
    text = (ROOT / "openapi" / name).read_text("utf-8")
    assert text == render()[name], "run tools/export_openapi.py"
    validate(yaml.safe_load(text))


async def test_answers_under_v1_are_what_the_old_document_says(
    client: httpx.AsyncClient, context: Context, database: Database
) -> None:
    document = json.loads(json.dumps(old_document()))
    text = json.dumps(document["components"]["schemas"])
    assert "CANCELING" not in text and "tesResources_backend_parameters" not in text
    context.backend_parameters = ("known",)
    use_database(context, database)
    sent = task(
        inputs=[{"path": "/in/a", "content": "x", "streamable": True}],
        outputs=[{"path": "/out/*.txt", "path_prefix": "/out", "url": "/data/a"}],
        resources={"cpu_cores": 0.5, "backend_parameters": {"known": "x"}, "backend_parameters_strict": True},
    )
    id = (await client.post("/v1/tasks", json=sent)).json()["id"]
    for path, name in {
        "/v1/tasks?view=FULL": "tesListTasksResponse",
        f"/v1/tasks/{id}?view=BASIC": "tesTask",
        f"/v1/tasks/{id}": "tesMinimalTask",
        "/v1/service-info": "tesServiceInfo",
        "/v1/tasks/service-info": "tesOldestServiceInfo",
    }.items():
        answer = (await client.get(path)).json()
        jsonschema.validate(answer, {**document, "$ref": f"#/components/schemas/{name}"})
        # What is only for requests is in no answer, whatever schema allows it.
        assert not set(_keys(answer)) & {new for names in NEW_FIELDS.values() for new in names}


def _keys(node: Any) -> list[str]:
    if isinstance(node, list):
        return [key for item in node for key in _keys(item)]
    return [key for name, item in node.items() for key in (name, *_keys(item))] if isinstance(node, dict) else []


async def test_the_application_shows_it(tmp_path: Path) -> None:
    app = build_app(make_context(tmp_path))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        for _ in range(2):
            document = (await client.get("/openapi.json")).json()
    validate(document)
    lean = json.loads(json.dumps(tes_document()))
    for path, item in lean["paths"].items():
        assert document["paths"][TES + path] == item
    for name, schema in lean["components"]["schemas"].items():
        assert document["components"]["schemas"][name] == schema
    assert f"{TES}/tasks/{{id}}/logs/{{attempt}}/{{executor}}/{{stream}}" in document["paths"]
    assert "422" not in json.dumps(document)


def _resolved(document: Any, node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        target: Any = document
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    if isinstance(node, dict) and "anyOf" in node and "$ref" in node["anyOf"][0]:
        return _resolved(document, node["anyOf"][0])  # a task, or what view MINIMAL shows of it
    if isinstance(node, dict) and "allOf" in node:
        merged: dict[str, Any] = {}
        for part in node["allOf"]:
            found = _resolved(document, part)
            merged = {
                **merged,
                **found,
                "properties": {**merged.get("properties", {}), **found.get("properties", {})},
                "required": [*merged.get("required", []), *found.get("required", [])],
            }
        return merged
    return node


def _compare(where: str, theirs: Any, ours: Any, their_doc: Any, our_doc: Any) -> list[str]:
    """What the official schema has and ours has not."""
    theirs, ours = _resolved(their_doc, theirs), _resolved(our_doc, ours)
    missing = []
    kind, our_kind = theirs.get("type"), ours.get("type")
    if kind != our_kind and (kind, our_kind) != ("integer", "number"):
        missing.append(f"{where}: type {kind} is {our_kind}")
    our_values = set(ours.get("enum", [ours["const"]] if "const" in ours else []))
    if set(theirs.get("enum", ())) - our_values:
        missing.append(f"{where}: enum")
    missing += [f"{where}: {name} not required" for name in theirs.get("required", ()) if name not in ours["required"]]
    for name, schema in theirs.get("properties", {}).items():
        if name in ours.get("properties", {}):
            missing += _compare(f"{where}.{name}", schema, ours["properties"][name], their_doc, our_doc)
        else:
            missing.append(f"{where}.{name}: missing")
    for part in ("items", "additionalProperties"):
        if isinstance(theirs.get(part), dict):
            missing += _compare(f"{where}[]", theirs[part], ours.get(part, {}), their_doc, our_doc)
    return missing


def test_everything_official_is_there(official: Any) -> None:
    ours = json.loads(json.dumps(tes_document()))
    missing = []
    for path, item in official["paths"].items():
        for method, operation in item.items():
            mine = ours["paths"].get(path, {}).get(method)
            if mine is None:
                missing.append(f"{method} {path}")
                continue
            assert mine["operationId"] == operation["operationId"]
            known = {(_resolved(ours, p)["name"], _resolved(ours, p)["in"]): p for p in mine["parameters"]}
            for parameter in operation.get("parameters", []):
                theirs = _resolved(official, parameter)
                found = known.get((theirs["name"], theirs["in"]))
                if found is None:
                    missing.append(f"{method} {path}: parameter {theirs['name']}")
                    continue
                missing += _compare(f"{path}?{theirs['name']}", theirs["schema"], found["schema"], official, ours)
            for code, response in operation["responses"].items():
                schema = response["content"]["application/json"]["schema"]
                our_schema = mine["responses"][str(code)]["content"]["application/json"]["schema"]
                missing += _compare(f"{method} {path} {code}", schema, our_schema, official, ours)
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                our_schema = mine["requestBody"]["content"]["application/json"]["schema"]
                missing += _compare(f"{method} {path} body", schema, our_schema, official, ours)
    for name, schema in official["components"]["schemas"].items():
        if name.startswith("tes"):
            missing += _compare(name, schema, ours["components"]["schemas"][name], official, ours)
    assert missing == []


def _schema(official: Any, name: str) -> dict[str, Any]:
    return {**official, "$ref": f"#/components/schemas/{name}"}


async def test_our_answers_are_what_the_official_schemas_say(official: Any, client: Any, context: Context) -> None:
    sent = task(
        name="n",
        inputs=[{"path": "/in/a", "content": "x"}],
        outputs=[{"path": "/out/*.txt", "path_prefix": "/out", "url": "/data/a"}],
        resources={"cpu_cores": 1.0, "ram_gb": 0.25, "preemptible": False},
        tags={"a": "b"},
    )
    posted = await client.post(f"{TES}/tasks", json=sent)
    jsonschema.validate(posted.json(), _schema(official, "tesCreateTaskResponse"))
    id = posted.json()["id"]
    cancelled = await client.post(f"{TES}/tasks/{id}:cancel")
    jsonschema.validate(cancelled.json(), _schema(official, "tesCancelTaskResponse"))
    for view in ("BASIC", "FULL"):
        got = await client.get(f"{TES}/tasks/{id}?view={view}")
        jsonschema.validate(got.json(), _schema(official, "tesTask"))
        listed = await client.get(f"{TES}/tasks?view={view}")
        jsonschema.validate(listed.json(), _schema(official, "tesListTasksResponse"))
    info = await client.get(f"{TES}/service-info")
    jsonschema.validate(info.json(), _schema(official, "tesServiceInfo"), cls=jsonschema.Draft202012Validator)
