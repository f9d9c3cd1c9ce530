"""The real cwl-tes 0.3.0 in an environment of its own."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.beds import BedUnavailable
from tests.beds.venvs import environment

__all__ = ["serving"]


@contextmanager
def serving() -> Generator[Path]:
    """Its program. Made the first time, in some ten seconds."""
    if sys.version_info >= (3, 12):
        raise BedUnavailable("cwl-tes needs setuptools 57.5, which no Python from 3.12 on can run: use Python 3.11.")
    yield environment("cwl-tes", compiled=False) / "bin/cwl-tes"
