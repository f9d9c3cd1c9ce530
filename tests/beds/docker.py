"""A real Docker engine: the one that answers on the machine, or a dockerd started for the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.beds import BedUnavailable
from tests.beds.images import engine_call, load_images

__all__ = ["Docker", "answers", "serving"]

USUAL_SOCKET = "/var/run/docker.sock"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Docker:
    """An engine that answers and has the images of `tests.beds.images`."""

    socket: str
    ours: bool
    """It was started for this run."""


def answers(path: str) -> bool:
    """An engine answers on this socket."""
    try:
        return engine_call(path, "GET", "/_ping")[0] == 200
    except OSError:
        return False


@contextmanager
def serving() -> Generator[Docker]:
    """An engine: the one of ``TESGATE_TEST_DOCKER``, the machine's own, or a dockerd of this run. With test images.

    Ours listens where everybody looks for an engine (the demo and the ``docker`` client do), since nobody does there;
    its data and its processes are private.
    """
    for path in (os.environ.get("TESGATE_TEST_DOCKER", ""), USUAL_SOCKET):
        if path and answers(path):
            load_images(path)
            yield Docker(path, ours=False)
            return
    dockerd = shutil.which("dockerd")
    if dockerd is None:
        raise BedUnavailable("no Docker engine answers and dockerd is not installed (apt-get install docker.io)")
    if os.geteuid() != 0:
        raise BedUnavailable("no Docker engine answers and only root can start dockerd")
    directory = Path(tempfile.mkdtemp(prefix="tesgate-dockerd-"))
    path = USUAL_SOCKET
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                dockerd,
                "--host=unix://" + path,
                f"--data-root={directory / 'data'}",
                f"--exec-root={directory / 'run'}",
                f"--pidfile={directory / 'pid'}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = (directory / "log").read_text(errors="replace")[-500:]
                raise BedUnavailable(f"dockerd does not start: {tail}")
            time.sleep(0.1)
        load_images(path)
        yield Docker(path, ours=True)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)
