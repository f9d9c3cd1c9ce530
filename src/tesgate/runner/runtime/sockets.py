"""Where the socket of a container engine may be, and which of them has an engine that listens."""

from __future__ import annotations

import os
import socket
from typing import List, Mapping, Optional

__all__ = ["AUTO", "find_socket", "places"]

AUTO = "auto"
"""In a setting: look for it."""

_PATIENCE = 2.0


def places(environ: Mapping[str, str], uid: int) -> List[str]:
    """Where `AUTO` looks, in this order: root's Docker, the user's own engines, root's Podman."""
    mine = environ.get("XDG_RUNTIME_DIR", "")
    if not mine.startswith("/"):
        mine = "/run/user/%d" % uid
    return [
        "/var/run/docker.sock",
        os.path.join(mine, "docker.sock"),
        os.path.join(mine, "podman", "podman.sock"),
        "/run/podman/podman.sock",
    ]


def find_socket(candidates: List[str]) -> Optional[str]:
    """The first of `candidates` that somebody listens on, and that we may connect to."""
    for path in candidates:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PATIENCE)
            try:
                probe.connect(path)
            except OSError:
                continue
            return path
    return None
