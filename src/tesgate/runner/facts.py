"""Measures what a host has to offer: processor cores, memory and disk, as far as this process may use them."""

from __future__ import annotations

import os
from typing import Optional

from .report import AgentFacts, Resources
from .settings import AgentSettings

__all__ = ["agent_facts", "capacity"]

GB = 1_000_000_000


def capacity(settings: AgentSettings, *, root: str = "/") -> Resources:
    """Return what is offered: what the settings say, else what is there (`root`: where /sys is looked for)."""
    cores = settings.cpus if settings.cpus is not None else _cores(root)
    ram = int(settings.ram_gb * GB) if settings.ram_gb is not None else _ram(root)
    disk = int(settings.disk_gb * GB) if settings.disk_gb is not None else _disk(settings.scratch)
    return Resources(cpu_cores=cores, ram_bytes=ram, disk_bytes=disk)


def agent_facts(settings: AgentSettings, *, instance: str, runtime: Optional[str]) -> AgentFacts:
    """Return what the agent says of itself; `runtime` is the one that was probed, None where none works."""
    return AgentFacts(
        instance=instance,
        host=settings.host,
        version=settings.version,
        capacity=capacity(settings),
        pool=settings.pool,
        runtimes=[] if runtime is None else [runtime],
        roots=list(settings.roots),
        labels=dict(settings.labels),
    )


def _cores(root: str) -> float:
    count = float(len(os.sched_getaffinity(0)))
    for quota, period in (_v2_quota(root), _v1_quota(root)):
        if quota is not None and period:
            count = min(count, quota / period)
    return count


def _v2_quota(root: str) -> "tuple[Optional[float], Optional[float]]":
    words = (_read(os.path.join(root, "sys/fs/cgroup/cpu.max")) or "").split()
    return (_number(words[0]), _number(words[1])) if len(words) == 2 else (None, None)


def _v1_quota(root: str) -> "tuple[Optional[float], Optional[float]]":
    base = os.path.join(root, "sys/fs/cgroup/cpu")
    quota = _number(_read(os.path.join(base, "cpu.cfs_quota_us")))
    return (quota if quota is not None and quota > 0 else None), _number(_read(os.path.join(base, "cpu.cfs_period_us")))


def _ram(root: str) -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _number(_read(os.path.join(root, place)))
        if limit is not None and limit > 0:
            total = min(total, int(limit))
    return total


def _disk(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read(200).strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(text: Optional[str]) -> Optional[float]:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
