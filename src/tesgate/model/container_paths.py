"""Paths inside a container: their form, their patterns, and which directories of an image may be mounted over.

Pure, and about one path at a time; what a whole task's paths come to is `tesgate.model.mounts`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

__all__ = [
    "SCRATCH",
    "MountError",
    "ancestors",
    "below",
    "fixed_directory",
    "has_wildcards",
    "is_free",
    "is_of_the_kernel",
    "mountable",
    "normal_path",
    "outermost",
    "parent",
    "within",
]

_KERNEL = frozenset({"proc", "sys", "dev"})
"""Made by the engine for each container: nothing is put there and nothing is kept from there."""

_OURS = ".tesgate"
"""Where exec and its control directory are bound."""

_PACKAGED = frozenset({"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "boot", "opt", "root"})
"""Trees that packages and image builders fill to any depth (``/opt/conda``, ``/usr/src/app``, ``/root/.local``)."""

_IMPLIED_DEPTH = {"home": 3, "srv": 3, "run": 3, "var": 4}
"""How deep a directory must lie in other trees of the image before an output's *parent* is mounted: ``/home/user`` and
``/var/lib/x`` are homes of users and packages, ``/home/user/run1`` and ``/var/lib/cwl/stg1`` are not."""

_NAMED_DEPTH = {"usr": 4, "etc": 3, "opt": 2, "root": 2, "home": 2, "srv": 2, "run": 2, "var": 3}
"""The same for a directory that the task *names* (a volume, a DIRECTORY input or output): that it starts empty or holds
the input is then what was asked for. The other trees of `_PACKAGED` are never mounted over."""

SCRATCH = frozenset({"/tmp", "/var/tmp"})
"""Writable by everybody, and empty in every image that matters."""

_NORMAL = re.compile(rf"(?!/{re.escape(_OURS)}(?:/|\Z))(?:/(?!\.\.?(?:/|\Z))[^/\0]+)+")
"""A path that `normal_path` returns as it is."""

_IMAGE = "|".join(sorted(map(re.escape, {*_KERNEL, _OURS, *_PACKAGED, *_IMPLIED_DEPTH, *_NAMED_DEPTH})))
_PART = r"/(?!\.\.?(?:/|\Z))[^/\0*?\[\\{]+"
_FREE = re.compile(rf"(?!/(?:{_IMAGE}|tmp)(?:/|\Z))(?:{_PART})+")
_FREE_BELOW = re.compile(rf"(?!/(?:{_IMAGE})(?:/|\Z))(?:{_PART}){{2,}}")

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WILDCARD = re.compile(r"[*?]|\[[!^]?+\]?+[^\]]*\]")


class MountError(ValueError):
    """A path that cannot be served. The message is one sentence that begins with the path's place in the document."""


def normal_path(path: object, where: str) -> str:
    """Return `path` without doubled or trailing slashes and ``.`` parts; `where` names it in the `MountError`."""
    if isinstance(path, str) and _NORMAL.fullmatch(path):
        return path
    if not isinstance(path, str) or not path:
        raise MountError(f"{where}: a path is missing")
    if not path.startswith("/"):
        raise MountError(f"{where}: {path!r} must be an absolute path inside the container")
    if "\0" in path:
        raise MountError(f"{where}: {path!r} holds a NUL character")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise MountError(f"{where}: {path!r} must not hold '..'")
    if parts and parts[0] == _OURS:
        raise MountError(f"{where}: {path!r} lies in /{_OURS}, which is reserved for tesgate")
    return "/" + "/".join(parts)


def has_wildcards(path: str) -> bool:
    """Whether an output's path is a pattern: the same rule as in `tesgate.runner.transfer.patterns`."""
    return _WILDCARD.search(_ESCAPED.sub("", path)) is not None


def fixed_directory(pattern: str) -> str:
    """The deepest directory of a pattern that holds no wildcard."""
    parts = []
    for part in pattern.split("/")[1:-1]:
        if has_wildcards(part) or "{" in part:
            break
        parts.append(_ESCAPED.sub(lambda found: found.group()[1], part))
    return "/" + "/".join(parts)


def is_of_the_kernel(path: str) -> bool:
    """Whether it lies in ``/proc``, ``/sys`` or ``/dev``."""
    return _top(path) in _KERNEL


def mountable(path: str, *, named: bool) -> bool:
    """Whether a directory may be mounted over: it is not one that images have and need.

    ``/mnt`` and ``/media`` may: they exist to be mounted over, and small images lack them. `named`: the task names it
    itself; otherwise it is the parent of something.
    """
    if any(within(path, scratch) for scratch in SCRATCH):
        return True
    top, depth = _top(path), path.count("/") if path != "/" else 0
    if depth == 0 or top in _KERNEL:
        return False
    if named:
        return depth >= _NAMED_DEPTH[top] if top in _NAMED_DEPTH else top not in _PACKAGED
    return top not in _PACKAGED and depth >= _IMPLIED_DEPTH.get(top, 1)


def is_free(path: str, *, file: bool) -> bool:
    """Whether a path, by its form alone, is normal, no pattern, and in a tree of its own, where all may be mounted.

    `file`: what is mounted then is its parent, so it has at least two parts, and may lie below ``/tmp``.
    """
    return (_FREE_BELOW if file else _FREE).fullmatch(path) is not None


# how paths lie to one another


def outermost(paths: Iterable[str]) -> frozenset[str]:
    """Only the paths that lie in no other one."""
    known = set(paths)
    return frozenset(path for path in known if path == "/" or not below(parent(path), known))


def below(path: str, directories: Collection[str]) -> bool:
    """Whether one of `directories` is `path` or an ancestor of it."""
    return any(candidate in directories for candidate in _upwards(path))


def ancestors(paths: Iterable[str]) -> set[str]:
    """The paths, and all directories above them."""
    return {ancestor for path in paths for ancestor in _upwards(path)}


def within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it."""
    return path == directory or directory == "/" or path.startswith(directory + "/")


def parent(path: str) -> str:
    """The directory that it lies in; ``/`` for itself."""
    return path.rpartition("/")[0] or "/"


def _upwards(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = parent(path)
    yield path


def _top(path: str) -> str:
    return path.split("/", 2)[1]
