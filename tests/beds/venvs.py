"""Virtual environments of programs that only tests need, from the pinned lists in ``requirements/``."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.beds import BedUnavailable, cache_directory

__all__ = ["environment"]

REQUIREMENTS = Path(__file__).parent / "requirements"
UV = "uv==0.13.9"
"""Installs eighty packages in some seconds; pip takes a minute or two."""
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
QUIETLY = ("--quiet", "--no-deps", "--root-user-action=ignore")
SECONDS = 300


def environment(name: str) -> Path:
    """The environment of ``requirements/NAME.txt``: all packages are in the list, and no others are installed.

    Made the first time and kept under the hash of its list. Raises `BedUnavailable`.
    """
    wanted = REQUIREMENTS / f"{name}.txt"
    words = f"{sys.executable} {sys.version} {UV}\n".encode() + wanted.read_bytes()
    cache = cache_directory()
    target = cache / f"{name}-{hashlib.sha256(words).hexdigest()[:12]}"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / ".made").exists():
            return target
        # Its programs know the place that they were made in.
        shutil.rmtree(target, ignore_errors=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(target)])
        try:
            _by_uv(target / "bin/python", wanted)
        except BedUnavailable:
            # Where only pip knows the way to packages.
            _run([*PIP, "--python", str(target / "bin/python"), "install", *QUIETLY, "--requirement", str(wanted)])
        (target / ".made").touch()
    return target


def _by_uv(python: Path, wanted: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tesgate-uv-") as directory:
        _run([*PIP, "install", *QUIETLY, "--target", directory, UV])
        install = [f"{directory}/bin/uv", "pip", "install", "--quiet", "--no-deps", "--no-config", "--compile-bytecode"]
        _run([*install, "--python", str(python), "--requirement", str(wanted)])


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise BedUnavailable(f"{Path(command[0]).name} did not end within {SECONDS} seconds.") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BedUnavailable(f"{Path(command[0]).name} cannot install packages: {lines[-1][:300]}")
