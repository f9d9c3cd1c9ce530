"""Finds a real Python 3.9, the oldest that the runner promises."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["python39"]


def _candidates() -> Iterator[list[str]]:
    named = os.environ.get("TESGATE_PYTHON39")
    if named:
        yield [named]
    beds = os.environ.get("TESGATE_BEDS")
    if beds and (Path(beds) / "bullseye").is_dir():
        yield ["chroot", str(Path(beds) / "bullseye"), "/usr/bin/python3.9"]
    roots = [os.environ.get("PYENV_ROOT"), "/root/.pyenv", os.path.expanduser("~/.pyenv")]
    for root in filter(None, roots):
        for path in sorted(Path(root).glob("versions/3.9.*/bin/python3.9")):
            yield [str(path)]
    found = shutil.which("python3.9")
    if found:
        yield [found]


def python39() -> list[str] | None:
    """The start of a command line that runs Python 3.9, or None.

    In order: ``$TESGATE_PYTHON39``, a chroot at ``$TESGATE_BEDS/bullseye`` (which sees its own files only: whoever
    uses it copies what it runs into the chroot), pyenv, the PATH. Each is asked for its version, a name is no proof.
    """
    question = "import sys; print(sys.version_info[:2] == (3, 9))"
    for command in _candidates():
        try:
            done = subprocess.run(
                [*command, "-I", "-c", question], capture_output=True, text=True, timeout=60, check=False
            )
        except OSError:
            continue
        if done.stdout.strip() == "True":
            return command
    return None
