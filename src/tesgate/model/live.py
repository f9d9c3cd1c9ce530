"""Which paths of a task are mounted as they are from roots of mode ``mount``, and which outputs need no copy there.

Pure. An input below such a root is mounted itself, writable where the root is; so is the directory that a DIRECTORY
output goes to. It is so only where nothing else of the task would have to be put into what is mounted, for that would
be put into the client's own directory: then there are copies, as from any root. The rules, outermost paths first:

1. What lies in a mounted place, at the same place on the host, is there already.
2. An input with another source (or inline content) below it, a volume in it, or something that is written below it
   where the root is read-only, makes it a copy. So does an input directory around it that is a copy.
3. A root inside it that is not mounted itself, or is read-only where it is not, makes it a copy: its rules hold there.
4. An output directory is mounted only where a volume could be (`mounts.mountable`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tesgate.model.container_paths import fixed_directory, has_wildcards, mountable, normal_path
from tesgate.model.mounts import Live, written_paths
from tesgate.model.roots import KnownRoot, lies_in, local_path, root_of

__all__ = ["is_live_output", "live_places", "notes_of"]


def live_places(document: Mapping[str, Any], roots: Sequence[KnownRoot]) -> dict[str, Live]:
    """Container path -> what is mounted there; none lies in another. Raises `MountError`."""
    if not any(root.mounted for root in roots):
        return {}
    sources: dict[str, str | None] = {}
    claims: dict[str, Live] = {}
    for path, live in _outputs(document, roots):
        claims.setdefault(path, live)
    for index, item in enumerate(document.get("inputs") or []):
        path = normal_path(item.get("path"), f"inputs[{index}].path")
        host = None if item.get("content") is not None else local_path(item.get("url") or "")
        sources[path] = host
        claims.pop(path, None)  # an input's own place wins over an output's
        root = None if host is None else root_of(host, roots)
        if host is not None and root is not None and root.mounted:
            claims[path] = Live(host, root.writable, item.get("type") == "DIRECTORY")
    volumes = [normal_path(path, "volumes") for path in document.get("volumes") or []]
    written = written_paths(document)
    found: dict[str, Live] = {}
    for path in sorted(claims, key=lambda path: path.count("/")):
        if any(lies_in(path, outer) for outer in found):
            continue
        if not _holds_stricter(claims[path], roots) and _may_be(path, claims[path], sources, volumes, written):
            found[path] = claims[path]
    return found


def _outputs(document: Mapping[str, Any], roots: Sequence[KnownRoot]) -> Iterator[tuple[str, Live]]:
    for index, output in enumerate(document.get("outputs") or []):
        path = normal_path(output.get("path"), f"outputs[{index}].path")
        host = local_path(output.get("url") or "")
        if output.get("type") != "DIRECTORY" or has_wildcards(path) or host is None:
            continue
        root = root_of(host, roots)
        if root is not None and root.mounted and root.writable and mountable(path, named=True):
            yield path, Live(host, True, True, make=True)


def _holds_stricter(live: Live, roots: Iterable[KnownRoot]) -> bool:
    """Whether a root lies in it in which tasks may do less."""
    return any(
        lies_in(root.path, live.host) and (not root.mounted or (live.writable and not root.writable)) for root in roots
    )


def _may_be(
    path: str, live: Live, sources: Mapping[str, str | None], volumes: Iterable[str], written: Iterable[str]
) -> bool:
    for other, host in sources.items():
        if other != path and lies_in(path, other):
            return False
        if other != path and lies_in(other, path) and host != _at(live, path, other):
            return False
    if any(lies_in(volume, path) for volume in volumes):
        return False
    return live.writable or not any(lies_in(one, path) for one in written)


def _at(live: Live, path: str, inner: str) -> str:
    """Where on the host a container path at or below a mounted one lies."""
    return (live.host.rstrip("/") + inner[len(path) :]) or "/"


def is_live_output(output: Mapping[str, Any], path: str, live: Mapping[str, Live]) -> bool:
    """Whether an output lies at its URL already, wherever the task writes it (`path` is its normal path)."""
    host = local_path(output.get("url") or "")
    if has_wildcards(path):
        prefix = (output.get("path_prefix") or "").rstrip("/")
        if not prefix or not lies_in(fixed_directory(path), prefix):
            return False
        path = prefix
    return any(lies_in(path, outer) and _at(one, outer, path) == host for outer, one in live.items())


def notes_of(live: Mapping[str, Live]) -> list[str]:
    """What the task's ``system_logs`` say of it, once."""
    writable = sorted(path for path, one in live.items() if one.writable)
    if not writable:
        return []
    more = "" if len(writable) <= 3 else f" and {len(writable) - 3} more"
    paths = ", ".join(writable[:3]) + more
    return [f"{paths}: mounted from a file root as it is; what the task writes there is seen at once and stays"]
