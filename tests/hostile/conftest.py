"""The gateways that all hostile tests of a run share: what one leaves behind, the next one finds."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.beds.postgres import Server
from tests.hostile.gateways import Gateways, standing


@pytest.fixture(scope="session")
def gateways(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Generator[Gateways]:
    with standing(postgres_server, tmp_path_factory.mktemp("hostile")) as found:
        yield found


@pytest.fixture
def port(gateways: Gateways) -> int:
    """Of the gateway without authentication."""
    return gateways.open.port
