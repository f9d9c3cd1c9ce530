"""What is mounted from roots as it is: found beneath its root, and known again; and outputs that lie there already."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from ..plan import Mount, Output
from .base import Entry, Item
from .faults import LeaseLost, PathRefused, StagingError, os_fault
from .paths import Found, Roots, open_dir
from .threads import Stop
from .urls import local_path, printable
from .view import View

__all__ = ["Bound", "LiveMounts", "LiveSink"]


@dataclass(frozen=True)
class Bound:
    """What one mount is to be of, as it was found beneath its root."""

    target: str
    path: str
    """On this host, free of links when it was looked at. An engine follows it again: see `identity`."""
    identity: str
    """``DEV:INO``: exec compares it inside the container, before it starts the command."""
    directory: bool
    read_only: bool


class LiveMounts:
    """Finds what mounts with a `Mount.host` are of. Blocking.

    `owner`: to whom directories are given that are made for outputs, where the agent is root.
    """

    def __init__(self, *, roots: Roots, umask: int, owner: Optional[Tuple[int, int]]) -> None:
        self._roots = roots
        self._mode = 0o777 & ~umask
        self._owner = owner if os.geteuid() == 0 else None

    def make(self, mounts: Sequence[Mount]) -> List[Bound]:
        """Make the directories of outputs that are missing, and find everything. Raises `StagingError`."""
        for mount in mounts:
            if mount.host is not None and mount.make:
                with _named(mount):
                    self._make(mount.host)
        return self.find(mounts)

    def find(self, mounts: Sequence[Mount]) -> List[Bound]:
        """Find out what each is of, now. Raises `StagingError`."""
        found: List[Bound] = []
        for mount in mounts:
            if mount.host is not None:
                with _named(mount):
                    found.append(self._find(mount, mount.host))
        return found

    def _find(self, mount: Mount, host: str) -> Bound:
        with self._roots.find(host) as found:
            self._check(found, write=not mount.read_only)
            assert found.info is not None
            directory = stat.S_ISDIR(found.info.st_mode)
            if not directory and not stat.S_ISREG(found.info.st_mode):
                raise PathRefused("is neither a file nor a directory; only those can be mounted")
            if mount.directory and not directory:
                raise PathRefused("is a DIRECTORY in the task but not on disk; declare it as FILE")
            path = "/".join([found.root.real.rstrip("/"), *found.parts])
            self._check_inside(path, write=not mount.read_only)
            return Bound(
                target=mount.target,
                path=path,
                identity="%d:%d" % (found.info.st_dev, found.info.st_ino),
                directory=directory,
                read_only=mount.read_only,
            )

    def _make(self, host: str) -> None:
        # Found through a name in it, so that a link to a directory is followed.
        with self._roots.find(host.rstrip("/") + "/.tesgate", write=True) as found:
            self._check(found, write=True)
            if found.info is not None:
                return
            here = open_dir(found.parent, [])
            try:
                for name in found.missing[:-1]:
                    try:
                        os.mkdir(name, self._mode, dir_fd=here)
                        made = True
                    except FileExistsError:
                        made = False
                    inner = open_dir(here, [name])
                    os.close(here)
                    here = inner
                    if made and self._owner is not None:
                        os.fchown(here, self._owner[0], self._owner[1])
            finally:
                os.close(here)

    def _check(self, found: Found, *, write: bool) -> None:
        # A link can lead from one root into another: the innermost one counts.
        inner, _ = self._roots.belongs("/".join([found.root.real, *found.parts]))
        if not inner.mounted:
            raise PathRefused("lies in the root %s, which this agent does not mount" % inner.path)
        if write and not inner.writable:
            raise PathRefused("lies in the root %s, which is read-only" % inner.path)

    def _check_inside(self, path: str, *, write: bool) -> None:
        # Gateways copy such places. Another agent's roots may lie otherwise, though, or a link leads around ours.
        for root in self._roots.roots:
            stricter = not root.mounted or (write and not root.writable)
            if stricter and root.real.startswith(path.rstrip("/") + "/"):
                raise PathRefused("holds the root %s, which is not to be mounted so" % root.path)


@contextmanager
def _named(mount: Mount) -> Iterator[None]:
    shown = "%s, which is to be mounted at %s," % (printable(mount.host or ""), printable(mount.target))
    try:
        yield
    except PathRefused as error:
        raise StagingError("%s %s." % (shown, error.why)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise StagingError(
            "%s does not exist; check the path, and that it lies on the host of the agent." % shown
        ) from None
    except OSError as error:
        raise os_fault(error, "%s could not be used" % shown) from error


class LiveSink:
    """Outputs that lie at their URLs already: they are listed with their sizes, and nothing is moved."""

    def target(self, output: Output) -> str:
        """An absolute path on this host."""
        return local_path(output.url)

    def place_directory(self, entry: Entry) -> Optional[Item]:
        """It is there."""
        return None

    def place(self, entry: Entry, tag: str, number: int) -> Item:
        """It is there."""
        item = Item(entry)
        item.size = 0 if entry.node.info is None else entry.node.info.st_size
        return item

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Nothing is to be brought there."""

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Only what the lease covers is listed."""
        for item in items:
            if lease() <= 0:
                raise LeaseLost("the publish lease ran out before the outputs were listed")
            item.done = True

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Nothing was put anywhere."""
        return []
