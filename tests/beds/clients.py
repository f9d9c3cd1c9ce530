"""Model classes of clients of TES 1.0 in an environment of their own: py-tes 0.4.2, pydantic-tes 0.4.0, Pulsar 0.16."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.beds.venvs import environment

__all__ = ["Clients", "serving"]

READ_SECONDS = 60


@dataclass(frozen=True)
class Clients:
    """A Python that has them."""

    python: Path

    def run(self, script: Path, asked: Any) -> Any:
        """What `script` says (as JSON on stdout) about `asked` (as JSON on its stdin)."""
        done = subprocess.run(
            [str(self.python), "-W", "ignore", str(script)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=READ_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


@contextmanager
def serving() -> Generator[Clients]:
    """Made the first time, in some ten seconds."""
    yield Clients(environment("clients") / "bin/python")
