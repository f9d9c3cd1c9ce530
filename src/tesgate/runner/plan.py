"""The plan: all that a runner needs to carry out one attempt. It comes with the start and is computed for it.

Paths called ``path`` or ``target`` are absolute paths inside the container. Paths called ``place`` or ``source``
are relative to the attempt's scratch directory and never hold ``..``. Sizes are bytes, spans are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from .wire import WIRE

__all__ = ["Collect", "Executor", "Input", "Keep", "Limits", "Mount", "Output", "Plan", "RunAs", "UrlPolicy"]


@dataclass
class Mount:
    """One bind of the container: a piece of the attempt's scratch directory at a container path."""

    source: str
    """Relative to the scratch directory: below ``rw/`` (the task may write) or ``ro/`` (it may not). With `host` it is
    ``live`` + `host`, which names nothing there: an agent that does not know `host` refuses it."""
    target: str
    read_only: bool = False
    directory: bool = True
    """False: the bind is of one file. Clients also declare directories as FILE (Nextflow); the bind is then of the
    directory that staging put at `source`: look at the source, not at this field, before binding."""
    mode: int = 0o777
    """Permission bits of the directory at `source`. The runner makes it where nothing is there, and sets the bits
    unless the directory is itself an input (one that staging made only to put inputs into it gets them)."""
    host: Optional[str] = None
    """Absolute path in one of the agent's roots that is mounted as such: nothing is copied in or out."""
    make: bool = False
    """With `host`: a directory that is made where it is missing (an output)."""


@dataclass
class Input:
    """One TES input, and where in the scratch directory it is staged."""

    path: str
    place: str
    url: Optional[str] = None
    content: Optional[str] = None
    """Inline content (UTF-8); wins over `url`."""
    type: str = "FILE"
    """``FILE`` or ``DIRECTORY``."""
    writable: bool = False
    """The task can write to the place: what is staged must be a private copy, never a hard link."""
    login: bool = False
    """The gateway knows credentials for its server; the runner asks for them when it needs them."""
    refusal: Optional[str] = None
    """Why the gateway knows already that nobody may read the URL; completes a sentence that begins with it."""


@dataclass
class Output:
    """One TES output, as the task has it."""

    path: str
    url: str
    type: str = "FILE"
    path_prefix: Optional[str] = None
    live: bool = False
    """It lies in a mount of a root, at its URL: it is listed, and not copied."""
    login: bool = False
    """See `Input.login`."""
    refusal: Optional[str] = None
    """See `Input.refusal`."""


@dataclass
class Collect:
    """A path (or pattern) that lies in the image's own directories, which no mount may hide.

    After each executor the runtime copies it out of the container into ``rw/`` + path. Where the image lacks the
    directory that `path` lies in, the runtime makes it (mode 0777) before an executor starts, and changes none that is
    there. No writable mount lies in what is collected.
    """

    path: str
    pattern: bool = False


@dataclass
class Executor:
    """One TES executor."""

    image: str
    command: List[str]
    workdir: Optional[str] = None
    stdin: Optional[str] = None
    stdout: Optional[str] = None
    stderr: Optional[str] = None
    env: Dict[str, str] = field(default_factory=dict)
    ignore_error: bool = False
    timeout: Optional[float] = None


@dataclass
class Limits:
    """What each executor may use at most; ``None`` is no limit."""

    cpu_cores: Optional[float] = None
    ram_bytes: Optional[int] = None
    disk_bytes: Optional[int] = None
    pids: Optional[int] = 4096
    gpus: int = 0
    """NVIDIA devices: the only one of these that is an exact number."""
    gpu_devices: List[str] = field(default_factory=list)
    """Which devices these are: chosen by the agent when the attempt begins, and kept with its plan."""


@dataclass
class RunAs:
    """Who the commands are inside the container."""

    policy: str = "auto"
    """``image`` (the image's own user), ``agent`` (uid and gid of the agent), ``fixed`` (uid, gid below) or
    ``auto``: ``image`` where the agent is root, else ``agent``."""
    uid: Optional[int] = None
    gid: Optional[int] = None
    last_uid: Optional[int] = None
    """Of policy ``fixed``: each attempt gets a user of its own from `uid` to this one (`gid`: null is the same number).
    An agent that does not know this field takes the first of them."""


@dataclass
class Keep:
    """What stays on the agent after an attempt's end, for people who look for a mistake."""

    seconds: float = 0.0
    """0: nothing."""
    failed_only: bool = True
    most: int = 20
    """Attempts that one agent keeps; the oldest go first."""


@dataclass
class UrlPolicy:
    """Which addresses an input's ``http(s)://`` URL may lead to, after redirects and name resolution."""

    allow_private: bool = False
    """Private, loopback, link-local and other non-global addresses are allowed everywhere; cloud metadata addresses
    only if they are in `allowed_hosts`."""
    allowed_hosts: List[str] = field(default_factory=list)
    """``host`` or ``host:port`` or CIDR networks that are allowed although not global."""


@dataclass
class Plan:
    """Everything for one attempt."""

    task: str
    attempt: int
    external_name: str
    executors: List[Executor]
    token: str
    """Speaks for this attempt on ``/internal`` and for nothing else."""
    deployment: str = ""
    inputs: List[Input] = field(default_factory=list)
    outputs: List[Output] = field(default_factory=list)
    mounts: List[Mount] = field(default_factory=list)
    directories: List[str] = field(default_factory=list)
    """Places (``rw/...``) inside writable mounts: made fresh by the runner before the first executor, mode 0777 (after
    stage-in, with their parents; one that staging has made already gets the mode)."""
    collect: List[Collect] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    run_as: RunAs = field(default_factory=RunAs)
    url_policy: UrlPolicy = field(default_factory=UrlPolicy)
    network: str = "default"
    """``default`` (the engine's usual network), ``none``, ``host`` or the name of an engine network."""
    pull_policy: str = "missing"
    """``missing``, ``always`` or ``never``."""
    timeout: Optional[float] = None
    """For the whole attempt, from its start."""
    grace: float = 10.0
    """Between a polite signal and a kill."""
    tail_bytes: int = 10240
    """How much of the end of stdout and stderr goes into the reports."""
    log_bytes: int = 1 << 30
    """How much of each stream goes into the workspace at most."""
    metadata: Dict[str, str] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)
    """Sentences for ``system_logs`` about how the task is carried out."""
    home: Optional[str] = None
    """HOME of commands whose task sets none; null: what fits the user."""
    shm_bytes: Optional[int] = None
    """Size of ``/dev/shm``; null: the runtime's own."""
    labels: Dict[str, str] = field(default_factory=dict)
    """On each container, beside ours."""
    limits_off: List[str] = field(default_factory=list)
    """Of ``cpu``, ``memory``, ``disk`` and ``pids``: those of `limits` that count for room but are not enforced."""
    keep: Keep = field(default_factory=Keep)
    wire: int = WIRE
