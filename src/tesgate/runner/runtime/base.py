"""The contract between an attempt and whatever runs its executors: what goes in, what is seen, what can fail."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import AsyncIterator, Dict, List, Optional, Protocol

from ..plan import Collect, Limits

__all__ = [
    "CONTROL_TARGET",
    "DEFAULT_PATH",
    "EXEC_TARGET",
    "Bind",
    "Collect",
    "EngineUnavailable",
    "ImageFacts",
    "ImageRefused",
    "Limits",
    "RegistryUnreachable",
    "Runtime",
    "RuntimeFacts",
    "RuntimeFault",
    "RuntimeUnavailable",
    "StepRefused",
    "StepSpec",
    "StepStatus",
    "check_spec",
    "default_home",
]

EXEC_TARGET = "/.tesgate/exec"
"""Container path of the exec binary; bound read-only by the caller (`StepSpec.binds`)."""

CONTROL_TARGET = "/.tesgate/control"
"""Container path of the step's control directory; bound by the caller (`StepSpec.binds`)."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,200}")
_LONGEST_ARGUMENT = 128 << 10
_LONGEST_COMMAND = 2_000_000


class RuntimeFault(Exception):
    """Something that a runtime cannot do. The message is one sentence for ``system_logs``: what happened, what to do.

    RuntimeFault
    +-- RuntimeUnavailable         transient: this host cannot run steps now
    |   +-- EngineUnavailable      the engine does not answer, is full, or lost the container
    +-- RegistryUnreachable        transient: the image's registry does not answer
    +-- ImageRefused               permanent: no such image, no right to it, not an image reference
    +-- StepRefused                permanent: the runtime refuses this very step
    """

    transient = False

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.sentence = sentence


class RuntimeUnavailable(RuntimeFault):
    """This host cannot run steps now; the sentence says what to do about it."""

    transient = True


class EngineUnavailable(RuntimeUnavailable):
    """The engine does not answer, has no room, or lost what it was given: a new attempt may help."""


class RegistryUnreachable(RuntimeFault):
    """The registry of an image does not answer (or not now): a new attempt may help."""

    transient = True


class ImageRefused(RuntimeFault):
    """There is no such image, or no right to it, or the text is no image reference: no new attempt helps."""


class StepRefused(RuntimeFault):
    """The runtime refuses this step as it is described: no new attempt helps."""


@dataclass
class Bind:
    """One bind mount."""

    source: str
    """Absolute path on the engine's host."""
    target: str
    """Absolute path in the container."""
    read_only: bool = False


@dataclass
class StepSpec:
    """One executor to run. Everything is data: no field ever passes through a shell or a template."""

    name: str
    """``<external_name>-<i>``: unique, deterministic."""
    image: str
    argv: List[str]
    """The full argument vector; exec and its options are prepended by the attempt, as container paths."""
    root: str
    """Host path of the attempt's ``rw/`` tree (bubblewrap binds it as ``/``)."""
    control: str
    """Host path of ``steps/<i>``."""
    env: Dict[str, str] = field(default_factory=dict)
    user: Optional[str] = None
    """``uid:gid``, or None for the image's own."""
    binds: List[Bind] = field(default_factory=list)
    """Every bind, those of exec and of the control directory too."""
    limits: Limits = field(default_factory=Limits)
    network: str = "default"
    """``default`` (what the runtime is configured for), ``none``, ``host`` or the name of an engine network."""
    labels: Dict[str, str] = field(default_factory=dict)
    grace: float = 10.0
    """Seconds between a polite signal and a kill, if somebody else than us stops it."""
    shm_bytes: Optional[int] = None
    """Size of ``/dev/shm``; None is the runtime's own."""


@dataclass
class StepStatus:
    """What the runtime sees of a step. exec's result file is what decides; this tells how it could fail to appear."""

    running: bool
    found: bool
    exit_code: Optional[int] = None
    """None while it runs, and when it never started or nobody knows."""
    oom_killed: bool = False
    error: str = ""
    """What the engine says, where it says anything."""
    started: bool = False
    """It has been started at some time (adoption starts only what never was)."""


@dataclass
class RuntimeFacts:
    """What a probe found. Where a limit is False, `start` says so in its notes for each step that asks for it."""

    name: str
    version: str
    cpu_cores: Optional[float] = None
    ram_bytes: Optional[int] = None
    cpu_limit: bool = False
    memory_limit: bool = False
    pids_limit: bool = False
    disk_limit: bool = False
    """The container's own layer can be held to a size. Bind mounts never can."""
    rootless: bool = False
    root_uid: int = 0
    """The host's user that root in a container is: on a rootless engine, whoever runs it."""
    text_mounts: bool = False
    """The engine writes mounts as text with commas between (Podman), so that not every path can stand in one."""
    gpus: bool = False
    """The engine gives a container the NVIDIA devices that are asked for. Podman takes such a request and drops it."""
    notes: List[str] = field(default_factory=list)
    """How steps are isolated, and what is not held; one sentence each."""


@dataclass
class ImageFacts:
    """What is known of an image that is present."""

    reference: str
    id: str = ""
    digest: Optional[str] = None
    """``sha256:...`` of the manifest; None for an image that never was in a registry."""
    user: str = ""
    workdir: str = ""
    env: Dict[str, str] = field(default_factory=dict)
    volumes: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)


class Runtime(Protocol):
    """What an attempt may ask of a runtime. Every method may raise a `RuntimeFault`."""

    name: str

    async def probe(self) -> RuntimeFacts:
        """Look at the real thing; raises `RuntimeUnavailable` with what to do."""

    async def prepare(self, image: str, pull_policy: str) -> ImageFacts:
        """Have the image here (``missing``, ``always``, ``never``); raises `ImageRefused`, `RegistryUnreachable`."""

    async def start(self, spec: StepSpec) -> List[str]:
        """Create and start; idempotent by name, and what ever ran is adopted and never started again.

        Returns notes for ``system_logs``.
        """

    async def inspect(self, name: str) -> StepStatus:
        """One authoritative read."""

    async def stop(self, name: str, grace: float) -> None:
        """TERM, `grace` seconds, KILL; returns when it has ended. Idempotent; gone is success."""

    async def remove(self, name: str) -> None:
        """Kill it and leave nothing of it. Idempotent."""

    async def keep(self, name: str) -> None:
        """Set an ended step aside as ``kept-`` + name: `names` shows it no more, `remove` by the new name removes it.

        Idempotent. A runtime that has nothing to look at afterwards removes it.
        """

    async def collect(self, name: str, items: List[Collect], root: str) -> List[str]:
        """Copy `items` out of the ended container's own file system to `root` + path; returns notes."""

    async def restore(self, spec: StepSpec, items: List[Collect], root: str) -> None:
        """Create the container of `spec` (without starting it) and put back what `collect` took so far.

        Directories above the paths of `items` that the image does not have are made first, writable for everybody.
        """

    def ended(self) -> AsyncIterator[str]:
        """Names of steps that have ended: a wake-up, never authoritative. ``""``: look at everything again."""

    async def names(self, prefix: str) -> List[str]:
        """All steps of ours whose name begins with `prefix`, whatever their state; kept ones only by ``kept-``."""

    async def own(self, image: str, paths: List[str], uid: int, gid: int) -> None:
        """Give host `paths` (recursively) to uid:gid, where the agent itself has no right to."""

    async def aclose(self) -> None:
        """Let go of connections and descriptors; steps go on."""


def default_home(user_given: bool, wanted: Optional[str] = None) -> Optional[str]:
    """The HOME to set where the task sets none: a uid without a passwd entry needs a directory that it can write.

    `wanted` is the deployment's own word. None leaves it to the image (its user has an entry there, and the engine sets
    HOME from it).
    """
    return wanted or ("/tmp" if user_given else None)


def check_spec(spec: StepSpec) -> None:
    """Refuse what no runtime may be given.

    Bind sources below the attempt's own directory must not lead through symbolic links: an earlier executor could
    have put one there, and the engine follows them as root on the host.
    Raises `StepRefused`.
    """
    if not _NAME.fullmatch(spec.name):
        raise StepRefused("%r cannot be the name of a step." % spec.name)
    if not spec.argv:
        raise StepRefused("The step has no command.")
    for text in [spec.image, spec.user or "", *spec.argv]:
        if "\0" in text:
            raise StepRefused("A NUL character cannot be part of a command.")
    for key, value in spec.env.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise StepRefused("%r cannot be the name of an environment variable, or its value holds a NUL." % key)
    sizes = [len(os.fsencode(text)) + 1 for text in spec.argv]
    sizes += [len(os.fsencode(key + value)) + 2 for key, value in spec.env.items()]
    # An engine would say it started, and the container end without a word.
    if max(sizes) > _LONGEST_ARGUMENT or sum(sizes) > _LONGEST_COMMAND:
        raise StepRefused(
            "The command and its environment are too long: Linux allows 128 KiB for one argument and 2 MiB for all."
        )
    attempt = os.path.dirname(spec.root.rstrip("/"))
    for bind in spec.binds:
        for path in (bind.source, bind.target):
            if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
                raise StepRefused("%r cannot be mounted: its path must be absolute and without '..'." % path)
        if bind.target.strip("/") in ("", "."):
            raise StepRefused("Nothing can be mounted over the container's root directory.")
        if bind.source.startswith(attempt + "/"):
            _refuse_links(attempt, bind.source[len(attempt) + 1 :], bind.target)


def _refuse_links(base: str, rest: str, target: str) -> None:
    path = base
    for part in rest.split("/"):
        path = path + "/" + part
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            raise StepRefused("%s cannot be mounted at %s: it does not exist." % (path, target)) from None
        except OSError as error:
            raise StepRefused("%s cannot be mounted at %s: %s." % (path, target, error.strerror)) from None
        if stat.S_ISLNK(mode):
            raise StepRefused("%s cannot be mounted at %s: it is a symbolic link." % (path, target))
