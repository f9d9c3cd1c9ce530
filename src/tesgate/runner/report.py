"""What a runner says: the whole state of the attempt, with a rising version. The newest wins; resending is harmless.

Times are RFC 3339 in UTC. Sizes are bytes, spans are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Optional

from .plan import Plan
from .wire import WIRE

__all__ = [
    "AgentFacts",
    "Answer",
    "AttemptRef",
    "DrainRequest",
    "Drained",
    "ExecutorReport",
    "Have",
    "OutputFile",
    "PollAnswer",
    "PollRequest",
    "Registered",
    "Report",
    "Resources",
    "Root",
    "Snapshot",
    "StopOrder",
]


@dataclass
class ExecutorReport:
    """One executor of the attempt; it is in the list from its start on, `exit_code` is set when it has ended."""

    start_time: str
    end_time: Optional[str] = None
    exit_code: Optional[int] = None
    stdout: str = ""
    """Tail, decoded with replacement."""
    stderr: str = ""
    max_rss_bytes: Optional[int] = None
    cpu_seconds: Optional[float] = None
    wall_seconds: Optional[float] = None
    image_digest: Optional[str] = None


@dataclass
class OutputFile:
    """One stored file. A task may have a hundred thousand."""

    __slots__ = ("path", "size_bytes", "url")

    url: str
    path: str
    size_bytes: int


@dataclass
class Snapshot:
    """The attempt as the runner sees it now."""

    step: str = "stage-in"
    """``stage-in``, ``executor``, ``stage-out`` or ``done``."""
    executor: int = 0
    """Which executor, where `step` is ``executor``."""
    start_time: Optional[str] = None
    executors: List[ExecutorReport] = field(default_factory=list)
    system_logs: List[str] = field(default_factory=list)
    metadata: Dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """Body of ``report``, ``publish``, ``finish``, ``failed`` and ``stopped``."""

    version: int
    instance: str
    snapshot: Snapshot
    state: Optional[str] = None
    """``finish`` only: ``COMPLETE``, ``EXECUTOR_ERROR`` or ``SYSTEM_ERROR``."""
    outputs: List[OutputFile] = field(default_factory=list)
    """``finish`` only."""
    published: bool = False
    """``finish`` only: the runner made outputs visible under the publish lease."""
    cause: Optional[str] = None
    """``failed`` only: one sentence; the system's fault, so a further attempt may follow."""
    wire: int = WIRE


@dataclass
class Answer:
    """The gateway's answer to any message of an attempt (200)."""

    stop: bool = False
    """Stop the executor, abort transfers, then say ``stopped``."""
    grace: float = 10.0
    lease: float = 0.0
    """Seconds for which the publish lease is held, counted from before the request was sent; 0: not held."""
    wire: int = WIRE


@dataclass
class Resources:
    """An amount of what an agent has and a task needs."""

    cpu_cores: float = 0.0
    ram_bytes: int = 0
    disk_bytes: int = 0
    gpus: int = 0


@dataclass
class Root:
    """A local directory that an agent may stage from and to."""

    name: str
    path: str
    writable: bool = True
    mode: str = "copy"
    """``copy``, or ``mount``: tasks may be given what lies below it as a mount."""
    volume: Optional[str] = None
    """The engine's named volume that it is."""
    real: Optional[str] = None
    """Where it lies on the agent's host, where that is not `path`."""


@dataclass
class AgentFacts:
    """What an agent says of itself when it registers."""

    instance: str
    host: str
    version: str
    capacity: Resources
    pool: str = "default"
    runtimes: List[str] = field(default_factory=list)
    roots: List[Root] = field(default_factory=list)
    labels: Dict[str, str] = field(default_factory=dict)
    zones: List[str] = field(default_factory=list)
    wire: int = WIRE


@dataclass
class DrainRequest:
    """Body of ``agents/drain``: an agent's operator, with the agent's token, takes its host out (or back in)."""

    agent: str
    drain: bool = True
    wire: int = WIRE


@dataclass
class Drained:
    """Answer to a `DrainRequest`: the hosts of the agents that it was done to; none, if there is no such agent."""

    hosts: List[str] = field(default_factory=list)
    wire: int = WIRE


@dataclass
class Registered:
    """Answer to a registration: the newest session wins, older ones get 410."""

    agent: str
    session: int
    wire: int = WIRE


@dataclass
class AttemptRef:
    """Names one attempt."""

    task: str
    attempt: int


@dataclass
class Have:
    """An attempt of which the agent has a scratch directory (this acknowledges its start).

    What an agent is forgetting it leaves out.
    """

    task: str
    attempt: int
    stopping: bool = False
    """The order to stop has arrived: it need not be repeated."""


@dataclass
class PollRequest:
    """Body of the agent's held poll: all that it has."""

    agent: str
    session: int
    number: int = 0
    """Rises with every poll of the session: a delayed duplicate of an older poll, with its older `have`, is
    answered with nothing and changes nothing."""
    have: List[Have] = field(default_factory=list)
    """Attempts of which the agent has a scratch directory; being here acknowledges the start."""
    tombstones: List[Have] = field(default_factory=list)
    """Attempts that were stopped before their start arrived, and that this agent will never begin."""
    wait: float = 20.0
    """Longest time that the gateway may hold the answer back when it has nothing to say."""
    draining: bool = False
    wire: int = WIRE


@dataclass
class StopOrder:
    """Stop an attempt; for an unknown one leave a tombstone, so that a late start finds it stopped."""

    task: str
    attempt: int
    grace: float = 10.0


@dataclass
class PollAnswer:
    """What the dispatcher and the clients want of this agent."""

    start: List[Plan] = field(default_factory=list)
    stop: List[StopOrder] = field(default_factory=list)
    forget: List[AttemptRef] = field(default_factory=list)
    wire: int = WIRE
