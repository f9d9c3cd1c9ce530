"""The real cwl-tes 0.3.0 in an environment of its own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.beds.venvs import environment

__all__ = ["serving"]


@contextmanager
def serving() -> Generator[Path]:
    """Its program. Made the first time, in some ten seconds."""
    yield environment("cwl-tes", compiled=False) / "bin/cwl-tes"
