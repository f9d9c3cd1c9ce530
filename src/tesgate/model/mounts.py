"""Where the paths of a task lie: which directories are mounted, where inputs are staged, what is copied out.

Pure. The container's paths are mirrored below the attempt's scratch directory: ``rw/work/out`` is ``/work/out`` where
the task may write, ``ro/ref/a.fa`` is ``/ref/a.fa`` where it may not. The rules, in the order in which they apply:

1. *Writable directories* are every volume, every DIRECTORY output, the parent of every FILE output and of executors'
   stdout and stderr, the directory above the first wildcard of a pattern, a workdir in which anything of the task
   lies, and always ``/tmp``. A workdir that holds nothing of the task is left to the image (``/app`` with the program
   in it must stay visible); exec makes it where the image lacks it.
2. A directory that the image has and needs is never mounted over. Outputs there are `Collect` entries, copied out of
   the container after each executor; a volume there is a `MountError`. How deep a path must lie: `mountable`.
3. An input that is an ancestor of anything writable is writable itself, and so is the parent of more than
   `MANY_INPUTS` files (one mount instead of hundreds).
4. Writable directories inside one another are one mount, the outermost; the inner ones are ``directories``.
5. Inputs below a writable mount are private copies in ``rw/``; all others are read-only binds out of ``ro/``, nested
   ones inside the outermost. A file in an image's directory that is input and output is a writable bind of the file.

So no mount lies inside another, none hides another, and nothing that the task can write to may be a hard link. Only
what roots of mode ``mount`` hold may lie inside another mount (`tesgate.model.live`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from tesgate.runner.plan import Collect, Mount

__all__ = [
    "MANY_INPUTS",
    "Live",
    "MountError",
    "MountTable",
    "Place",
    "check_paths",
    "fixed_directory",
    "has_wildcards",
    "mount_table",
    "mountable",
    "normal_path",
    "written_paths",
]

MANY_INPUTS = 200
"""From more input files than this in one directory, the directory is mounted and not each file."""

_NOTHING: Mapping[str, Live] = MappingProxyType({})

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

_SCRATCH = frozenset({"/tmp", "/var/tmp"})
"""Writable by everybody, and empty in every image that matters."""


_NORMAL = re.compile(rf"(?!/{re.escape(_OURS)}(?:/|\Z))(?:/(?!\.\.?(?:/|\Z))[^/\0]+)+")
"""A path that `normal_path` returns as it is."""

_IMAGE = "|".join(sorted(map(re.escape, {*_KERNEL, _OURS, *_PACKAGED, *_IMPLIED_DEPTH, *_NAMED_DEPTH})))
_PART = r"/(?!\.\.?(?:/|\Z))[^/\0*?\[\\{]+"
_FREE = re.compile(rf"(?!/(?:{_IMAGE}|tmp)(?:/|\Z))(?:{_PART})+")
"""A normal path without wildcards in a tree of its own, where everything may be mounted."""
_FREE_BELOW = re.compile(rf"(?!/(?:{_IMAGE})(?:/|\Z))(?:{_PART}){{2,}}")
"""The same with a parent that may be mounted: at least two parts, also below /tmp."""

_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WILDCARD = re.compile(r"[*?]|\[[!^]?+\]?+[^\]]*\]")


class MountError(ValueError):
    """A path that cannot be served. The message is one sentence that begins with the path's place in the document."""


class Place(NamedTuple):
    """Where one input is staged."""

    place: str
    """Below the attempt's scratch directory; ``live/…`` where it is mounted as it is and nothing is staged."""
    writable: bool
    """The task can write to it: what is staged must be a private copy."""


class Live(NamedTuple):
    """A place of a file root that a container sees itself (`tesgate.model.live` says which)."""

    host: str
    writable: bool
    directory: bool
    make: bool = False
    """The directory of an output: made where it is missing."""


@dataclass(frozen=True)
class MountTable:
    """All that a runner needs to know about the paths of a task."""

    mounts: list[Mount]
    places: list[Place]
    """One for each input of the document, in its order."""
    collect: list[Collect] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    """Places (``rw/…``) inside writable mounts that must exist before the first executor."""


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
    """Whether an output's path is a pattern: the same rule as in `tesgate.runner.transfer.globs`."""
    return _WILDCARD.search(_ESCAPED.sub("", path)) is not None


def check_paths(document: Mapping[str, Any]) -> None:
    """Raise `MountError` for a task whose paths cannot be served; the API answers it with 400."""
    if not _is_free(document):
        mount_table(document)


def _is_free(document: Mapping[str, Any]) -> bool:
    """Whether no path of a checked document can fail in `mount_table`, seen without computing it.

    Most tasks keep to directories of their own (``/work``, ``/data``) and name no path twice. Every `MountError` is
    about another kind of path; a property-based test holds the two together.
    """
    inputs = document.get("inputs") or ()
    if len({item.get("path") for item in inputs}) < len(inputs):
        return False
    for item in (*inputs, *(document.get("outputs") or ())):
        if not (_FREE if item.get("type") == "DIRECTORY" else _FREE_BELOW).fullmatch(str(item.get("path"))):
            return False
    for path in document.get("volumes") or ():
        if not _FREE.fullmatch(path):
            return False
    for executor in document.get("executors") or ():
        if (workdir := executor.get("workdir")) and not _FREE.fullmatch(workdir):
            return False
        for stream in ("stdin", "stdout", "stderr"):
            if (path := executor.get(stream)) and not _FREE_BELOW.fullmatch(path):
                return False
    return True


def written_paths(document: Mapping[str, Any]) -> set[str]:
    """Every container path that the task says it writes to. Raises `MountError`."""
    return _Wanted.of(document, _inputs(document)).paths


def mount_table(document: Mapping[str, Any], live: Mapping[str, Live] = _NOTHING) -> MountTable:
    """Compute the mounts of a TES task document (``inputs``, ``outputs``, ``volumes``, ``executors``).

    `live`: what is mounted as it is. Such a mount may lie inside another one; nothing of the task is put into it.
    Raises `MountError`.
    """
    inputs = _inputs(document)
    wanted = _Wanted.of(document, inputs)
    if live:
        wanted = wanted.outside(live)
        inputs = {path: kind for path, kind in inputs.items() if not _below(path, live)}
    writable = _outermost(wanted.writable | _widened(inputs, wanted))
    collected = _collected(wanted, inputs, writable | live.keys())
    # A file in a directory of the image that is both input and output: one writable bind, nothing to collect.
    in_place = collected & inputs.keys()
    read_only = _outermost(path for path in inputs if path not in in_place and not _below(path, writable))

    mounts = [
        Mount(source="rw" + path, target=path, mode=0o1777 if path in _SCRATCH else 0o777) for path in sorted(writable)
    ]
    mounts += [Mount(source="rw" + path, target=path, directory=False) for path in sorted(in_place)]
    mounts += [
        Mount(source="ro" + path, target=path, read_only=True, directory=inputs[path] == "DIRECTORY")
        for path in sorted(read_only)
    ]
    mounts += [
        Mount(
            source="live" + one.host,
            target=path,
            read_only=not one.writable,
            directory=one.directory,
            host=one.host,
            make=one.make,
        )
        for path, one in sorted(live.items())
    ]
    places = []
    for item in document.get("inputs") or []:
        path = normal_path(item.get("path"), "inputs")
        if live and _below(path, live):
            places.append(Place("live" + path, False))
            continue
        free = path in in_place or _below(path, writable)
        places.append(Place(("rw" if free else "ro") + path, free))
    collect = [Collect(path=path, pattern=has_wildcards(path)) for path in sorted(collected - in_place)]
    inner = {path for path in wanted.directories if path not in writable and _below(path, writable)}
    return MountTable(mounts, places, collect, ["rw" + path for path in sorted(inner - inputs.keys())])


@dataclass
class _Wanted:
    """What the task asks to write to."""

    writable: set[str] = field(default_factory=set)
    """Directories to mount."""
    directories: set[str] = field(default_factory=set)
    """Directories that must be there and writable, if they lie inside a mount."""
    paths: set[str] = field(default_factory=set)
    """Every path (of a pattern: the directory that it searches) that the task writes to."""
    collected: set[str] = field(default_factory=set)
    """Paths and patterns that lie in the image's directories."""

    @classmethod
    def of(cls, document: Mapping[str, Any], inputs: Mapping[str, str]) -> _Wanted:
        wanted = cls(writable={"/tmp"})
        for index, output in enumerate(document.get("outputs") or []):
            wanted.output(output, f"outputs[{index}].path")
        workdirs = set()
        for index, executor in enumerate(document.get("executors") or []):
            for stream in ("stdin", "stdout", "stderr"):
                if executor.get(stream):
                    path = normal_path(executor[stream], f"executors[{index}].{stream}")
                    if stream != "stdin" and _top(path) not in _KERNEL:  # /dev/null and its like are the container's
                        wanted.file(path)
            if executor.get("workdir"):
                workdirs.add(normal_path(executor["workdir"], f"executors[{index}].workdir"))
        volumes = wanted.volumes(document)
        # A FILE output that other paths of the task lie in is a directory (Nextflow), and can be mounted as one.
        holding = _with_ancestors(wanted.writable | volumes)
        for path in sorted(wanted.collected & holding):
            if mountable(path, named=True):
                wanted.collected.discard(path)
                wanted.mount(path)
        # What a directory that is collected whole holds is collected with it, not mounted into it.
        whole = {path for path in wanted.collected if not has_wildcards(path)}
        wanted.writable = {path for path in wanted.writable if path in _SCRATCH or not _below(path, whole)}
        for path in volumes:
            wanted.mount(path)
        used = _with_ancestors([*inputs, *wanted.paths])
        for path in workdirs:
            wanted.directories.add(path)
            if path in used and mountable(path, named=False) and not _below(path, whole):
                wanted.mount(path)
            elif _below(path, inputs.keys()):
                wanted.paths.add(path)
        return wanted

    def outside(self, live: Mapping[str, Live]) -> _Wanted:
        """Without what lies in mounts that are no scratch of ours."""
        return _Wanted(
            *(
                {path for path in some if not _below(path, live)}
                for some in (self.writable, self.directories, self.paths, self.collected)
            )
        )

    @staticmethod
    def volumes(document: Mapping[str, Any]) -> set[str]:
        paths = set()
        for index, volume in enumerate(document.get("volumes") or []):
            path = normal_path(volume, f"volumes[{index}]")
            if not mountable(path, named=True):
                raise MountError(
                    f"volumes[{index}]: {path!r} belongs to the image, and a volume would hide what the image needs"
                    " there; choose a directory of its own, such as '/volume'"
                )
            paths.add(path)
        return paths

    def mount(self, path: str) -> None:
        self.writable.add(path)
        self.directories.add(path)
        self.paths.add(path)

    def either(self, directory: str, path: str, *, named: bool) -> None:
        """Mount `directory` where that hides nothing, else collect `path`."""
        self.paths.add(directory if has_wildcards(path) else path)
        if mountable(directory, named=named):
            self.mount(directory)
        else:
            self.directories.add(directory)
            self.collected.add(path)

    def file(self, path: str) -> None:
        self.either(_parent(path), path, named=False)

    def output(self, output: Mapping[str, Any], where: str) -> None:
        path = normal_path(output.get("path"), where)
        if _top(path) in _KERNEL:
            raise MountError(f"{where}: nothing can be stored from {path!r}; write to a directory such as '/out'")
        if path == "/":
            raise MountError(f"{where}: '/' is the whole container; name the directory that holds the results")
        if has_wildcards(path):
            if fixed_directory(path) == "/" and ("**" in path or path.count("/") > 1):
                raise MountError(f"{where}: {path!r} would search the whole container; write below a directory")
            self.either(fixed_directory(path), path, named=False)
        elif output.get("type") == "DIRECTORY":
            self.either(path, path, named=True)
        else:
            self.file(path)


def _collected(wanted: _Wanted, inputs: Mapping[str, str], writable: frozenset[str]) -> set[str]:
    """Keep of what is to be collected that which no mount and no other collected directory holds."""
    left = {path for path in wanted.collected if not _below(path, writable)}
    whole = {path for path in left if not has_wildcards(path)}
    inner = {path for path in wanted.collected | wanted.paths if _below(_parent(path), whole)}
    if both := sorted(inner & inputs.keys()):
        raise MountError(f"inputs: {both[0]!r} is changed in place inside an output directory that is the image's own")
    left -= inner
    for path in left:
        for mount in writable:
            if has_wildcards(path):
                parts = path.split("/")
                clash = all(map(fnmatchcase, mount.split("/"), parts)) and mount.count("/") >= fixed_directory(
                    path
                ).count("/")
            else:
                clash = _within(mount, path)
            if clash:
                raise MountError(
                    f"outputs: {path!r} lies in the image's own directories and would take in {mount!r}, which is"
                    " mounted; name the results one by one, or write them below a directory of their own"
                )
    return left


def _inputs(document: Mapping[str, Any]) -> dict[str, str]:
    """Path -> type of every input."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for index, item in enumerate(document.get("inputs") or []):
        where = f"inputs[{index}].path"
        path = normal_path(item.get("path"), where)
        kind = "DIRECTORY" if item.get("type") == "DIRECTORY" else "FILE"
        if path == "/" or _top(path) in _KERNEL:
            raise MountError(f"{where}: nothing can be put at {path!r}; choose a path such as '/in/data'")
        if kind == "FILE" and (path in _SCRATCH or (path.count("/") == 1 and not mountable(path, named=False))):
            raise MountError(f"{where}: {path!r} is a directory in every container; choose a path inside it")
        if kind == "DIRECTORY" and not mountable(path, named=True):
            raise MountError(
                f"{where}: {path!r} belongs to the image, and the input would hide what the image needs"
                " there; choose a directory of its own, such as '/in'"
            )
        if path in found and _source(found[path][1]) != _source(item):
            raise MountError(f"{where}: {path!r} is the path of an earlier input with another source")
        found[path] = (kind, item)
    return {path: kind for path, (kind, _) in found.items()}


def _source(item: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    return item.get("content"), None if item.get("content") is not None else item.get("url"), item.get("type") or "FILE"


def _widened(inputs: Mapping[str, str], wanted: _Wanted) -> set[str]:
    """Inputs that must be writable because something writable lies in them, and crowded directories."""
    parents = Counter(_parent(path) for path, kind in inputs.items() if kind == "FILE")
    crowded = {path for path, count in parents.items() if count > MANY_INPUTS and mountable(path, named=False)}
    above = _with_ancestors(_parent(path) for path in wanted.paths | wanted.writable | crowded)
    holding = _with_ancestors(_parent(path) for path in inputs)
    same = wanted.paths | wanted.writable
    wider = {
        path
        for path, kind in inputs.items()
        if path in above or path in wanted.directories or (path in same and (kind == "DIRECTORY" or path in holding))
    }
    for path in sorted(wider | (inputs.keys() & holding)):
        if not mountable(path, named=True):
            raise MountError(f"inputs: {path!r} belongs to the image, yet other paths of the task lie in it")
    return wider | crowded


def mountable(path: str, *, named: bool) -> bool:
    """Whether a directory may be mounted over: it is not one that images have and need.

    ``/mnt`` and ``/media`` may: they exist to be mounted over, and small images lack them.
    """
    if any(_within(path, scratch) for scratch in _SCRATCH):
        return True
    top, depth = _top(path), path.count("/") if path != "/" else 0
    if depth == 0 or top in _KERNEL:
        return False
    if named:
        return depth >= _NAMED_DEPTH[top] if top in _NAMED_DEPTH else top not in _PACKAGED
    return top not in _PACKAGED and depth >= _IMPLIED_DEPTH.get(top, 1)


def _outermost(paths: Iterable[str]) -> frozenset[str]:
    """Only the paths that lie in no other one."""
    known = set(paths)
    return frozenset(path for path in known if path == "/" or not _below(_parent(path), known))


def _below(path: str, directories: Collection[str]) -> bool:
    """Whether one of `directories` is `path` or an ancestor of it."""
    return any(candidate in directories for candidate in _upwards(path))


def _with_ancestors(paths: Iterable[str]) -> set[str]:
    return {ancestor for path in paths for ancestor in _upwards(path)}


def _upwards(path: str) -> Iterator[str]:
    while path != "/":
        yield path
        path = _parent(path)
    yield path


def _within(path: str, directory: str) -> bool:
    return path == directory or directory == "/" or path.startswith(directory + "/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _top(path: str) -> str:
    return path.split("/", 2)[1]


def fixed_directory(pattern: str) -> str:
    """The deepest directory of a pattern that holds no wildcard."""
    parts = []
    for part in pattern.split("/")[1:-1]:
        if has_wildcards(part) or "{" in part:
            break
        parts.append(_ESCAPED.sub(lambda found: found.group()[1], part))
    return "/" + "/".join(parts)
