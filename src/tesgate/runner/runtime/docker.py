"""Runs steps as containers of a Docker Engine API: Docker's own, or Podman's service, rootful and rootless."""

from __future__ import annotations

import hashlib
import math
import os
import re
import time
from contextlib import suppress
from typing import Any, AsyncIterator, Callable, Dict, List, Optional, Tuple

from .base import (
    Collect,
    EngineUnavailable,
    ImageFacts,
    ImageRefused,
    RuntimeFacts,
    RuntimeFault,
    StepRefused,
    StepSpec,
    StepStatus,
    check_spec,
)
from .containers import ContainerSettings, container_body, owner_body
from .engine import Engine, EngineError, in_path
from .events import ended_containers
from .facts import engine_facts
from .files import ContainerFiles
from .images import Images

__all__ = ["DockerRuntime"]

_NEVER = "0001-01-01T00:00:00Z"
_LATE = 2.0
"""Seconds that the engine's KILL waits longer than exec's own, so that exec can still write the result."""
_OWN = 3600.0


class DockerRuntime:
    """`Runtime` on one engine's socket."""

    name = "docker"

    def __init__(
        self,
        *,
        identity: Dict[str, str],
        socket: str = "/var/run/docker.sock",
        exec_path: Optional[str] = None,
        auth_file: Optional[str] = None,
        settings: Optional[ContainerSettings] = None,
        image_facts_for: float = 30.0,
        found: Optional[Callable[[str], None]] = None,
    ) -> None:
        """`identity`: labels that every container of this agent carries, and by which `names` and `ended` find them.

        `socket`: ``auto`` looks for one; `found` is told which it was. `exec_path`: host path of the exec binary (only
        `own` uses it). `image_facts_for`: seconds that what is known of an image is believed.
        """
        if not identity:
            raise ValueError("identity must name at least one label")
        base = settings or ContainerSettings()
        self._identity = dict(identity)
        self._settings = ContainerSettings(**{**vars(base), "labels": {**base.labels, **identity}})
        self._exec_path = exec_path
        self._engine = Engine(socket, found=found)
        self._images = Images(self._engine, auth_file=auth_file, keep=image_facts_for)
        self._files = ContainerFiles(self._engine)
        self._facts: Optional[RuntimeFacts] = None

    async def probe(self) -> RuntimeFacts:
        """`Runtime.probe`; settles on an API version too."""

        def ask() -> RuntimeFacts:
            version = self._engine.negotiate()
            info = self._engine.request("GET", "/info", timeout=30.0).json()
            return engine_facts(self.name, version, info, self._libpod(), os.stat(self._engine.path).st_uid)

        try:
            self._facts = await self._engine.call(ask)
        except EngineError as error:
            raise EngineUnavailable("The engine could not describe itself (%s)." % error.message) from error
        return self._facts

    async def prepare(self, image: str, pull_policy: str) -> ImageFacts:
        """`Runtime.prepare`."""
        return await self._images.prepare(image, pull_policy)

    async def start(self, spec: StepSpec) -> List[str]:
        """`Runtime.start`: two calls, create and start, where nothing is in the way."""
        facts = await self._known()
        return await self._engine.call(self._start, spec, facts)

    async def inspect(self, name: str) -> StepStatus:
        """`Runtime.inspect`."""
        found = await self._engine.call(self._inspect, name)
        if found is None:
            return StepStatus(running=False, found=False)
        state = found["State"]
        started = _started(found)
        running = bool(state.get("Running") or state.get("Restarting") or state.get("Paused"))
        return StepStatus(
            running=running,
            found=True,
            exit_code=state.get("ExitCode") if started and not running else None,
            oom_killed=bool(state.get("OOMKilled")),
            error=str(state.get("Error") or ""),
            started=started,
        )

    async def stop(self, name: str, grace: float) -> None:
        """`Runtime.stop`. The engine's KILL comes two seconds after exec's own would."""
        query = {"t": str(math.ceil(max(grace, 0.0) + _LATE) if grace > 0 else 0)}
        path = "/containers/%s/stop" % in_path(name)
        try:
            await self._engine.call(lambda: self._engine.request("POST", path, query, timeout=grace + 60.0), slow=True)
        except EngineError as error:
            if error.status != 404:
                said = "The container %s could not be stopped (%s)." % (name, error.message)
                raise EngineUnavailable(said) from error

    async def remove(self, name: str) -> None:
        """`Runtime.remove`, with the image's anonymous volumes."""
        await self._engine.call(self._remove, name, slow=True)

    async def keep(self, name: str) -> None:
        """`Runtime.keep`: under another name it is neither adopted nor removed as an orphan."""
        await self._engine.call(self._rename, name, "kept-" + name)

    async def collect(self, name: str, items: List[Collect], root: str) -> List[str]:
        """`Runtime.collect`. A pattern finds what the step added or changed, not the image's own files."""
        return await self._files.collect(name, items, root)

    async def restore(self, spec: StepSpec, items: List[Collect], root: str) -> None:
        """`Runtime.restore`; nothing happens in a container that was started already."""
        facts = await self._known()
        _, started = await self._engine.call(self._create, spec, facts)
        if not started:
            await self._files.restore(spec.name, items, root, spec.binds)

    async def names(self, prefix: str) -> List[str]:
        """`Runtime.names`."""
        query = {"all": "1", "filters": {"label": self._labels()}}
        try:
            answer = await self._engine.call(self._engine.request, "GET", "/containers/json", query)
        except EngineError as error:
            raise EngineUnavailable("The engine could not list containers (%s)." % error.message) from error
        found = [(entry.get("Names") or [""])[0].lstrip("/") for entry in answer.json() or []]
        kept = prefix.startswith("kept-")
        return sorted(name for name in found if name.startswith(prefix) and name.startswith("kept-") == kept)

    def ended(self) -> AsyncIterator[str]:
        """`Runtime.ended`, from the engine's event stream; it is opened anew whenever it ends."""
        return ended_containers(self._engine, self._labels(), self._reconnected)

    async def own(self, image: str, paths: List[str], uid: int, gid: int) -> None:
        """`Runtime.own`: a short container of `image` (which must be here) runs ``exec own`` as root over `paths`."""
        if not paths:
            return
        if self._exec_path is None:
            raise StepRefused("Files cannot be given back to the agent: it was started without the exec binary.")
        image_facts, facts = await self.prepare(image, "missing"), await self._known()
        body = owner_body(image_facts.id, self._exec_path, paths, uid, gid, facts, self._settings)
        await self._engine.call(self._own, body, paths, slow=True)

    async def aclose(self) -> None:
        """`Runtime.aclose`."""
        self._engine.close()

    def _reconnected(self) -> None:
        self._facts = None

    async def _known(self) -> RuntimeFacts:
        return self._facts if self._facts is not None else await self.probe()

    # -- in threads

    def _start(self, spec: StepSpec, facts: RuntimeFacts) -> List[str]:
        notes, started = self._create(spec, facts)
        if not started:
            try:
                self._engine.request("POST", "/containers/%s/start" % in_path(spec.name))
            except EngineError as error:
                raise _start_fault(spec, error) from error
        return notes

    def _create(self, spec: StepSpec, facts: RuntimeFacts) -> Tuple[List[str], bool]:
        """Create or adopt; returns notes, and whether it has been started at some time."""
        check_spec(spec)
        body, notes = container_body(spec, self._images.last(spec.image), facts, self._settings)
        deadline = time.monotonic() + 30.0
        while True:
            try:
                answer = self._engine.request("POST", "/containers/create", {"name": spec.name}, body)
                return notes + [str(warning) for warning in answer.json().get("Warnings") or []], False
            except EngineError as error:
                # Older Podman says 500 for a name that is taken.
                if error.status == 409 or "already in use" in error.message:
                    found = self._inspect(spec.name)
                    if found is not None and found["State"].get("Status") != "removing":
                        self._check_ours(spec.name, found)
                        return notes, _started(found)
                    if time.monotonic() < deadline:
                        time.sleep(0.1)  # its removal is under way
                        continue
                if "storage-opt" in error.message.lower() and "StorageOpt" in body["HostConfig"]:
                    del body["HostConfig"]["StorageOpt"]
                    facts.disk_limit = False
                    notes.append("The disk limit is not held: %s." % error.message.rstrip("."))
                    continue
                raise self._create_fault(spec, error) from error

    def _create_fault(self, spec: StepSpec, error: EngineError) -> RuntimeFault:
        low = error.message.lower()
        if error.status == 404 and "image" in low:
            known = self._images.last(spec.image) is not None
            self._images.forget(spec.image)
            if known:
                return EngineUnavailable("The image %s was removed from this host meanwhile." % spec.image)
            return ImageRefused("The image %s is not on this host." % spec.image)
        return _start_fault(spec, error)

    def _check_ours(self, name: str, found: Dict[str, Any]) -> None:
        labels = (found.get("Config") or {}).get("Labels") or {}
        if any(labels.get(key) != value for key, value in self._identity.items()):
            raise StepRefused("There is already a container with the name %s that is not this agent's." % name)

    def _inspect(self, name: str) -> Optional[Dict[str, Any]]:
        try:
            found: Dict[str, Any] = self._engine.request("GET", "/containers/%s/json" % in_path(name)).json()
            return found
        except EngineError as error:
            if error.status == 404:
                return None
            raise EngineUnavailable("The container %s could not be looked at (%s)." % (name, error.message)) from error

    def _remove(self, name: str) -> None:
        deadline = time.monotonic() + 60.0
        query = {"v": "1"}
        while True:
            try:
                self._engine.request("DELETE", "/containers/%s" % in_path(name), query)
                return
            except EngineError as error:
                if error.status == 404:
                    return
                if "force" not in query:
                    query["force"] = "1"
                    self._kill(name)
                    continue
                # 409: somebody removes it already; 500: the kernel still holds its mounts.
                if time.monotonic() > deadline:
                    raise EngineUnavailable(
                        "The container %s could not be removed (%s)." % (name, error.message)
                    ) from error
                time.sleep(0.2)

    def _rename(self, name: str, wanted: str) -> None:
        try:
            self._engine.request("POST", "/containers/%s/rename" % in_path(name), {"name": wanted})
        except EngineError as error:
            if error.status != 404:
                raise EngineUnavailable("The container %s could not be kept (%s)." % (name, error.message)) from error

    def _kill(self, name: str) -> None:
        """KILL what runs: Podman's removal by force would ask politely first, and wait."""
        with suppress(EngineError):
            self._engine.request("POST", "/containers/%s/kill" % in_path(name), {"signal": "KILL"})

    def _libpod(self) -> Optional[Dict[str, Any]]:
        try:
            found: Dict[str, Any] = self._engine.request("GET", "/libpod/info", timeout=30.0).json()
            return found
        except EngineError as error:
            if error.status == 404:
                return None
            raise

    def _own(self, body: Dict[str, Any], paths: List[str]) -> None:
        parts = [*sorted(self._identity.values()), *paths]
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape"))
        name = "tesgate-own-" + digest.hexdigest()[:16]
        self._remove(name)
        try:
            self._engine.request("POST", "/containers/create", {"name": name}, body)
            self._engine.request("POST", "/containers/%s/start" % name)
            code = self._engine.request("POST", "/containers/%s/wait" % name, timeout=_OWN).json()["StatusCode"]
        except EngineError as error:
            raise EngineUnavailable("Files could not be given back to the agent (%s)." % error.message) from error
        finally:
            self._remove(name)
        if code != 0:
            raise EngineUnavailable("Files could not be given back to the agent (exit code %s)." % code)

    def _labels(self) -> List[str]:
        return ["%s=%s" % pair for pair in sorted(self._identity.items())]


def _started(found: Dict[str, Any]) -> bool:
    return str((found.get("State") or {}).get("StartedAt") or _NEVER) != _NEVER


_PERMANENT = re.compile(
    r"unable to find user|no matching entries|not a directory|no such file or directory|invalid mount|"
    r"bind source path|permission denied|operation not permitted|executable file not found|is not a valid|"
    r"read-only file system|network .* not found|exec format error|argument list too long|duplicate mount point|"
    r"minimum memory"
)

# Said of the engine's own files and parts, as while it shuts down: not of what it was asked for.
_OWN_TROUBLE = re.compile(
    r"update store|libnetwork\.endpoint|shutting down|transport is closing|containerd\.sock|context canceled|"
    r"error reading from server"
)


def _start_fault(spec: StepSpec, error: EngineError) -> RuntimeFault:
    said = " ".join(error.message.split())[:500].rstrip(".")
    low = said.lower()
    if "no space left" in low or "quota exceeded" in low:
        return EngineUnavailable("The engine has no disk space left for a container of %s (%s)." % (spec.image, said))
    if error.status >= 500 and _OWN_TROUBLE.search(low):
        return EngineUnavailable("The engine could not start a container of %s (%s)." % (spec.image, said))
    if error.status == 404 and "no such container" in low:
        return EngineUnavailable("The container %s was removed before it could be started." % spec.name)
    if "bind source path does not exist" in low:
        return StepRefused(
            "The engine does not see the agent's files (%s); the scratch directory must be a path of the engine's "
            "own host." % said
        )
    if error.status == 400 or _PERMANENT.search(low):
        return StepRefused("The engine refuses a container of %s (%s)." % (spec.image, said))
    return EngineUnavailable("The engine could not start a container of %s (%s)." % (spec.image, said))
