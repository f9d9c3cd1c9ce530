"""Opens paths beneath directories component by component, so that no symbolic link and no ``..`` leads out."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Deque, Iterator, List, Optional, Sequence, Tuple

from ..report import Root
from .faults import PathRefused

__all__ = [
    "MAX_LINKS",
    "Found",
    "RootDir",
    "Roots",
    "is_temporary",
    "open_dir",
    "open_file",
    "owned_dirs",
    "split",
    "temporary_name",
]

MAX_LINKS = 40
_TEMPORARY = re.compile(r"^\.tesgate-.+-\d+\.part$")
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def temporary_name(tag: str, number: int) -> str:
    """Return the deterministic temporary name of an attempt's n-th output: a second run overwrites its own."""
    return ".tesgate-%s-%d.part" % (re.sub(r"[^A-Za-z0-9._-]", "_", tag)[:120], number)


def is_temporary(name: str) -> bool:
    """Say whether a name is one of `temporary_name`'s."""
    return _TEMPORARY.match(name) is not None


def split(path: str) -> List[str]:
    """Split an absolute path; empty components and ``.`` vanish. Raises `PathRefused` on ``..`` and NUL."""
    if "\0" in path:
        raise PathRefused("holds a NUL character")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PathRefused("holds a '..' component; write the path without it")
    return parts


def open_dir(base: int, parts: Sequence[str], *, ours: bool = False) -> int:
    """Open a directory beneath the descriptor `base`; no component may be a symbolic link.

    `ours`: whatever of it is our user's is opened also where its mode forbids that, which then changes.
    """
    here = os.open(".", _DIR, dir_fd=base)
    for part in parts:
        try:
            try:
                inner = os.open(part, _DIR, dir_fd=here)
            except PermissionError:
                if not ours or not _unlock(here, part, stat.S_ISDIR, 0o700):
                    raise
                inner = os.open(part, _DIR, dir_fd=here)
        finally:
            os.close(here)
        here = inner
    return here


def open_file(parent: int, name: str, expected: Optional[os.stat_result] = None, *, ours: bool = False) -> int:
    """Open a regular file in a directory for reading; a FIFO or a device is never opened.

    `expected` is the file that was looked at before; another one in its place is refused. `ours`: see `open_dir`.
    """
    seen = expected if expected is not None else os.stat(name, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISREG(seen.st_mode):
        raise PathRefused("is not a regular file")
    try:
        handle = os.open(name, _FILE, dir_fd=parent)
    except PermissionError:
        if not ours or not _unlock(parent, name, stat.S_ISREG, 0o400):
            raise
        handle = os.open(name, _FILE, dir_fd=parent)
    info = os.fstat(handle)
    if (info.st_dev, info.st_ino) != (seen.st_dev, seen.st_ino):
        os.close(handle)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
    return handle


def _unlock(parent: int, name: str, kind: Callable[[int], bool], mode: int) -> bool:
    """Give our user these rights on what is his already: a task may have closed it, and root alone would not notice.

    Not on a file that has another name: that could lie anywhere.
    """
    place = os.open(name, _PATH, dir_fd=parent)
    try:
        info = os.fstat(place)
        if info.st_uid != os.geteuid() or not kind(info.st_mode) or (mode == 0o400 and info.st_nlink != 1):
            return False
        os.chmod("/proc/self/fd/%d" % place, stat.S_IMODE(info.st_mode) & 0o777 | mode)
        return True
    finally:
        os.close(place)


def owned_dirs(base: int, parts: Sequence[str], mode: int, owner: Optional[Tuple[int, int]] = None) -> int:
    """Open a directory of our own beneath `base`, making what is missing with exactly `mode` (and `owner`)."""
    here = os.open(".", _DIR, dir_fd=base)
    for part in parts:
        made = False
        try:
            try:
                inner = os.open(part, _DIR, dir_fd=here)
            except FileNotFoundError:
                made = _mkdir(part, here, 0o700)
                inner = os.open(part, _DIR, dir_fd=here)
            if made:
                os.fchmod(inner, mode)
                if owner is not None:
                    os.fchown(inner, owner[0], owner[1])
        finally:
            os.close(here)
        here = inner
    return here


def _mkdir(name: str, parent: int, mode: int) -> bool:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return False
    return True


@dataclass
class RootDir:
    """A directory that an administrator allowed. Its own path is trusted, links in it included."""

    name: str
    path: str
    real: str
    """`path` with every link resolved, once."""
    writable: bool
    mounted: bool = False
    """Its mode is ``mount``."""

    def open(self) -> int:
        return os.open(self.real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@dataclass
class Found:
    """Where a path leads. It holds descriptors: `close` it."""

    root: RootDir
    parts: List[str]
    """Of the thing itself (or of the deepest directory that exists), below `root`, free of links."""
    parent: int
    """Descriptor (O_PATH) of the directory that holds it; of the deepest directory that exists, if `missing`."""
    info: Optional[os.stat_result]
    """None if it is missing."""
    missing: List[str]
    """Components that do not exist, the last one being the name that was asked for."""

    def close(self) -> None:
        os.close(self.parent)

    @property
    def name(self) -> str:
        return self.parts[-1] if self.parts else "."

    def open_file(self) -> int:
        return open_file(self.parent, self.name, self.info)

    def open_dir(self) -> int:
        return os.open(self.name, _DIR, dir_fd=self.parent)


class Roots:
    """All allowed directories; the only way from a user's path to a descriptor."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self.roots = [
            RootDir(
                name=root.name,
                path="/" + "/".join(split(root.path)),
                real=os.path.realpath(root.real or root.path),
                writable=root.writable,
                mounted=root.mode == "mount",
            )
            for root in roots
        ]

    def belongs(self, path: str) -> Tuple[RootDir, List[str]]:
        """Find the innermost root of an absolute path, by its components alone. Raises `PathRefused`."""
        parts = split(path)
        best: Optional[Tuple[int, RootDir, List[str]]] = None
        for root in self.roots:
            for spelling in (root.path, root.real):
                prefix = split(spelling)
                if parts[: len(prefix)] == prefix and (best is None or len(prefix) > best[0]):
                    best = (len(prefix), root, parts[len(prefix) :])
        if best is None:
            raise PathRefused(
                "is outside the agent's roots (%s)" % (", ".join(root.path for root in self.roots) or "it has none")
            )
        return best[1], best[2]

    @contextmanager
    def find(self, path: str, *, write: bool = False) -> Iterator[Found]:
        """Follow a user's path, links inside the roots included.

        With `write` a link in the last place is not followed (it is what a rename replaces), missing directories are
        no error, and the place must lie in a writable root. Otherwise raises FileNotFoundError, NotADirectoryError.
        """
        root, parts = self.belongs(path)
        found = self.walk(root, parts, write=write)
        try:
            if write:
                self._check_writable(found)
            yield found
        finally:
            found.close()

    def _check_writable(self, found: Found) -> None:
        # A relative link can lead from one root into another that lies inside it: the innermost one counts.
        inner, _ = self.belongs("/".join([found.root.real, *found.parts]))
        if not inner.writable:
            raise PathRefused("lies in the root %s, which is read-only" % inner.path)

    def walk(self, root: RootDir, parts: Sequence[str], *, write: bool = False) -> Found:
        """Follow components below a root. The caller closes what it gets."""
        pending: Deque[str] = deque(parts)
        stack = [root.open()]
        names: List[str] = []
        links = 0
        try:
            while pending:
                name = pending.popleft()
                if name == "..":
                    if not names:
                        raise PathRefused("leads out of the root %s through a symbolic link" % root.path)
                    names.pop()
                    os.close(stack.pop())
                    continue
                try:
                    handle = os.open(name, _PATH, dir_fd=stack[-1])
                except FileNotFoundError:
                    if not write:
                        raise
                    missing = [name, *pending]
                    if ".." in missing:
                        raise PathRefused("leads through a symbolic link to nowhere") from None
                    return Found(root, names, _keep(stack), None, missing)
                info = os.fstat(handle)
                if stat.S_ISLNK(info.st_mode) and not (write and not pending):
                    try:
                        target = os.readlink("", dir_fd=handle)
                    finally:
                        os.close(handle)
                    links += 1
                    if links > MAX_LINKS:
                        raise PathRefused("leads through too many symbolic links (more than %d)" % MAX_LINKS)
                    if target.startswith("/"):
                        root = self._target(target, name)
                        pending.extendleft(reversed(self.belongs(target)[1]))
                        for opened in stack:
                            os.close(opened)
                        stack, names = [], []
                        stack.append(root.open())
                    else:
                        pending.extendleft(reversed([part for part in target.split("/") if part not in ("", ".")]))
                elif not pending:
                    os.close(handle)
                    return Found(root, [*names, name], _keep(stack), info, [])
                elif stat.S_ISDIR(info.st_mode):
                    stack.append(handle)
                    names.append(name)
                else:
                    os.close(handle)
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
            return self._of_directory(root, names, stack)
        finally:
            for opened in stack:
                os.close(opened)

    def _target(self, target: str, name: str) -> RootDir:
        try:
            return self.belongs(target)[0]
        except PathRefused:
            raise PathRefused("leads out of the agent's roots through the symbolic link '%s'" % name) from None

    def _of_directory(self, root: RootDir, names: List[str], stack: List[int]) -> Found:
        """End on a directory that is already on the stack: the root itself, or after a link's ``..``."""
        info = os.fstat(stack[-1])
        if names:
            os.close(stack.pop())
        return Found(root, names, _keep(stack), info, [])


def _keep(stack: List[int]) -> int:
    """Take the last descriptor off the stack; the others stay, to be closed."""
    return stack.pop()
