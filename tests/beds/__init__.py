"""Real services for tests. A bed that cannot start is a skip that says why, and where CI expects it, a failure.

A bed is a module here with ``serving()``: a context manager that yields what the tests need and raises `BedUnavailable`
where it cannot. ``TESGATE_REQUIRE_BEDS`` (names with commas between, or ``all``) turns that skip into a failure.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

__all__ = ["NAMES", "BedUnavailable", "Outcome", "cache_directory", "is_required", "locked", "outcomes", "standing"]

NAMES = (
    "postgres",
    "docker",
    "bubblewrap",
    "python39",
    "clients",
    "cwl_tes",
    "snakemake",
    "image",
    "podman",
    "podman_rootless",
    "netns",
    "s3",
    "ftp",
)

ROOTS_CACHE = Path("/var/tmp/tesgate-beds")
"""Where root keeps what beds make. Root runs programs of it, and everybody may make files beside it."""


class BedUnavailable(Exception):
    """A bed cannot stand here; the message is one sentence that says what is missing."""

    @property
    def reason(self) -> str:
        return str(self)


@dataclass
class Outcome:
    """What became of one bed."""

    name: str
    seconds: float
    reason: str | None = None

    def line(self) -> str:
        if self.reason is None:
            return f"{self.name}: stood after {self.seconds:.1f} s"
        return f"{self.name}: NOT THERE: {self.reason}"


outcomes: dict[str, Outcome] = {}
"""Of this run, by bed."""


def is_required(name: str) -> bool:
    """Whether this run may not go without the bed."""
    wanted = {part.strip() for part in os.environ.get("TESGATE_REQUIRE_BEDS", "").split(",")}
    return name in wanted or "all" in wanted


def cache_directory() -> Path:
    """Where beds keep what takes long to make: $TESGATE_BEDS, or a directory of the machine or the user.

    Raises `BedUnavailable` where root's, which lies among everybody's files, may hold programs of others.
    """
    if given := os.environ.get("TESGATE_BEDS"):
        directory = Path(given)
    elif os.geteuid() == 0:
        return _ours(ROOTS_CACHE)
    else:
        directory = Path.home() / ".cache" / "tesgate-beds"
    directory.mkdir(parents=True, exist_ok=True)
    return directory.resolve()


def _ours(directory: Path) -> Path:
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = directory.lstat()  # after it was made: from then on nobody else can put another in its place
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BedUnavailable(f"{directory} can be written by others: remove it, or name another one by TESGATE_BEDS.")
    return directory


@contextmanager
def locked(name: str) -> Generator[Path]:
    """The cache directory, whose `name` no other run makes, replaces or removes meanwhile."""
    cache = cache_directory()
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


@contextmanager
def standing(name: str, serving: Callable[[], AbstractContextManager[Any]] | None = None) -> Generator[Any]:
    """Start the bed `name` once in a run, and turn `BedUnavailable` into a skip or a failure."""
    if (known := outcomes.get(name)) and known.reason is not None:
        _refuse(name, known.reason)
    began = time.monotonic()
    reason = ""
    try:
        if serving is None:
            serving = importlib.import_module(f"tests.beds.{name}").serving
        context = serving()
        bed = context.__enter__()
    except BedUnavailable as exc:
        reason = exc.reason
    if reason:
        outcomes[name] = Outcome(name, time.monotonic() - began, reason)
        _refuse(name, reason)
    outcomes[name] = Outcome(name, time.monotonic() - began)
    try:
        yield bed
    finally:
        context.__exit__(None, None, None)


def _refuse(name: str, reason: str) -> NoReturn:
    if is_required(name):
        pytest.fail(f"the bed {name} is required here: {reason}", pytrace=False)
    pytest.skip(f"no bed {name}: {reason}")
