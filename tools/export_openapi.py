"""Writes openapi/tes.yaml, the TES part of the application's document; ``--check`` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

from tesgate.api.openapi import tes_document

TARGET = Path(__file__).resolve().parent.parent / "openapi" / "tes.yaml"


def render() -> str:
    """The file's text."""
    plain = json.loads(json.dumps(tes_document()))
    head = "# Made by tools/export_openapi.py from the wire models; do not edit.\n"
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def main() -> int:
    """Write (or compare); 1 when the comparison fails."""
    if "--check" not in sys.argv[1:]:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(render(), "utf-8")
    elif not TARGET.exists() or TARGET.read_text("utf-8") != render():
        print(f"{TARGET} is not what the application says; run tools/export_openapi.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
