"""The OpenAPI document of the TES routes, made from the wire models and the table below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from tesgate import __version__
from tesgate.api.tes import DEFAULT_PAGE, MAX_PAGE, PREFIX
from tesgate.ga4gh import common, tes

__all__ = ["install_openapi", "tes_document"]

_MODELS = (tes.Task, tes.ServiceInfo, tes.ListTasksResponse, tes.CreateTaskResponse, tes.CancelTaskResponse, tes.View)
_TAG = "TaskService"

_ABOUT = """GA4GH Task Execution Service 1.1.0. In a request, null counts as absent, and unknown fields are ignored.
 Every answer that is not 2xx has the body `{"msg": …, "status_code": …}`. Below `/v1` the same
 routes answer in the words of TES 1.0."""


class _Schema(GenerateJsonSchema):
    """Absent and null mean the same here, so null is not shown as a type of its own."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default", ...) is None:
            del made["default"]
        return made


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _shown() -> dict[str, Any]:
    """A task as it is answered."""
    return {"anyOf": [_ref("tesTask"), _ref("tesMinimalTask")]}


def _schemas() -> dict[str, Any]:
    """Component schemas under the specification's names: ``tesTask`` and so on."""
    models = [model for model in (*_MODELS, common.ErrorBody) if model is not tes.View]
    _, top = models_json_schema(
        [(model, "validation") for model in models],  # type: ignore[misc]
        schema_generator=_Schema,
        ref_template="#/components/schemas/tes{model}",
    )
    made = {f"tes{name}": _tidy(schema) for name, schema in top["$defs"].items()}
    made["tesState"]["readOnly"] = True
    # The specification has tesTask alone, whose executors are required, and then leaves them out of view MINIMAL.
    made["tesMinimalTask"] = {
        "type": "object",
        "description": "A task in the view `MINIMAL`.",
        "properties": {"id": {"type": "string"}, "state": _ref("tesState")},
        "required": ["id", "state"],
        "additionalProperties": False,
    }
    made["tesListTasksResponse"]["properties"]["tasks"]["items"] = _shown()
    return dict(sorted(made.items()))


def _tidy(node: Any) -> Any:
    """Without the titles that pydantic makes out of names, and without ``allOf`` around one reference."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _tidy(item) for key, item in node.items() if not (key == "title" and isinstance(item, str))}
    if "properties" in node:
        out["properties"] = {name: _tidy(item) for name, item in node["properties"].items()}
    for key in ("allOf", "anyOf"):
        if isinstance(out.get(key), list) and len(out[key]) == 1:
            out |= out.pop(key)[0]
    return out


def _parameter(name: str, text: str, schema: Mapping[str, Any], *, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "description": text, "required": where == "path", "schema": dict(schema)}


_VIEW = _parameter(
    "view",
    "`MINIMAL`: only `id` and `state`. `BASIC`: all but stdout and stderr of executors, content of inputs, and "
    "`system_logs`. `FULL`: everything.",
    {"type": "string", "default": "MINIMAL", "enum": list(tes.View)},
)
_ID = _parameter("id", "Id of the task.", {"type": "string"}, where="path")
_LIST = [
    _parameter("name_prefix", "Only tasks whose name begins with this.", {"type": "string"}),
    _parameter("state", "Only tasks in this state.", _ref("tesState")),
    _parameter(
        "tag_key",
        "Only tasks with this tag. May be repeated: all must match.",
        {"type": "array", "items": {"type": "string"}},
    ),
    _parameter(
        "tag_value",
        "The value for the tag_key at the same position; a missing or empty one matches any value.",
        {"type": "array", "items": {"type": "string"}},
    ),
    _parameter(
        "page_size",
        f"Tasks on one page, 1 to {MAX_PAGE}.",
        {"type": "integer", "format": "int32", "default": DEFAULT_PAGE, "minimum": 1, "maximum": MAX_PAGE},
    ),
    _parameter("page_token", "`next_page_token` of the page before.", {"type": "string"}),
    _VIEW,
]
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Your own name for this request. The same key with the same body gives the same task, so that a "
    "request whose answer was lost can be sent again; with another body it is refused (409).",
    "schema": {"type": "string", "maxLength": 255},
}


def _operation(
    name: str,
    summary: str,
    answer: Mapping[str, Any],
    errors: Mapping[int, str],
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: bool = False,
    open_to_all: bool = False,
) -> dict[str, Any]:
    words = {**errors, 500: "A fault inside the gateway.", 503: "Try again."}
    if not open_to_all:
        words = {401: "No credentials, or wrong ones.", **words}
    operation: dict[str, Any] = {
        "tags": [_TAG],
        "summary": summary,
        "operationId": name,
        "parameters": parameters or [],
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            **{
                str(code): {"description": text, "content": {"application/json": {"schema": _ref("tesErrorBody")}}}
                for code, text in sorted(words.items())
            },
        },
        "security": [] if open_to_all else [{}, {"bearer": []}, {"basic": []}],
    }
    if body:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref("tesTask")}}}
    return operation


def _paths() -> dict[str, Any]:
    unknown = {404: "No such task."}
    return {
        "/service-info": {
            "get": _operation("GetServiceInfo", "What this service is.", _ref("tesServiceInfo"), {}, open_to_all=True)
        },
        "/tasks": {
            "get": _operation(
                "ListTasks",
                "List tasks, newest first.",
                _ref("tesListTasksResponse"),
                {400: "A parameter is wrong."},
                parameters=_LIST,
            ),
            "post": _operation(
                "CreateTask",
                "Create a task. When the answer comes, it is stored.",
                _ref("tesCreateTaskResponse"),
                {
                    400: "The task is not valid.",
                    403: "A page of another origin.",
                    409: "The Idempotency-Key was used with another body.",
                    413: "The body is too large.",
                    415: "The body is not JSON.",
                },
                parameters=[_KEY],
                body=True,
            ),
        },
        "/tasks/{id}": {
            "get": _operation(
                "GetTask",
                "Get one task.",
                _shown(),
                {400: "A parameter is wrong.", **unknown},
                parameters=[_ID, _VIEW],
            )
        },
        "/tasks/{id}:cancel": {
            "post": _operation(
                "CancelTask",
                "Cancel a task. One that has ended stays as it is.",
                _ref("tesCancelTaskResponse"),
                {403: "A page of another origin.", **unknown},
                parameters=[_ID],
            )
        },
    }


def tes_document() -> dict[str, Any]:
    """The TES part alone, as ``openapi/tes.yaml`` has it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Task Execution Service",
            "version": tes.TES_VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": PREFIX}],
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
    }


def _drop_validation(document: dict[str, Any]) -> None:
    """FastAPI promises 422 with a shape of its own; here such requests get 400 in the one shape."""
    for item in document["paths"].values():
        for operation in item.values():
            operation.get("responses", {}).pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def install_openapi(app: FastAPI) -> None:
    """Let ``app.openapi()`` show the lean routes beside those that FastAPI knows."""
    own = app.openapi

    def merged() -> dict[str, Any]:
        if "x-tesgate" not in own():
            document = own()
            lean = tes_document()
            document["info"]["version"] = __version__
            paths = {PREFIX + path: item for path, item in lean["paths"].items()}
            document["paths"] = {**paths, **document.get("paths", {})}
            components = document.setdefault("components", {})
            for kind, items in lean["components"].items():
                components[kind] = {**items, **components.get(kind, {})}
            _drop_validation(document)
            document["x-tesgate"] = {"tes": tes.TES_VERSION}
        return own()

    app.openapi = merged  # type: ignore[method-assign]
