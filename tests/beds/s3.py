"""Two S3 servers from packages: SeaweedFS, which keeps objects on disk and checks what it is told, and moto's.

Others that take too long to build for each run are used where a variable says where their program is: see `FURTHER`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.beds import BedUnavailable, cache_directory

__all__ = ["FURTHER", "Server", "Servers", "serving"]

PROGRAMS = {"minio": "TESGATE_TEST_S3_MINIO", "versity": "TESGATE_TEST_S3_VERSITY"}
"""Variables with paths of programs: MinIO, and versitygw on a directory. Both are Go modules that take minutes of a
processor to build (``go install github.com/versity/versitygw/cmd/versitygw@v1.8.0``: 270 s of processor time, measured
2026-11-21 on a busy machine with two cores)."""
FURTHER = tuple(name for name, variable in PROGRAMS.items() if os.environ.get(variable))
"""Those of them that are here: tests of object stores run on them, too."""

REQUIREMENTS = Path(__file__).with_name("requirements") / "s3.txt"
INSTALL_SECONDS = 900
START_SECONDS = 90


@dataclass(frozen=True)
class Server:
    """One S3 server on the loopback interface."""

    name: str
    url: str
    """Without a slash at its end; buckets are in the path."""
    access_key: str = "testing"
    secret_key: str = "testing-secret"
    region: str = "us-east-1"
    checks: bool = True
    """It refuses wrong keys, expired signatures and wrong checksums, as AWS does (SeaweedFS). moto does not."""


@dataclass(frozen=True)
class Servers:
    """What the bed yields. Both are empty at first; buckets are made by tests, each with a name of its own."""

    seaweed: Server
    """Has a second identity, ``reader`` / ``reader-secret``, that may read and list alone, lets anybody read and list
    the bucket ``public``, and takes buckets in host names below ``localhost``."""
    moto: Server
    further: dict[str, Server] = field(default_factory=dict)

    def named(self, name: str) -> Server:
        """``seaweed``, ``moto`` or one of `FURTHER`."""
        found = self.further.get(name)
        return found if found is not None else getattr(self, name)


@contextmanager
def serving() -> Generator[Servers]:
    """Install (the first time, up to some minutes) and start both."""
    place = _installed(cache_directory())
    with ExitStack() as stack:
        try:
            made = _both(place, stack)
        except BedUnavailable:
            # Somebody else may have taken a port that was free when it was looked for.
            stack.close()
            made = _both(place, stack)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tesgate-s3-")))
        further = {
            name: stack.enter_context(_started(name, directory, port))
            for name, port in zip(FURTHER, _free_ports(len(FURTHER)), strict=True)
        }
        yield Servers(*made, further)


@contextmanager
def _started(name: str, directory: Path, port: int) -> Generator[Server]:
    """One of `FURTHER`, on an empty directory; its buckets answer by host name below ``localhost``, too."""
    data = directory / name
    data.mkdir()
    program, place, log = os.environ[PROGRAMS[name]], f"127.0.0.1:{port}", directory / f"{name}.log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "GOMEMLIMIT": "400MiB"}
    if name == "minio":
        command = [program, "server", "--quiet", "--address", place, str(data)]
        environment |= {"MINIO_ROOT_USER": "testing", "MINIO_ROOT_PASSWORD": "testing-secret"}
        environment |= {"MINIO_DOMAIN": "localhost", "MINIO_BROWSER": "off", "MINIO_CI_CD": "on"}
        health = "/minio/health/live"
    else:
        command = [program, "--quiet", "--access=testing", "--secret=testing-secret", f"--port={place}"]
        command += ["--keep-alive", "--virtual-domain=localhost", "--health=/healthz", "posix", str(data)]
        health = "/healthz"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, cwd=data
        )
    try:
        _wait(process, f"http://{place}{health}", log, name)
        yield Server(name, f"http://{place}")
    finally:
        _stop(process)


def _both(place: Path, stack: ExitStack) -> tuple[Server, Server]:
    """SeaweedFS and moto, until the stack ends."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tesgate-s3-")))
    ports = _free_ports(9)
    weed, weed_url = _seaweed(place, directory, ports[:8])
    stack.callback(_stop, weed)
    moto, moto_url = _moto(place, directory, ports[8])
    stack.callback(_stop, moto)
    _wait(weed, f"{weed_url}/healthz", directory / "weed.log", "SeaweedFS")
    _wait(moto, f"{moto_url}/moto-api/", directory / "moto.log", "moto")
    return Server("seaweed", weed_url), Server("moto", moto_url, checks=False)


def _seaweed(place: Path, directory: Path, ports: list[int]) -> tuple[subprocess.Popen[bytes], str]:
    identities = [
        {
            "name": "all",
            "credentials": [{"accessKey": "testing", "secretKey": "testing-secret"}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}],
            "actions": ["Read", "List"],
        },
        {"name": "anonymous", "actions": ["Read:public", "List:public"]},
    ]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": identities}), "utf-8")
    data = directory / "data"
    data.mkdir()
    names = ["master", "volume", "filer", "s3"]
    options = [f"-{name}.port={ports[at]}" for at, name in enumerate(names)]
    options += [f"-{name}.port.grpc={ports[len(names) + at]}" for at, name in enumerate(names)]
    command = [str(place / "bin/weed"), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"]
    command += [
        f"-s3.config={config}",
        "-s3.domainName=localhost",
        "-volume.max=400",
        "-master.volumeSizeLimitMB=1024",
        *options,
    ]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-s3.iam=false"]
    environment = {**os.environ, "GOMEMLIMIT": "400MiB"}
    with (directory / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=data)
    return process, f"http://127.0.0.1:{ports[names.index('s3')]}"


def _moto(place: Path, directory: Path, port: int) -> tuple[subprocess.Popen[bytes], str]:
    command = [str(place / "bin/python"), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (directory / "moto.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=directory)
    return process, f"http://127.0.0.1:{port}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # nothing is kept, and SeaweedFS takes its time
    process.wait(10)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, name: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as exc:
            exc.close()
        except OSError:
            pass
        time.sleep(0.1)
    said = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    raise BedUnavailable(f"{name} did not start within {START_SECONDS} s: {said[-1][:300]}")


def _free_ports(count: int) -> list[int]:
    """Ports below the range from which the kernel gives out others, so that nobody gets them meanwhile."""
    found: list[int] = []
    if not count:
        return found
    start = 20_000 + os.getpid() * 37 % 10_000
    for port in range(start, 32_000):
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise BedUnavailable(f"there are no {count} free ports.")


def _installed(cache: Path) -> Path:
    """A virtual environment with both servers; one for all test processes of this machine."""
    place = cache / f"s3-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]}"
    with (cache / "s3.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (place / "ready").exists():
            return place
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=False, symlinks=True)
        command = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "install", "--quiet"]
        command += ["--no-deps", "--requirement", str(REQUIREMENTS)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise BedUnavailable(f"the S3 servers were not installed within {INSTALL_SECONDS} s.") from None
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            raise BedUnavailable(f"pip cannot fetch the S3 servers: {said[-1][:300]}")
        (place / "ready").touch()
    return place
