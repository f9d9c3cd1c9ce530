"""Builds the runner zipapp: src/tesgate/runner, the wheels of requirements/runner.lock and the exec in one file.

    python tools/build_runner.py [--output dist/tesgate-runner.pyz] [--wheels DIRECTORY]

The wheels come from DIRECTORY (default build/runner-wheels) where it holds them with the locked hashes, else from the
configured package index through pip. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

__all__ = ["BuildError", "build", "locked", "wheels"]

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "runner.lock"
SIZE_LIMIT_BYTES = 3_000_000
EPOCH = (1980, 1, 1, 0, 0, 0)

MAIN = '''\
"""Start of the runner; kept to the oldest syntax, so that an old Python gets a sentence instead of a SyntaxError."""
import sys

if sys.version_info < (3, 9):
    sys.exit("tesgate-runner needs Python 3.9 or newer, this is %s" % sys.version.split()[0])

import runpy

runpy.run_module("tesgate.runner", run_name="__main__", alter_sys=True)
'''

PACKAGE = '''\
"""The part of tesgate that runs beside the compute; the gateway is not in this file."""

__all__ = ["__version__"]

__version__ = "%s"
'''


class BuildError(RuntimeError):
    """The zipapp cannot be built as the lock file says."""


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BuildError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(lock: Path = LOCK) -> dict[str, set[str]]:
    """Pinned requirements (`name==version`) with their SHA-256 hashes."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    pins: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z0-9._-]+==[^\s;]+)", line)
        if match:
            pins[match[1]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", line))
            if not pins[match[1]]:
                raise BuildError(f"{lock}: {match[1]} has no hash")
    return pins


def _matching(folder: Path, pins: dict[str, set[str]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.whl")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update({pin: path for pin, hashes in pins.items() if digest in hashes})
    return found


def wheels(folder: Path | None = None, lock: Path = LOCK) -> dict[str, Path]:
    """The locked wheels, by pin; fetched into `folder` where they are not there yet. Raises `BuildError`."""
    folder = folder or ROOT / "build" / "runner-wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pins = locked(lock)
    found = _matching(folder, pins)
    if len(found) < len(pins):
        options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", str(folder)]
        line = [sys.executable, "-m", "pip", "download", *options, "--requirement", str(lock)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"The wheels of {lock} cannot be fetched:\n{done.stderr.strip()}")
        found = _matching(folder, pins)
    if len(found) < len(pins):
        raise BuildError(f"No wheel with a locked hash for {', '.join(sorted(set(pins) - set(found)))} in {folder}")
    return found


def _runner_files(root: Path, binaries: set[str]) -> Iterable[tuple[str, bytes, int]]:
    version = re.search(r'^__version__ = "([^"]+)"', (root / "src/tesgate/__init__.py").read_text(), re.MULTILINE)
    if version is None:
        raise BuildError("src/tesgate/__init__.py holds no __version__")
    yield "__main__.py", MAIN.encode(), 0o644
    yield "tesgate/__init__.py", (PACKAGE % version[1]).encode(), 0o644
    source = root / "src"
    for path in sorted((source / "tesgate/runner").rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and (path.suffix == ".py" or path.name in binaries):
            yield name, path.read_bytes(), 0o755 if path.name in binaries else 0o644


def _wheel_files(path: Path) -> Iterable[tuple[str, bytes, int]]:
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith(("/", ".dist-info/RECORD", ".pyi", "/py.typed")):
                continue
            if name.endswith((".so", ".pyd")) or ".data/" in name:
                raise BuildError(f"{path.name} is not pure Python: it holds {name}")
            yield name, wheel.read(name), 0o644


def build(output: Path, *, wheel_folder: Path | None = None, root: Path = ROOT) -> Path:
    """Write the zipapp. Raises `BuildError`, and the build hook's `CompileError`."""
    binaries = {path.name for path in _load(root / "hatch_build.py").build(root)}
    files: dict[str, tuple[bytes, int]] = {}
    sources = [_runner_files(root, binaries), *(_wheel_files(path) for _, path in sorted(wheels(wheel_folder).items()))]
    for source in sources:
        for name, data, mode in source:
            if name in files:
                raise BuildError(f"{name} is there twice")
            files[name] = (data, mode)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=output.parent, prefix=output.name, delete=False) as file:
        scratch = Path(file.name)
        try:
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for name, (data, mode) in sorted(files.items()):
                    info = zipfile.ZipInfo(name, EPOCH)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.create_system = 3
                    info.external_attr = (0o100000 | mode) << 16
                    archive.writestr(info, data, compresslevel=9)
            file.flush()
            if scratch.stat().st_size > SIZE_LIMIT_BYTES:
                raise BuildError(f"The zipapp has {scratch.stat().st_size} bytes, more than {SIZE_LIMIT_BYTES}")
            scratch.chmod(0o755)
            scratch.replace(output)
        finally:
            scratch.unlink(missing_ok=True)
    return output


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the runner zipapp.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "tesgate-runner.pyz")
    parser.add_argument("--wheels", type=Path, default=None, help="directory of wheels (default: build/runner-wheels)")
    arguments = parser.parse_args()
    try:
        output = build(arguments.output, wheel_folder=arguments.wheels)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{output} {output.stat().st_size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
