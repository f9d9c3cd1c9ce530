"""Who holds a TCP port of this host, for the sentence about a port that is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["who_listens"]

_LISTEN = "0A"


def who_listens(port: int) -> str:
    """``process 123 (nginx)``, as far as the kernel tells us; empty where it does not (another user's, not Linux)."""
    sockets = set(_inodes(port))
    if not sockets:
        return ""
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        # Processes end while they are looked at, and those of other users are closed to us.
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in sockets:
                        return f"process {process.name} ({(process / 'comm').read_text().strip()})"
    return ""


def _inodes(port: int) -> Iterator[str]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/net", name).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{fields[9]}]"
