"""A real Podman of an ordinary user: made up for this run, in a view of the machine where that user has sub-ids."""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.beds import BedUnavailable
from tests.beds.podman import Podman, configuration, directory, served
from tests.users.people import Person

__all__ = ["FIRST_SUBID", "UID", "serving"]

UID = 41207
"""Nobody's on the machine itself; known only in the service's own view of it."""
FIRST_SUBID = 1_410_000_000


@contextmanager
def serving() -> Generator[Podman]:
    """The service of such a user. Nothing of the machine is changed: see `_view`."""
    if os.geteuid() != 0:
        raise BedUnavailable("only root can make up a user with sub-ids")
    with directory() as base:
        home, state = base / "home", base / "state"
        for path in (home, state, base / "place"):
            path.mkdir(mode=0o755, exist_ok=True)
            os.chown(path, UID, UID)
        state.chmod(0o700)
        environment = {
            "CONTAINERS_CONF": str(configuration(base)),
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(state),
            "STORAGE_DRIVER": "overlay",
        }
        podman = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "podman"]
        with served(_view(base), podman, base, environment, socket_directory=state) as socket:
            known = f'mount --bind {shlex.quote(str(base / "passwd"))} /etc/passwd; exec "$@"'
            become = ["unshare", "-m", "sh", "-ec", known, "sh", *Person(UID, UID).command()]
            yield Podman(socket, UID, base / "place", become, environment)


def _view(base: Path) -> list[str]:
    """Mounts in a namespace of the service's own: the user's entries, and a tun device for the user's networks."""
    lines = []
    for name, entry in (
        ("passwd", f"tgpodman:x:{UID}:{UID}::{base / 'home'}:/bin/sh"),
        ("group", f"tgpodman:x:{UID}:"),
        ("subuid", f"tgpodman:{FIRST_SUBID}:65536"),
        ("subgid", f"tgpodman:{FIRST_SUBID}:65536"),
    ):
        there, private = Path("/etc", name), base / name
        private.write_text((there.read_text() if there.exists() else "") + entry + "\n")
        if not there.exists():
            raise BedUnavailable(f"{there} is not there (apt-get install uidmap)")
        lines.append(f"mount --bind {shlex.quote(str(private))} {there}")
    if Path("/dev/net/tun").exists():
        device = shlex.quote(str(base / "device"))
        lines += [f"mkdir {device}", f"mount -t tmpfs -o mode=755 tmpfs {device}"]
        lines += [f"mknod -m 666 {device}/tun c 10 200", f"mount --bind {device}/tun /dev/net/tun"]
    return lines
