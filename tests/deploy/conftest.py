"""What is given away: the release wheel, and the image with it."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest

from tests import beds
from tests.beds import is_required
from tests.beds.docker import Docker
from tests.beds.image import Image, serving
from tests.runner.test_exec import ROOT, load

DATE = "1700000000"
"""SOURCE_DATE_EPOCH of the tests' wheels."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release wheel of the checkout."""
    builder = load(ROOT / "tools" / "build_wheel.py")
    try:
        path: Path = builder.build(tmp_path_factory.mktemp("wheel"), date=DATE)
    except builder.BuildError as exc:
        if "there is no compiler" not in str(exc) or is_required("all"):
            raise
        pytest.skip(str(exc))
    return path


@pytest.fixture(scope="session")
def image(docker: Docker, wheel: Path) -> Generator[Image]:
    """The container image (`tests.beds.image.Image`)."""
    with beds.standing("image", partial(serving, docker.socket, wheel)) as bed:
        yield bed
