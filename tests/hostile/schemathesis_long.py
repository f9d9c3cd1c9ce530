"""Schemathesis on the exported documents: ``python -m tests.hostile.schemathesis_long [SECONDS] [SEED]``.

A gateway of its own, and new examples until the time (600 s) is over; a failure prints its seed and how to repeat it.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["CHECKS", "DOCUMENTS", "run"]

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {"tes.yaml": "/ga4gh/tes/v1", "tesgate.yaml": ""}
"""Exported document, and where its paths begin."""

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
]
"""All but two: what fits the schema may make no sense (a path that is not absolute), and null counts as absent."""


def run(name: str, origin: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Schemathesis' own program on one document; it exits with 1 where anything failed."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", str(ROOT / "openapi" / name)]
    command += ["--url", origin + DOCUMENTS[name], "--workers", "1", "--checks", ",".join(CHECKS)]
    command += ["--request-timeout", "60", "--warnings", "off", *options]
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(directory)}
    return subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment, check=False)


def _long(arguments: Sequence[str]) -> int:
    from tests.beds.postgres import serving
    from tests.hostile.gateways import standing

    seconds = int(arguments[0]) if arguments else 600
    seed = arguments[1] if len(arguments) > 1 else str(secrets.randbelow(1 << 32))
    code = 0
    with serving() as server, tempfile.TemporaryDirectory(prefix="tesgate-schemathesis-") as directory:
        with standing(server, Path(directory)) as gateways:
            origin = f"http://127.0.0.1:{gateways.open.port}"
            for name in DOCUMENTS:
                done = run(name, origin, Path(directory), "--max-time", str(seconds // len(DOCUMENTS)), "--seed", seed)
                told = f"{done.stdout[-20_000:]}{done.stderr[-4000:]}{name}: seed {seed}, exit code {done.returncode}\n"
                sys.stdout.write(told)
                code = code or done.returncode
    return code


if __name__ == "__main__":
    sys.exit(_long(sys.argv[1:]))
