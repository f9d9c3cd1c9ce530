"""The attempt's files as the container saw them: mounts over ``rw/``, links followed inside that view and never out."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Deque, Dict, Iterator, List, Optional, Sequence, Tuple

from ..plan import Mount
from .faults import PathRefused
from .paths import MAX_LINKS, Found, Roots, open_dir, open_file

__all__ = ["MAX_DEPTH", "Missing", "Node", "View", "host_path"]

MAX_DEPTH = 200
LISTED = 256
"""Entries of a directory that are held at a time, besides the names of all."""
_Parts = Tuple[str, ...]


class Missing(Exception):
    """Nothing (that the attempt left) is at a container path; `why` completes a sentence that begins with the path."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True)
class Node:
    """One place of the container's view, free of links."""

    path: _Parts
    info: Optional[os.stat_result]
    """None for a directory that exists only because something is mounted below it."""
    above: _Parts = ()
    """The directories walked through, so that a link to one of them is not walked into again."""
    fault: Optional[str] = None
    """Why this entry of a directory cannot be stored: half a sentence."""

    @property
    def is_dir(self) -> bool:
        return self.fault is None and (self.info is None or stat.S_ISDIR(self.info.st_mode))


def _split(path: str) -> _Parts:
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _locate(parts: _Parts, mounts: Dict[_Parts, _Parts]) -> _Parts:
    for count in range(len(parts), 0, -1):
        source = mounts.get(parts[:count])
        if source is not None:
            return source + parts[count:]
    return mounts.get((), ("rw",)) + parts


def _ours(host: _Parts) -> bool:
    return host[:1] == ("rw",)


def host_path(path: str, mounts: Sequence[Mount]) -> str:
    """Return where a container path lies below the attempt's directory: by the longest mount, else in ``rw/``."""
    return "/".join(_locate(_split(path), {_split(mount.target): _split(mount.source) for mount in mounts}))


class View:
    """A tree (see `globs.Tree`) of what the container saw. Its nodes name places; nothing is held open.

    Places that begin with ``live`` are paths of the host, found beneath `roots`.
    """

    def __init__(self, *, attempt_dir: str, mounts: Sequence[Mount], roots: Optional[Roots] = None) -> None:
        self._dir = attempt_dir
        self._roots = roots
        self._mounts = {_split(mount.target): _split(mount.source) for mount in mounts}
        self._over: Dict[_Parts, List[str]] = {}
        for target in self._mounts:
            for count in range(len(target)):
                names = self._over.setdefault(target[:count], [])
                if target[count] not in names:
                    names.append(target[count])
        self.root = Node((), None)

    def host(self, node: Node) -> _Parts:
        """Return where a node lies, relative to the attempt's directory."""
        return _locate(node.path, self._mounts)

    def is_ours(self, node: Node) -> bool:
        """Whether it lies where the task alone has written, and nothing is anybody else's."""
        return _ours(self.host(node))

    @contextmanager
    def _live(self, parts: _Parts) -> Iterator[Found]:
        """Find a place that is mounted as it is. A link in the last place is not followed; missing is an OSError."""
        if self._roots is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        try:
            root, names = self._roots.belongs("/" + "/".join(parts[1:]))
            found = self._roots.walk(root, names, write=True)
        except PathRefused as error:  # a link that was put there meanwhile
            raise FileNotFoundError(errno.ENOENT, error.why) from None
        try:
            if found.info is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            yield found
        finally:
            found.close()

    @contextmanager
    def _directory(self, parts: _Parts) -> Iterator[int]:
        if parts[:1] == ("live",):
            with self._live(parts) as found:
                handle = found.open_dir()
            try:
                yield handle
            finally:
                os.close(handle)
            return
        base = os.open(self._dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            handle = open_dir(base, parts, ours=_ours(parts))
        finally:
            os.close(base)
        try:
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def opened(self, node: Node) -> Iterator[Tuple[int, str, int]]:
        """Open a regular file: descriptor of its directory, its name there, its own descriptor. Raises OSError."""
        host = self.host(node)
        if host[:1] == ("live",):
            with self._live(host) as found:
                handle = open_file(found.parent, found.name, node.info)
                try:
                    yield found.parent, found.name, handle
                finally:
                    os.close(handle)
            return
        with self._directory(host[:-1]) as parent:
            handle = open_file(parent, host[-1], node.info, ours=_ours(host))
            try:
                yield parent, host[-1], handle
            finally:
                os.close(handle)

    @contextmanager
    def directory(self, node: Node) -> Iterator[int]:
        """Open a directory. Raises OSError."""
        with self._directory(self.host(node)) as handle:
            yield handle

    def _lstat(self, parts: _Parts) -> Optional[os.stat_result]:
        """Look at one place without following a link. Raises FileNotFoundError; None: a mount's mere parent."""
        host = _locate(parts, self._mounts)
        try:
            if host[:1] == ("live",):
                with self._live(host) as found:
                    return found.info
            with self._directory(host[:-1]) as parent:
                return os.stat(host[-1], dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if parts in self._over:
                return None
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise FileNotFoundError(error.errno, error.strerror) from None
            raise

    def look(self, start: _Parts, names: Sequence[str], above: _Parts = ()) -> Node:
        """Follow names from a place, links as in the container. Raises `Missing`, OSError."""
        pending: Deque[str] = deque(names)
        here, links, through = start, 0, ""
        info: Optional[os.stat_result] = None
        while pending:
            name = pending.popleft()
            if name == "..":
                here, info = here[:-1], None
                continue
            place = (*here, name)
            try:
                info = self._lstat(place)
            except FileNotFoundError:
                if through:
                    raise Missing(
                        "is a symbolic link to %s, which is not among the files that the task left "
                        "(nothing is there, or only the image has it)" % through
                    ) from None
                raise Missing("does not exist") from None
            if info is not None and stat.S_ISLNK(info.st_mode):
                links += 1
                if links > MAX_LINKS:
                    raise Missing("is a symbolic link that leads to itself")
                target = self._readlink(place)
                through = through or target
                pending.extendleft(reversed(_split(target)))
                here, info = (() if target.startswith("/") else here), None
            elif pending and info is not None and not stat.S_ISDIR(info.st_mode):
                raise Missing("does not exist")
            else:
                here = place
        if info is None and here:
            try:
                info = self._lstat(here)
            except FileNotFoundError:
                raise Missing("does not exist") from None
        return Node(here, info, above)

    def _readlink(self, parts: _Parts) -> str:
        host = _locate(parts, self._mounts)
        with self._directory(host[:-1]) as parent:
            return os.readlink(host[-1], dir_fd=parent)

    def is_dir(self, node: Node) -> bool:
        return node.is_dir

    def child(self, node: Node, name: str) -> Optional[Node]:
        try:
            return self.look(node.path, [name], self._trail(node))
        except Missing:
            return None

    def children(self, node: Node) -> Iterator[Tuple[str, Node]]:
        """List a directory, sorted. What cannot be stored (links to nowhere, special files) has a `fault`."""
        over = self._over.get(node.path, [])
        names = list(over)
        try:
            with self._directory(self.host(node)) as handle:
                names += [name for name in os.listdir(handle) if name not in over]
        except (FileNotFoundError, NotADirectoryError):
            if not over:
                raise
        names.sort()
        for begin in range(0, len(names), LISTED):
            yield from self._entries(node, names[begin : begin + LISTED], over)

    def _entries(self, node: Node, names: List[str], over: List[str]) -> List[Tuple[str, Node]]:
        trail = self._trail(node)
        found: List[Tuple[str, Node]] = []
        with ExitStack() as stack:
            handle: Optional[int] = None
            for name in names:
                if name in over:
                    info = self._lstat((*node.path, name))
                else:
                    if handle is None:
                        handle = stack.enter_context(self.directory(node))
                    info = os.stat(name, dir_fd=handle, follow_symlinks=False)
                found.append((name, self._entry(node, name, info, trail)))
        return found

    def is_own(self, node: Node, name: str, inner: Node) -> bool:
        """Whether an entry of a directory lies there itself: nothing is mounted over it, and it is no link."""
        return inner.path == (*node.path, name) and name not in self._over.get(node.path, ())

    def _entry(self, node: Node, name: str, info: Optional[os.stat_result], trail: _Parts) -> Node:
        inner = Node((*node.path, name), info, trail)
        if info is not None and stat.S_ISLNK(info.st_mode):
            try:
                inner = self.look(node.path, [name], trail)
            except Missing as error:
                return Node((*node.path, name), info, trail, error.why)
        if inner.is_dir:
            if _key(inner.path) in trail or inner.path == node.path[: len(inner.path)]:
                return Node(inner.path, info, trail, "leads back to a directory that it lies in")
            if len(trail) >= MAX_DEPTH:
                return Node(inner.path, info, trail, "is nested more than %d directories deep" % MAX_DEPTH)
        return inner

    def _trail(self, node: Node) -> _Parts:
        return (*node.above, _key(node.path))


def _key(path: _Parts) -> str:
    return "/" + "/".join(path)
