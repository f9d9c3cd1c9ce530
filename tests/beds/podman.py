"""A real Podman of root: its API service, started for this run with data and a configuration of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.beds import BedUnavailable
from tests.beds.docker import answers
from tests.beds.images import engine_call, load_images

__all__ = ["Podman", "configuration", "directory", "served", "serving"]

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Podman:
    """An engine that answers and has the images of `tests.beds.images`."""

    socket: str
    uid: int
    """Whose service it is; root's is 0."""
    place: Path
    """A directory that everybody may enter and the service's user may write to, for attempts of tests."""
    become: Sequence[str]
    """Words before a command that make it this user's."""
    environment: Mapping[str, str]
    """With which ``podman`` speaks for this service's user."""


@contextmanager
def serving() -> Generator[Podman]:
    """Root's service."""
    if os.geteuid() != 0:
        raise BedUnavailable("only root can start a rootful Podman")
    with directory() as base:
        environment = {"CONTAINERS_CONF": str(configuration(base)), "HOME": str(base), "TMPDIR": str(base)}
        places = ["--root", str(base / "data"), "--runroot", str(base / "run"), "--tmpdir", str(base / "lib")]
        with served([], ["podman", *places], base, environment) as socket:
            yield Podman(socket, 0, base / "place", [], environment)


@contextmanager
def directory() -> Generator[Path]:
    """A fresh directory that everybody may enter; removed at the end."""
    missing = [name for name in ("podman", "conmon", "newuidmap", "setpriv", "unshare") if shutil.which(name) is None]
    if missing:
        raise BedUnavailable(f"not installed: {', '.join(missing)} (apt-get install podman uidmap)")
    base = Path(tempfile.mkdtemp(prefix="tesgate-podman-"))
    try:
        base.chmod(0o755)
        (base / "place").mkdir(mode=0o755)
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def configuration(base: Path) -> Path:
    """A ``containers.conf`` for a machine without systemd, journal and control groups of version 2."""
    # crun refuses the hybrid hierarchy that this kind of machine has.
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    runtime = "crun" if unified and shutil.which("crun") else "runc"
    if shutil.which(runtime) is None and not Path("/usr/sbin", runtime).exists():
        raise BedUnavailable(f"not installed: {runtime}")
    # What Podman gives by default may be more than we may have ourselves.
    lines = ["[containers]", 'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]']
    lines += ["[engine]", 'cgroup_manager = "cgroupfs"', 'events_logger = "file"', f'runtime = "{runtime}"']
    # Debian's choice where both are installed is CNI, whose plugins are another package.
    lines += ["[network]", 'network_backend = "netavark"']
    path = base / "containers.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def served(
    view: Sequence[str],
    podman: Sequence[str],
    base: Path,
    environment: Mapping[str, str],
    *,
    socket_directory: Path | None = None,
) -> Generator[str]:
    """Run the service until the block ends; its socket, once it answers and has the images.

    It has a mount namespace of its own, so that no file system of its containers outlives it. `view`: shell commands
    that mount there what else it should see.
    """
    # Podman asks dpkg for packages' names whenever it describes itself, which takes seconds on a busy machine.
    hidden = [f"mount --bind /bin/false {path}" for path in ("/usr/bin/dpkg",) if Path(path).exists()]
    script = "\n".join([*hidden, *view, f'exec {shlex.join(podman)} system service "$@"'])
    socket = (socket_directory or base) / "podman.sock"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-ec", script, "sh", "--time=0", f"unix://{socket}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=base,
            env={"PATH": path, **environment},
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(str(socket)):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (base / "log").read_text(errors="replace")[-700:]
                raise BedUnavailable(f"podman does not start: {tail}")
            time.sleep(0.05)
        load_images(str(socket))
        yield str(socket)
        _empty(str(socket))
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end_the_rest(base)


def _empty(socket: str) -> None:
    status, body = engine_call(socket, "GET", "/v1.41/containers/json?all=1")
    for found in json.loads(body) if status == 200 else []:
        engine_call(socket, "DELETE", f"/v1.41/containers/{found['Id']}?force=1&v=1")


def _end_the_rest(base: Path) -> None:
    """What Podman leaves behind on purpose, such as the process that holds a user's namespace open."""
    for process in psutil.process_iter(["environ", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            about = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
            if process.pid != os.getpid() and any(f"{base}/" in word for word in about):
                process.send_signal(signal.SIGKILL)
