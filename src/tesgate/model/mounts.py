"""Where the paths of a task lie: which directories are mounted, where inputs are staged, what is copied out.

Pure. The container's paths are mirrored below the attempt's scratch directory: ``rw/work/out`` is ``/work/out`` where
the task may write, ``ro/ref/a.fa`` is ``/ref/a.fa`` where it may not. The rules, in the order in which they apply:

1. *Writable directories* are every volume, every DIRECTORY output, the parent of every FILE output and of executors'
   stdout and stderr, the directory above the first wildcard of a pattern, a workdir in which anything of the task
   lies, and always ``/tmp``. A workdir that holds nothing of the task is left to the image (``/app`` with the program
   in it must stay visible); exec makes it where the image lacks it.
2. A directory that the image has and needs is never mounted over. Outputs there are `Collect` entries, copied out of
   the container after each executor; a volume there is a `MountError`. How deep a path must lie: `container_paths`.
3. An input that is an ancestor of anything writable is writable itself, and so is the parent of more than
   `MANY_INPUTS` files (one mount instead of hundreds).
4. Writable directories inside one another are one mount, the outermost; the inner ones are ``directories``.
5. Inputs below a writable mount are private copies in ``rw/``; all others are read-only binds out of ``ro/``, nested
   ones inside the outermost. A file in an image's directory that is input and output is a writable bind of the file.

So no mount lies inside another, none hides another, and nothing that the task can write to may be a hard link. Only
what roots of mode ``mount`` hold may lie inside another mount (`tesgate.model.live`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from tesgate.model.container_paths import (
    SCRATCH,
    MountError,
    ancestors,
    below,
    fixed_directory,
    has_wildcards,
    is_free,
    is_of_the_kernel,
    mountable,
    normal_path,
    outermost,
    parent,
    within,
)
from tesgate.runner.plan import Collect, Mount

__all__ = ["MANY_INPUTS", "Live", "MountTable", "Place", "check_paths", "mount_table", "written_paths"]

MANY_INPUTS = 200
"""From more input files than this in one directory, the directory is mounted and not each file."""

_NOTHING: Mapping[str, Live] = MappingProxyType({})


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
        if not is_free(str(item.get("path")), file=item.get("type") != "DIRECTORY"):
            return False
    for path in document.get("volumes") or ():
        if not is_free(path, file=False):
            return False
    for executor in document.get("executors") or ():
        if (workdir := executor.get("workdir")) and not is_free(workdir, file=False):
            return False
        for stream in ("stdin", "stdout", "stderr"):
            if (path := executor.get(stream)) and not is_free(path, file=True):
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
        inputs = {path: kind for path, kind in inputs.items() if not below(path, live)}
    writable = outermost(wanted.writable | _widened(inputs, wanted))
    collected = _collected(wanted, inputs, writable | live.keys())
    # A file in a directory of the image that is both input and output: one writable bind, nothing to collect.
    in_place = collected & inputs.keys()
    read_only = outermost(path for path in inputs if path not in in_place and not below(path, writable))

    mounts = [
        Mount(source="rw" + path, target=path, mode=0o1777 if path in SCRATCH else 0o777) for path in sorted(writable)
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
        if live and below(path, live):
            places.append(Place("live" + path, False))
            continue
        free = path in in_place or below(path, writable)
        places.append(Place(("rw" if free else "ro") + path, free))
    collect = [Collect(path=path, pattern=has_wildcards(path)) for path in sorted(collected - in_place)]
    inner = {path for path in wanted.directories if path not in writable and below(path, writable)}
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
                    if stream != "stdin" and not is_of_the_kernel(path):  # /dev/null and its like are the container's
                        wanted.file(path)
            if executor.get("workdir"):
                workdirs.add(normal_path(executor["workdir"], f"executors[{index}].workdir"))
        volumes = wanted.volumes(document)
        # A FILE output that other paths of the task lie in is a directory (Nextflow), and can be mounted as one.
        holding = ancestors(wanted.writable | volumes)
        for path in sorted(wanted.collected & holding):
            if mountable(path, named=True):
                wanted.collected.discard(path)
                wanted.mount(path)
        # What a directory that is collected whole holds is collected with it, not mounted into it.
        whole = {path for path in wanted.collected if not has_wildcards(path)}
        wanted.writable = {path for path in wanted.writable if path in SCRATCH or not below(path, whole)}
        for path in volumes:
            wanted.mount(path)
        used = ancestors([*inputs, *wanted.paths])
        for path in workdirs:
            wanted.directories.add(path)
            if path in used and mountable(path, named=False) and not below(path, whole):
                wanted.mount(path)
            elif below(path, inputs.keys()):
                wanted.paths.add(path)
        return wanted

    def outside(self, live: Mapping[str, Live]) -> _Wanted:
        """Without what lies in mounts that are no scratch of ours."""
        return _Wanted(
            *(
                {path for path in some if not below(path, live)}
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
        self.either(parent(path), path, named=False)

    def output(self, output: Mapping[str, Any], where: str) -> None:
        path = normal_path(output.get("path"), where)
        if is_of_the_kernel(path):
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
    left = {path for path in wanted.collected if not below(path, writable)}
    whole = {path for path in left if not has_wildcards(path)}
    inner = {path for path in wanted.collected | wanted.paths if below(parent(path), whole)}
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
                clash = within(mount, path)
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
        if path == "/" or is_of_the_kernel(path):
            raise MountError(f"{where}: nothing can be put at {path!r}; choose a path such as '/in/data'")
        if kind == "FILE" and (path in SCRATCH or (path.count("/") == 1 and not mountable(path, named=False))):
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
    parents = Counter(parent(path) for path, kind in inputs.items() if kind == "FILE")
    crowded = {path for path, count in parents.items() if count > MANY_INPUTS and mountable(path, named=False)}
    above = ancestors(parent(path) for path in wanted.paths | wanted.writable | crowded)
    holding = ancestors(parent(path) for path in inputs)
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
