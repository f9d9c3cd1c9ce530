"""Ordinary users for tests that run as root, and a view of the machine in which they reach the program."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tesgate.store.embedded_place import ServerUser

__all__ = ["Person", "myself_or_nobody"]

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Person:
    """An ordinary user."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def own(self, directory: Path) -> None:
        """Give a fresh directory, with what is in it, to this user."""
        for path in (directory, *directory.rglob("*")):
            os.chown(path, self.uid, self.gid)

    def command(self) -> list[str]:
        """What turns itself into the command that follows, run by this user. Nothing for ourselves."""
        if self.uid == os.geteuid():
            return []
        groups = ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
        become = ["setpriv", "--reuid", str(self.uid), "--regid", str(self.gid), *groups]
        script = "\n".join([*self._view(), f'exec {shlex.join(become)} "$@"'])
        return ["unshare", "-m", "sh", "-ec", script, "sh"]

    def _view(self) -> list[str]:
        """Mounts, in a namespace of the process's own, that open a way to the interpreter and the checkout.

        They may stand below root's home. There the closed directory is covered by an empty one, in which only what is
        needed appears: nobody's mode is changed, and nothing else is shown.
        """
        user = ServerUser("somebody", self.uid, self.gid)
        needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
        closed: dict[Path, list[Path]] = {}
        for directory in sorted(needed):
            for above in reversed(directory.parents):
                if not user.can_reach(above):
                    closed.setdefault(above, []).append(directory)
                    break
        lines = []
        for above, directories in closed.items():
            lines += ["behind=$(mktemp -d -p /tmp)", f'mount --bind {shlex.quote(str(above))} "$behind"']
            lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(above))}")
            for directory in directories:
                target = shlex.quote(str(directory))
                inside = shlex.quote(str(directory.relative_to(above)))
                lines += [f"mkdir -p {target}", f'mount --bind "$behind"/{inside} {target}']
            lines += ['umount "$behind"', 'rmdir "$behind"']
        return lines


def myself_or_nobody(*groups: int) -> Person:
    """Ourselves where we are an ordinary user, else ``nobody``, with these further groups. Raises `LookupError`."""
    if os.geteuid():
        return Person(os.geteuid(), os.getegid())
    missing = [name for name in ("setpriv", "unshare") if shutil.which(name) is None]
    if missing:
        raise LookupError(f"not installed: {', '.join(missing)}")
    return Person(65534, 65534, groups)
