"""The exported documents against the gateway, by Schemathesis in all its phases; the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.gateways import Gateways
from tests.hostile.schemathesis_long import DOCUMENTS, run

STEADY = ["--generation-deterministic", "--max-examples", "5", "--no-shrink"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_gateway_does_what_its_documents_say(gateways: Gateways, tmp_path: Path, name: str) -> None:
    done = run(name, f"http://127.0.0.1:{gateways.open.port}", tmp_path, *STEADY)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Test cases:" in done.stdout
