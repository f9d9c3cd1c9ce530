"""Writes what the application exports: openapi/tes.yaml, tes-1.0.yaml (under /v1) and tesgate.yaml (extension routes).

``--check`` only compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml

from tesgate.api.context import ApiContext
from tesgate.api.old_openapi import old_document
from tesgate.api.openapi import tes_document
from tesgate.api.tes import PREFIX
from tesgate.app import build_app
from tesgate.config import Settings

OPENAPI = Path(__file__).resolve().parent.parent / "openapi"

HEAD = "# Made by tools/export_openapi.py from the application; do not edit.\n"


def extensions() -> dict[str, Any]:
    """The application's own document without what is TES."""
    context = cast(ApiContext, SimpleNamespace(settings=Settings()))
    document: dict[str, Any] = json.loads(json.dumps(build_app(context).openapi()))
    document["info"]["title"] = "tesgate: routes beside the GA4GH ones"
    document["paths"] = {
        path: item
        for path, item in document["paths"].items()
        if path.removeprefix(PREFIX) not in tes_document()["paths"]
    }
    document.pop("x-tesgate", None)
    # Only what these routes refer to.
    schemas = document.get("components", {}).get("schemas", {})
    used: set[str] = set()
    text = json.dumps(document["paths"])
    while more := {name for name in schemas if f'/{name}"' in text} - used:
        used |= more
        text = json.dumps([schemas[name] for name in more])
    document["components"] = {"schemas": {name: schemas[name] for name in sorted(used)}}
    return document


def render() -> dict[str, str]:
    """The files' texts by name."""
    documents = {
        "tes.yaml": json.loads(json.dumps(tes_document())),
        "tes-1.0.yaml": json.loads(json.dumps(old_document())),
        "tesgate.yaml": extensions(),
    }
    return {
        name: HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
        for name, document in documents.items()
    }


def main() -> int:
    """Write (or compare); 1 when the comparison fails."""
    OPENAPI.mkdir(exist_ok=True)
    code = 0
    for name, text in render().items():
        target = OPENAPI / name
        if "--check" not in sys.argv[1:]:
            target.write_text(text, "utf-8")
        elif not target.exists() or target.read_text("utf-8") != text:
            print(f"{target} is not what the application says; run tools/export_openapi.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
