"""bubblewrap, where the kernel lets it make its namespaces."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.beds import BedUnavailable

__all__ = ["Bubblewrap", "serving"]


@dataclass(frozen=True)
class Bubblewrap:
    """A bubblewrap that was tried."""

    program: str
    version: str


@contextmanager
def serving() -> Generator[Bubblewrap]:
    """Find bwrap and try it."""
    program = shutil.which("bwrap")
    if program is None:
        raise BedUnavailable("bwrap is not installed (apt-get install bubblewrap).")
    trial = [program, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--unshare-all", "true"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        raise BedUnavailable("bwrap did not end within 20 seconds.") from None
    if done.returncode:
        raise BedUnavailable(f"bwrap cannot make its namespaces here: {done.stderr.strip()[:200]}")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    yield Bubblewrap(program, version)
