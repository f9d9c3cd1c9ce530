"""The OpenAPI document of the routes under ``/v1``: that of TES 1.1 with what the old dialect changes."""

from __future__ import annotations

from typing import Any

from tesgate.api.openapi import tes_document
from tesgate.api.service_info import OLD_VERSION
from tesgate.api.tes import OLD_PREFIX
from tesgate.ga4gh import tes
from tesgate.services.dialects import NEW_FIELDS

__all__ = ["old_document"]

_ABOUT = """GA4GH Task Execution Service 1.0.0, for clients whose models know no more. The tasks are those of TES 1.1 at
 `/ga4gh/tes/v1`. Fields that came with 1.1 are honoured in requests and left out of answers (`writeOnly`); states that
 came with it are shown as one of the older states."""

_SCHEMAS = {"inputs": "tesInput", "outputs": "tesOutput", "executors": "tesExecutor", "resources": "tesResources"}
_NEW_STATES = (tes.State.PREEMPTED, tes.State.CANCELING)


def old_document() -> dict[str, Any]:
    """As ``openapi/tes-1.0.yaml`` has it."""
    document = tes_document()
    document["info"] |= {"version": OLD_VERSION, "description": _ABOUT}
    document["servers"] = [{"url": OLD_PREFIX}]
    schemas = document["components"]["schemas"]
    for part, names in NEW_FIELDS.items():
        properties = schemas[_SCHEMAS[part]]["properties"]
        for name in names:
            properties[name] = {**properties[name], "writeOnly": True}
    state = schemas["tesState"]
    schemas["tesState"] = {**state, "enum": [name for name in state["enum"] if name not in _NEW_STATES]}
    del schemas["tesServiceInfo"]["properties"]["tesResources_backend_parameters"]
    schemas["tesOldestServiceInfo"] = {
        "type": "object",
        "description": "Service info of TES before 1.0.",
        "properties": {
            "name": {"type": "string"},
            "doc": {"type": "string"},
            "storage": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "doc", "storage"],
        "additionalProperties": False,
    }
    info = document["paths"]["/service-info"]["get"]
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/tesOldestServiceInfo"}}}
    document["paths"]["/tasks/service-info"] = {
        "get": {
            **info,
            "summary": "What this service is, for clients of TES before 1.0.",
            "operationId": "GetOldestServiceInfo",
            "responses": {**info["responses"], "200": {"description": "Done.", "content": answer}},
        }
    }
    return document
