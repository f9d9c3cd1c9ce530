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


def environment(name: str, *, compiled: bool = True) -> Path:
    """The environment of ``requirements/NAME.txt``: all packages are in the list, and no others are installed.

    Made the first time and kept under the hash of its list. Where ``NAME.build.txt`` is, its packages are installed
    before, and build what has no wheel. `compiled`: False where little of it is ever imported. Raises `BedUnavailable`.
    """
    wanted = REQUIREMENTS / f"{name}.txt"
    builders = REQUIREMENTS / f"{name}.build.txt"
    lists = [builders, wanted] if builders.exists() else [wanted]
    words = f"{sys.executable} {sys.version} {UV}\n".encode() + b"".join(one.read_bytes() for one in lists)
    cache = cache_directory()
    target = cache / f"{name}-{hashlib.sha256(words).hexdigest()[:12]}"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / ".made").exists():
            return target
        # Its programs know the place that they were made in.
        shutil.rmtree(target, ignore_errors=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(target)])
        python = target / "bin/python"
        try:
            _by_uv(python, lists, compiled)
        except BedUnavailable:
            # Where only pip knows the way to packages.
            for one in lists:
                _run(
                    [*PIP, "--python", str(python), "install", *QUIETLY, *_built(one, lists), "--requirement", str(one)]
                )
        (target / ".made").touch()
    return target


def _built(one: Path, lists: list[Path]) -> list[str]:
    return ["--no-build-isolation"] if one is not lists[0] else []


def _by_uv(python: Path, lists: list[Path], compiled: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="tesgate-uv-") as directory:
        _run([*PIP, "install", *QUIETLY, "--target", directory, UV])
        install = [f"{directory}/bin/uv", "pip", "install", "--quiet", "--no-deps", "--no-config"]
        install += ["--compile-bytecode"] if compiled else []
        for one in lists:
            _run([*install, *_built(one, lists), "--python", str(python), "--requirement", str(one)])


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
