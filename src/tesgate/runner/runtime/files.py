"""Files of a container's own file system: out of it after a step, into it before the next."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from typing import IO, Any, Dict, Iterator, List, cast

from urllib3.exceptions import HTTPError

from ..transfer.patterns import Matcher, base_of, expand_braces
from .archive import UnsafePath, empty_directories, extract, pack, parts_of
from .base import Bind, Collect, EngineUnavailable, RuntimeFault, StepRefused
from .engine import Engine, EngineError, Stream, in_path

__all__ = ["ContainerFiles"]

_IDLE = 120.0
_ENDING = 60.0
"""Seconds for which a container may be about to end, once all of its processes have."""
_LINKS = 8
_DELETED, _ADDED = 2, 1


class ContainerFiles:
    """Copies between the containers of one engine and directories of ours, by streamed tars."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def collect(self, name: str, items: List[Collect], root: str) -> List[str]:
        """`Runtime.collect`. A path that does not exist is no fault: whoever stores outputs says so."""
        if not items:
            return []
        # Podman cannot copy while a container ends: its mount namespace is gone, and it is not stopped yet.
        await self._engine.call_stream(_bound(self._until_ended, name), timeout=_ENDING)
        notes: List[str] = []
        paths: List[str] = []
        patterns = [item.path for item in items if item.pattern]
        if patterns:
            changes = await self._engine.call(self._changes, name)
            paths += await self._engine.call(_matching, patterns, changes, notes)
        paths += [item.path for item in items if not item.pattern]
        for path in dict.fromkeys(paths):
            notes += await self._engine.call_stream(_bound(self._fetch, name, path, root), timeout=_IDLE)
        return notes

    def _until_ended(self, stream: Stream, name: str) -> None:
        try:
            self._engine.open(stream, "POST", "/containers/%s/wait" % in_path(name))
            stream.read()
        except EngineError as error:
            raise _collect_fault(name, error) from error
        except (HTTPError, OSError) as error:
            raise self._engine.gone(error) from error

    async def restore(self, name: str, items: List[Collect], root: str, binds: List[Bind]) -> None:
        """`Runtime.restore`, for a container that exists and was never started."""
        targets = [bind.target for bind in binds]
        missing = await self._engine.call(self._missing_parents, name, items, targets)
        if missing:
            await self._engine.call_stream(_bound(self._put_blocks, name, empty_directories(missing)), timeout=_IDLE)
        paths = await self._engine.call(_present, items, root, targets)
        if paths:
            await self._engine.call_stream(_bound(self._put, name, root, paths), timeout=_IDLE)

    def _missing_parents(self, name: str, items: List[Collect], targets: List[str]) -> List[str]:
        """Directories above the paths that the image does not have, outermost first: commands expect to find them."""
        known: Dict[str, bool] = {"": True}

        def exists(path: str) -> bool:
            if path not in known:
                try:
                    self._engine.request("HEAD", "/containers/%s/archive" % in_path(name), {"path": path})
                    known[path] = True
                except EngineError as error:
                    if error.status != 404:
                        raise _collect_fault(name, error) from error
                    known[path] = False
            return known[path]

        missing: Dict[str, None] = {}
        for item in items:
            parent = item.path.rpartition("/")[0]
            if item.pattern or _below(parent, targets):
                continue
            above: List[str] = []
            while not exists(parent):
                above.append(parent)
                parent = parent.rpartition("/")[0]
            missing.update(dict.fromkeys(reversed(above)))
        return sorted(missing)

    def _changes(self, name: str) -> Dict[str, int]:
        try:
            found = self._engine.request("GET", "/containers/%s/changes" % in_path(name)).json() or []
        except EngineError as error:
            raise _collect_fault(name, error) from error
        return {entry["Path"]: entry["Kind"] for entry in found}

    def _fetch(self, stream: Stream, name: str, path: str, root: str) -> List[str]:
        wanted = path
        for _ in range(_LINKS):
            try:
                self._engine.open(stream, "GET", "/containers/%s/archive" % in_path(name), {"path": wanted})
            except EngineError as error:
                if error.status == 404 and "no such container" not in error.message.lower():
                    return []
                raise _collect_fault(name, error) from error
            link = _link_target(stream.headers.get("X-Docker-Container-Path-Stat", ""))
            if not link or link == wanted:
                break
            # The output's path is itself a link: what it leads to inside the container is meant.
            stream.close()
            wanted = link
        try:
            return extract(cast(IO[bytes], stream), root, path)
        except UnsafePath as error:
            return ["The output %s was not collected: %s." % (path, error)]
        except (tarfile.TarError, HTTPError) as error:
            raise EngineUnavailable(
                "The engine broke off while %s was copied out of the container (%s)." % (path, error)
            ) from error
        except OSError as error:
            if stream.aborted:
                raise self._engine.gone(error) from error
            raise EngineUnavailable(
                "The output %s could not be copied out of the container (%s)." % (path, error.strerror or error)
            ) from error

    def _put(self, stream: Stream, name: str, root: str, paths: List[str]) -> None:
        self._put_blocks(stream, name, _large(pack(root, paths)))

    def _put_blocks(self, stream: Stream, name: str, blocks: Iterator[bytes]) -> None:
        headers = {"Content-Type": "application/x-tar"}
        try:
            self._engine.open(
                stream, "PUT", "/containers/%s/archive" % in_path(name), {"path": "/"}, body=blocks, headers=headers
            )
            stream.read()
        except UnsafePath as error:
            raise StepRefused("Outputs of an earlier executor could not be put back: %s." % error) from error
        except EngineError as error:
            raise EngineUnavailable(
                "Outputs of an earlier executor could not be put back (%s)." % error.message
            ) from error


def _bound(function: Any, *args: Any) -> Any:
    return lambda stream: function(stream, *args)


def _collect_fault(name: str, error: EngineError) -> RuntimeFault:
    if error.status == 404:
        return EngineUnavailable("The container %s was gone before its outputs could be collected." % name)
    return EngineUnavailable("Outputs could not be copied out of the container (%s)." % error.message)


def _link_target(header: str) -> str:
    try:
        found = json.loads(base64.b64decode(header)) if header else {}
        return str(found.get("linkTarget") or "")
    except ValueError:
        return ""


def _compiled(pattern: str) -> List[Matcher]:
    return [Matcher(plain.rstrip("/")) for plain in expand_braces(pattern)]


def _matching(patterns: List[str], changes: Dict[str, int], notes: List[str]) -> List[str]:
    """Which changed paths the patterns mean: files as they are, new directories whole (once), old ones not at all.

    A directory of the image itself that merely has something new in it is never copied whole.
    """
    found: List[str] = []
    parents = {path.rpartition("/")[0] for path in changes}
    for pattern in patterns:
        try:
            wanted = _compiled(pattern)
        except ValueError as error:
            notes.append("The output pattern %s cannot be used: %s." % (pattern, error))
            continue
        for path, kind in sorted(changes.items()):
            if kind == _DELETED or (kind != _ADDED and path in parents):
                continue
            if any(path.startswith(above + "/") for above in found):
                continue
            if any(one.fullmatch(path) for one in wanted):
                found.append(path)
    return found


def _present(items: List[Collect], root: str, targets: List[str]) -> List[str]:
    """What `collect` left below `root`; never anything at or below a mount, which the container has already."""
    paths: List[str] = []
    for item in items:
        if not item.pattern:
            if not _below(item.path, targets):
                paths.append(item.path)
            continue
        wanted = _compiled(item.path)
        top = base_of(item.path).rstrip("/")
        try:
            parts_of(top)
        except UnsafePath:
            continue
        for here, directories, files in os.walk(root + top):  # follows no links
            inner = here[len(root) :]
            for name in list(directories):
                path = inner.rstrip("/") + "/" + name
                if _below(path, targets):
                    directories.remove(name)
                elif any(one.fullmatch(path) for one in wanted):
                    directories.remove(name)
                    paths.append(path)
            for name in files:
                path = inner.rstrip("/") + "/" + name
                if not _below(path, targets) and any(one.fullmatch(path) for one in wanted):
                    paths.append(path)
    return list(dict.fromkeys(paths))


def _below(path: str, targets: List[str]) -> bool:
    return any(path == target or path.startswith(target.rstrip("/") + "/") for target in targets)


def _large(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Join small blocks: each that is yielded becomes one chunk on the wire."""
    pending = bytearray()
    for block in blocks:
        pending += block
        if len(pending) >= 1 << 18:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)
