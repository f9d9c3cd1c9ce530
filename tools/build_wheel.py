"""Builds the release wheel: tesgate with the static exec for amd64 and arm64, for any machine.

    python tools/build_wheel.py [--output dist]

The same sources and the same compilers give the same bytes: the time in it is SOURCE_DATE_EPOCH, by default the
last commit's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["BuildError", "build", "epoch"]

ROOT = Path(__file__).resolve().parent.parent


class BuildError(RuntimeError):
    """The wheel cannot be built; the message says why."""


def epoch(root: Path) -> str:
    """The last commit's time; 1980 (the first that a zip file can hold) where nothing was committed."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    line = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError:
        return "315532800"
    return done.stdout.strip() or "315532800"


def build(output: Path, *, root: Path = ROOT, date: str | None = None) -> Path:
    """Write the wheel into the directory `output`; `date` (Unix seconds) is the time in it. Raises `BuildError`.

    In the checkout's own dist/ it is the only one then: the Dockerfile installs whatever wheel of ours lies there.
    """
    settings = {**os.environ, "TESGATE_RELEASE": "1", "SOURCE_DATE_EPOCH": date or epoch(root)}
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".wheel-") as directory:
        line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(Path(directory).absolute())]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=root, env=settings)
        made = list(Path(directory).glob("*.whl"))
        if done.returncode or len(made) != 1:
            said = [text for text in done.stderr.splitlines() if text.strip()]
            raise BuildError(said[-1] if said else f"hatchling ended with {done.returncode} and no wheel")
        wheel = made[0].replace(output / made[0].name)
    if output.resolve() == (root / "dist").resolve():
        for old in output.glob("tesgate-*-py3-none-any.whl"):
            if old.name != wheel.name:
                old.unlink()
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the release wheel.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory (default: dist)")
    arguments = parser.parse_args()
    try:
        wheel = build(arguments.output)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{wheel} {wheel.stat().st_size} sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
