"""Whether the embedded PostgreSQL lives: its lock files, its process, its socket."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tesgate.store.embedded_place import SOCKET_NAME

__all__ = ["Postmaster", "clear_stale_locks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Postmaster:
    """What ``postmaster.pid`` says."""

    pid: int
    socket_directory: Path
    status: str

    @classmethod
    def read(cls, cluster: Path) -> Postmaster | None:
        """The file of the server that runs, or ran, on `cluster`."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
            return cls(int(lines[0]), Path(lines[4]), lines[7].strip() if len(lines) > 7 else "")
        except (FileNotFoundError, IndexError, ValueError):
            return None

    def answers(self) -> bool:
        """Whether the server takes connections on its socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(1)
            try:
                sock.connect(str(self.socket_directory / SOCKET_NAME))
            except OSError:
                return False
        return self.status == "ready"

    def is_alive(self, cluster: Path) -> bool:
        """Whether the process is a PostgreSQL on `cluster` and not another one that was given its number since."""
        return _is_postmaster(self.pid, cluster)


def clear_stale_locks(cluster: Path, sockets: Path) -> None:
    """Remove lock files whose process lives and is not PostgreSQL on `cluster`.

    After a reboot, or in another container, the number belongs to somebody else; a killed server may also not be buried
    yet. PostgreSQL itself takes such a process for a server and refuses to start; numbers that nobody has it clears.
    """
    for path in (cluster / "postmaster.pid", sockets / f"{SOCKET_NAME}.lock"):
        try:
            pid = int(path.read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            continue
        if _exists(pid) and not _is_postmaster(pid, cluster):
            logger.warning("removing the stale %s: process %d is not PostgreSQL", path, pid)
            path.unlink(missing_ok=True)


def _is_postmaster(pid: int, cluster: Path) -> bool:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        command = os.fsdecode(raw.replace(b"\0", b" "))
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return False
        ps = ["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)]
        command = subprocess.run(ps, capture_output=True, text=True, check=False).stdout
    program = command.split(" -D ", 1)[0]
    return program.endswith("postgres") and f" -D {cluster} " in command


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
