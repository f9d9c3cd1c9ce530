"""What can run containers on this machine: a Docker engine, else bubblewrap."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tesgate.cli.demo.image import Engine
from tesgate.cli.failure import Exit, Failure

__all__ = ["Found", "find_engine"]


@dataclass(frozen=True)
class Found:
    """An engine that works here."""

    runtime: str
    """As in ``--runtime``."""
    image: str
    words: str
    """For people: what was found."""


def find_engine(runtime: str, say: Callable[[str], None], *, socket: str = "/var/run/docker.sock") -> Found:
    """Find (or, for bubblewrap, install) an engine, and an image for it. Raises `Failure`."""
    if runtime not in ("auto", "docker", "bubblewrap"):
        raise Failure(f"--runtime {runtime}: the demo runs on docker, bubblewrap or auto.")
    if runtime != "bubblewrap":
        engine = Engine(socket)
        try:
            if engine.answers():
                say("A Docker engine answers; looking for an image …")
                image, whence = engine.image()
                return Found("docker", image, f"Docker; the image {image} {whence}")
        except OSError as error:
            if runtime == "docker":
                raise Failure(f"The Docker engine is there, but {error}.", Exit.SYSTEM_ERROR) from None
            say(f"The Docker engine cannot be used: {error}.")
        finally:
            engine.close()
        if runtime == "docker":
            raise Failure(
                f"No Docker engine answers at {socket}; start it, join the group `docker`, or try another --runtime.",
                Exit.SYSTEM_ERROR,
            )
    if not _bubblewrap_works():
        _install(say)
    if not _bubblewrap_works():
        raise Failure(
            "Neither Docker nor bubblewrap works here. Install one: `sudo apt-get install bubblewrap` (Debian, Ubuntu),"
            " `sudo dnf install bubblewrap` (Fedora), or Docker; unprivileged user namespaces must be allowed"
            " (`sysctl kernel.unprivileged_userns_clone=1`).",
            Exit.SYSTEM_ERROR,
        )
    return Found("bubblewrap", "busybox:latest", "bubblewrap, with this machine's own programs (no image is used)")


def _bubblewrap_works() -> bool:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return False
    command = [bwrap, "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0


def _install(say: Callable[[str], None]) -> None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0 or shutil.which("bwrap") is not None:
        return
    say("Installing bubblewrap (apt-get) …")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", "bubblewrap"]):
        try:
            subprocess.run([apt, *arguments], env=environment, capture_output=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:
            return
