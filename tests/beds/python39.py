"""The oldest Python that the runner promises: Debian 11's 3.9 in its own root file system, or one of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.beds import BedUnavailable, cache_directory

__all__ = ["Python39", "serving"]

REPOSITORY = Path(__file__).resolve().parents[2]
LOCK = REPOSITORY / "requirements/runner.lock"
MAKE_SECONDS = 600


@dataclass(frozen=True)
class Python39:
    """A Python 3.9 and the runner's two dependencies, locked."""

    root: Path | None
    """Of a Debian 11; None where this machine's own Python 3.9 is used."""
    program: str
    """The interpreter: inside `root`, if there is one."""
    site_packages: Path
    kind: str

    @property
    def python_path(self) -> str:
        """PYTHONPATH with the sources and the dependencies; the same paths inside and outside."""
        return f"{REPOSITORY / 'src'}:{self.site_packages}"

    def command(self, *arguments: str, writable: Sequence[Path] = ()) -> list[str]:
        """How to run ``python arguments`` with tesgate's sources; where there is a `root`, `writable` is shared."""
        settings = {"PYTHONPATH": self.python_path, "PYTHONDONTWRITEBYTECODE": "1"}
        if self.root is None:
            return ["/usr/bin/env", *(f"{name}={value}" for name, value in settings.items()), self.program, *arguments]
        command = ["bwrap", "--bind", str(self.root), "/", "--proc", "/proc", "--dev", "/dev", "--die-with-parent"]
        command += ["--bind", "/tmp", "/tmp"] if not writable else ["--tmpfs", "/tmp"]
        # After /tmp, because they may stand in it.
        command += ["--ro-bind", str(REPOSITORY), str(REPOSITORY)]
        command += ["--ro-bind", str(self.site_packages), str(self.site_packages)]
        for path in writable:
            command += ["--bind", str(path), str(path)]
        for name, value in settings.items():
            command += ["--setenv", name, value]
        return [*command, "--chdir", "/", self.program, *arguments]


@contextmanager
def serving() -> Generator[Python39]:
    """Make (the first time, about half a minute) or find it."""
    cache = cache_directory()
    with (cache / "python39.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused: list[str] = []
        site_packages = _dependencies(cache)
        try:
            bed = Python39(_debian(cache), "/usr/bin/python3", site_packages, "Debian 11")
            _try(bed)
        except BedUnavailable as exc:
            refused.append(exc.reason)
            bed = _own(site_packages, refused)
    yield bed


def _own(site_packages: Path, refused: list[str]) -> Python39:
    candidates = [shutil.which("python3.9"), *sorted(map(str, Path.home().glob(".pyenv/versions/3.9*/bin/python3.9")))]
    for candidate in filter(None, candidates):
        bed = Python39(None, candidate, site_packages, "this machine's")
        with contextlib.suppress(BedUnavailable):
            _try(bed)
            return bed
    raise BedUnavailable(f"{' '.join(refused)} There is no python3.9 on this machine either.")


def _debian(cache: Path) -> Path:
    root = cache / "debian-11-python3"
    if root.exists():
        return root
    program = shutil.which("mmdebstrap")
    if program is None or shutil.which("bwrap") is None:
        raise BedUnavailable("mmdebstrap and bwrap are needed (apt-get install mmdebstrap bubblewrap).")
    new = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=cache))
    command = [program, "--variant=minbase", "--include=python3", "--format=directory"]
    command += [] if os.geteuid() == 0 else ["--mode=unshare"]
    try:
        done = subprocess.run(
            [*command, "bullseye", str(new / "root")], capture_output=True, text=True, timeout=MAKE_SECONDS, check=False
        )
        if done.returncode:
            raise BedUnavailable(f"mmdebstrap cannot make a Debian 11: {_last(done.stderr)}")
        (new / "root").rename(root)
    except subprocess.TimeoutExpired:
        raise BedUnavailable(f"mmdebstrap did not end within {MAKE_SECONDS} seconds.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return root


def _dependencies(cache: Path) -> Path:
    """The locked wheels of the runner, unpacked for Python 3.9."""
    target = cache / f"runner-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"
    if target.exists():
        return target
    new = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(new), "--no-deps", "--require-hashes"]
    command += ["--python-version", "3.9", "--only-binary=:all:", "--requirement", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MAKE_SECONDS, check=False)
    if done.returncode:
        shutil.rmtree(new, ignore_errors=True)
        raise BedUnavailable(f"pip cannot fetch the runner's dependencies: {_last(done.stderr)}")
    new.chmod(0o755)
    new.rename(target)
    return target


def _try(bed: Python39) -> None:
    script = "import sys, anyio, urllib3; sys.exit(sys.version_info[:2] != (3, 9))"
    try:
        done = subprocess.run(bed.command("-c", script), capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BedUnavailable(f"the Python of {bed.kind} does not run: {exc}") from exc
    if done.returncode:
        raise BedUnavailable(f"the Python of {bed.kind} does not run: {_last(done.stderr)}")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]
