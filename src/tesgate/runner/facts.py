"""Measures what a host has to offer: cores, memory, disk and GPUs, as far as this process may use them."""

from __future__ import annotations

import os
from typing import Optional

from . import gpus, quota
from .report import AgentFacts, Resources
from .settings import AgentSettings

__all__ = ["agent_facts", "capacity"]

GB = 1_000_000_000


def capacity(settings: AgentSettings, *, runtime: Optional[str] = None, root: str = "/") -> Resources:
    """Return what is offered: what the settings say, else what is there (`root`: where /proc and /sys are looked for).

    Only a container engine can hand GPUs on: with another `runtime` none are offered.
    """
    cores = settings.cpus if settings.cpus is not None else _cores(root)
    ram = int(settings.ram_gb * GB) if settings.ram_gb is not None else _ram(root)
    disk = int(settings.disk_gb * GB) if settings.disk_gb is not None else _disk(settings.scratch)
    found = settings.gpus if settings.gpus is not None else gpus.count(root)
    return Resources(cpu_cores=cores, ram_bytes=ram, disk_bytes=disk, gpus=found if runtime == "docker" else 0)


def agent_facts(settings: AgentSettings, *, instance: str, runtime: Optional[str]) -> AgentFacts:
    """Return what the agent says of itself; `runtime` is the one that was probed, None where none works."""
    return AgentFacts(
        instance=instance,
        host=settings.host,
        version=settings.version,
        capacity=capacity(settings, runtime=runtime),
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
