"""What an agent is started with."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Dict, List, Optional

from .report import Root

__all__ = ["AgentSettings"]


@dataclass
class AgentSettings:
    """Spans are seconds, sizes as the names say (GB: 10^9 bytes)."""

    url: str
    """Of the gateway, without ``/internal/v1``."""
    token_file: str
    """Holds the agent's token; read at the start and again whenever the gateway does not take it."""
    scratch: str
    runtime: str = "docker"
    """``docker``, ``bubblewrap``, ``none``, or ``auto``: Docker where an engine answers, else bubblewrap."""
    roots: List[Root] = field(default_factory=list)
    pool: str = "default"
    cpus: Optional[float] = None
    """Offer so many cores, whatever is measured."""
    ram_gb: Optional[float] = None
    disk_gb: Optional[float] = None
    gpus: Optional[int] = None
    """Offer so many NVIDIA devices, whatever is found."""
    labels: Dict[str, str] = field(default_factory=dict)
    zones: List[str] = field(default_factory=list)
    idle_exit: Optional[float] = None
    """End after so long without a gateway and without unfinished attempts."""
    docker_socket: str = "auto"
    """Of Docker or Podman. ``auto`` looks at the usual places (`runtime.sockets.places`)."""
    auth_file: Optional[str] = None
    """A ``config.json`` with the credentials of registries."""
    network: Optional[str] = None
    """The engine network that tasks get by default."""
    user_namespace: Optional[str] = None
    """The engine's word for the user namespace of containers, such as ``keep-id`` (Podman)."""
    sandbox_paths: List[str] = field(default_factory=list)
    """Further directories of the host that bubblewrap's sandboxes see, read-only."""
    ca_file: Optional[str] = None
    """Trust these authorities for the gateway's certificate instead of the system's."""
    certificate: Optional[str] = None
    """File with the certificate that the agent shows to the gateway."""
    key: Optional[str] = None
    """File with the certificate's private key."""
    host: str = field(default_factory=socket.gethostname)
    version: str = "0"
    concurrency: int = 4
    """Transfers at a time within one attempt."""
    poll_wait: float = 20.0
    abandon_after: float = 7 * 86400.0
    """Without a gateway for so long, containers and scratch are removed."""
    hard_exit_after: Optional[float] = None
    """Once told to end, end the process after so long even if a thread still waits for something."""
