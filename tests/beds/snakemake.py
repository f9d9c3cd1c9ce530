"""The real Snakemake with its TES executor, an S3 server for it, and the image that its tasks run in.

The image is made of this machine: the Python that runs the tests, the environment's packages under the same paths, bash
and the static busybox. So nothing is fetched twice, and nothing is fetched from inside a container.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.beds import BedUnavailable, cache_directory, locked
from tests.beds.images import engine_call
from tests.beds.venvs import environment

__all__ = ["IMAGE", "Snakemake", "serving"]

IMAGE = "tesgate-test/snakemake:latest"
ROOTS = ("snakemake", "snakemake-storage-plugin-s3", "pip")
"""What a task needs, with all that these require."""
PLUGIN = "snakemake-storage-plugin-s3"
WHEELS = "/wheels"
"""In the image. The script of a task installs the storage plugins that the submitting side has."""
SECONDS = 120
_LEFT_OUT = re.compile(
    r"/(test|tests|idlelib|tkinter|lib2to3|ensurepip|turtledemo|config-[^/]*|pulp/solverdir)/|_tkinter|\.a$"
    r"|/botocore/data/(?!s3/|endpoints|partitions|_retry|sdk-default)"
)
_CLOSURE = """
import importlib.metadata as metadata, json, os, re, sys
from packaging.requirements import Requirement
found = {}
def add(name):
    key = re.sub("[-_.]+", "-", name).lower()
    if key not in found:
        found[key] = distribution = metadata.distribution(name)
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                add(requirement.name)
for name in sys.argv[1:]:
    add(name)
print(json.dumps([os.path.abspath(one.locate_file(file)) for one in found.values() for file in one.files or ()]))
"""


@dataclass(frozen=True)
class Snakemake:
    """Where its programs are."""

    bin: Path
    s3: str
    """Endpoint of the S3 server, as this machine and containers on the engine's bridge reach it."""


@contextmanager
def serving(socket: str) -> Generator[Snakemake]:
    """Environment, image on the engine behind `socket`, and S3 server. The first time it takes half a minute."""
    place = environment("snakemake")
    with locked("snakemake-image"):
        # Until it is loaded, or another checkout's run would remove it for its own.
        _load(socket, place, _image(place))
    with _s3(place, _bridge(socket)) as endpoint:
        yield Snakemake(place / "bin", endpoint)


def _bridge(socket: str) -> str:
    """This machine's address on the engine's bridge."""
    status, body = engine_call(socket, "GET", "/networks/bridge")
    try:
        address: str = json.loads(body)["IPAM"]["Config"][0]["Gateway"]
    except (ValueError, KeyError, IndexError):
        raise BedUnavailable(f"the engine has no bridge with an address: {status} {body[:200]!r}") from None
    return address


@contextmanager
def _s3(place: Path, address: str) -> Generator[str]:
    """moto on a free port of the bridge's address."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(place / "bin/moto_server"), "-H", address, "-p", "0"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            deadline = time.monotonic() + SECONDS
            while True:
                log.seek(0)
                said = log.read()
                if found := re.search(r"Running on (http://[0-9.]+:\d+)", said):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BedUnavailable(f"moto does not start: {said[-300:]}")
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait()


def _image(place: Path) -> Path:
    """The image's files in one archive, kept beside the environment under the hash of what makes it."""
    target = place.with_name(f"{place.name}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}.tar")
    if target.exists():
        return target
    new = target.with_suffix(f".{os.getpid()}")
    wheels = Path(tempfile.mkdtemp(prefix="wheels-", dir=cache_directory()))
    try:
        _fetch_plugin(place, wheels)
        with tarfile.open(new, "w") as archive:
            _busybox(archive)
            files = [*_python(), *_packages(place)]
            bash = shutil.which("bash")
            if bash is None:
                raise BedUnavailable("bash is not installed")
            for path in sorted({*files, *_libraries([bash, *files])}):
                archive.add(path, recursive=False)
            archive.add(bash, "bin/bash")
            archive.add(wheels, WHEELS)
        for old in place.parent.glob(f"{place.name}-*.tar"):
            old.unlink()
        new.rename(target)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
        new.unlink(missing_ok=True)
    return target


def _fetch_plugin(place: Path, wheels: Path) -> None:
    version = next(
        line for line in (Path(__file__).parent / "requirements/snakemake.txt").read_text().split() if PLUGIN in line
    )
    command = [
        str(place / "bin/python"),
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(wheels),
        version,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise BedUnavailable(f"pip cannot fetch {version}: {done.stderr.strip()[-300:]}")
    wheels.chmod(0o755)


def _busybox(archive: tarfile.TarFile) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise BedUnavailable("busybox is not installed (apt-get install busybox-static)")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    archive.add(busybox, "bin/busybox")
    for name, mode in (("tmp", 0o1777), ("root", 0o755), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755)):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, mode
        archive.addfile(info)
    for applet in {*applets} - {"busybox", "bash"}:
        info = tarfile.TarInfo(f"bin/{applet}")
        info.type, info.linkname = tarfile.SYMTYPE, "busybox"
        archive.addfile(info)
    passwd = b"root:x:0:0:root:/root:/bin/sh\n"
    info = tarfile.TarInfo("etc/passwd")
    info.size = len(passwd)
    archive.addfile(info, io.BytesIO(passwd))


def _python() -> Iterator[str]:
    """The interpreter with its library, without other packages."""
    base = Path(sys.base_prefix)
    yield from _links(Path(sys._base_executable))
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": str(base), "base": str(base)}))
    for directory, names, files in os.walk(library):
        names[:] = [name for name in names if name not in ("site-packages", "dist-packages")]
        yield from (path for name in files if not _LEFT_OUT.search(path := os.path.join(directory, name)))


def _packages(place: Path) -> Iterator[str]:
    """What of the environment a task needs, with what was compiled of it."""
    yield str(place / "pyvenv.cfg")
    for name in ("python", "python3", "snakemake", "pip"):
        yield from _links(place / "bin" / name)
    closure = [str(place / "bin/python"), "-c", _CLOSURE, *ROOTS]
    done = subprocess.run(closure, check=True, capture_output=True, text=True, timeout=SECONDS)
    for path in json.loads(done.stdout):
        if path.startswith(f"{place}/lib") and not _LEFT_OUT.search(path) and os.path.exists(path):
            yield path
            compiled = importlib.util.cache_from_source(path) if path.endswith(".py") else ""
            if compiled and os.path.exists(compiled):
                yield compiled


def _links(path: Path) -> Iterator[str]:
    """A file and all symbolic links that lead to it."""
    while path.is_symlink():
        yield str(path)
        path = path.parent / path.readlink()
    yield str(path)


def _libraries(files: list[str]) -> Iterator[str]:
    """Shared libraries of programs and modules, with their links, and the loader."""
    programs = [path for path in files if path.endswith(".so") or "/bin/" in path or ".so." in path]
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    for path in set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)):
        yield from _links(Path(path))


def _load(socket: str, place: Path, archive: Path) -> None:
    """Import the archive as the image, unless the engine has it."""
    mark = hashlib.sha256(f"{archive}{archive.stat().st_mtime_ns}".encode()).hexdigest()
    status, body = engine_call(socket, "GET", f"/images/{IMAGE}/json")
    if status == 200 and (json.loads(body)["Config"].get("Labels") or {}).get("tesgate-test.made") == mark:
        return
    environment_of = {
        "PATH": f"{place}/bin:/usr/bin:/bin",
        "HOME": "/root",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": WHEELS,
        "PIP_NO_DEPS": "1",
        "PIP_NO_COMPILE": "1",
    }
    changes = [f"ENV {name}={value}" for name, value in environment_of.items()] + [f"LABEL tesgate-test.made={mark}"]
    query = "&".join(f"changes={quote(change)}" for change in changes)
    repository, _, tag = IMAGE.partition(":")
    with archive.open("rb") as stream:
        query = f"fromSrc=-&repo={quote(repository, safe='')}&tag={tag}&{query}"
        status, body = engine_call(socket, "POST", f"/images/create?{query}", stream, "application/x-tar")
    if status != 200 or b"error" in body:
        raise BedUnavailable(f"the engine does not import the image: {status} {body[-300:]!r}")
