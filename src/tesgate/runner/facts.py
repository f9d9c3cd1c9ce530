"""Measures what a host has to offer: cores, memory, disk and GPUs, as far as this process may use them."""

from __future__ import annotations

import os
from typing import List, Optional

from . import gpus, quota
from .report import AgentFacts, Resources
from .runtime.base import RuntimeFacts
from .settings import AgentSettings

__all__ = ["agent_facts", "capacity", "devices"]

GB = 1_000_000_000


def devices(settings: AgentSettings, *, runtime: str, engine: Optional[RuntimeFacts], root: str = "/") -> List[str]:
    """Return the numbers of the GPUs that are offered: none where the engine cannot hand them on.

    `engine` is None while `runtime` has not answered yet. They are no fewer then: the agent gets nothing new meanwhile,
    but attempts may have some.
    """
    hands_on = runtime == "docker" if engine is None else engine.gpus
    return gpus.offered(settings.gpus, root) if hands_on else []


def capacity(settings: AgentSettings, *, gpu_count: int = 0, root: str = "/") -> Resources:
    """Return what is offered: what the settings say, else what is there (`root`: where /proc and /sys lie)."""
    cores = settings.cpus if settings.cpus is not None else _cores(root)
    ram = int(settings.ram_gb * GB) if settings.ram_gb is not None else _ram(root)
    disk = int(settings.disk_gb * GB) if settings.disk_gb is not None else _disk(settings.scratch)
    return Resources(cpu_cores=cores, ram_bytes=ram, disk_bytes=disk, gpus=gpu_count)


def agent_facts(settings: AgentSettings, *, instance: str, runtime: Optional[str], gpu_count: int) -> AgentFacts:
    """Return what the agent says of itself; `runtime` is the one that was probed, None where none works."""
    return AgentFacts(
        instance=instance,
        host=settings.host,
        version=settings.version,
        capacity=capacity(settings, gpu_count=gpu_count),
        pool=settings.pool,
        runtimes=[] if runtime is None else [runtime],
        roots=list(settings.roots),
        labels=dict(settings.labels),
        zones=list(settings.zones),
    )


def _cores(root: str) -> float:
    count = float(len(os.sched_getaffinity(0)))
    allowed = quota.cores(root)
    return count if allowed is None else min(count, allowed)


def _ram(root: str) -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = quota.memory(root)
    return total if allowed is None else min(total, allowed)


def _disk(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
