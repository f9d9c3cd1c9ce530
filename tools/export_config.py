"""Writes docs/configuration.md and docs/configuration.schema.json; ``--check`` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tesgate.config import reference_page, settings_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> int:
    """Write (or compare) both files; 1 when a comparison fails."""
    wanted = {
        DOCS / "configuration.md": reference_page(),
        DOCS / "configuration.schema.json": json.dumps(settings_schema(), indent=2) + "\n",
    }
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path} is not what the settings say; run tools/export_config.py", file=sys.stderr)
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
