"""What the control groups of this process allow it: an agent in a container of two cores offers two, not the host's.

Limits of every group between the process and the root count, the least of them holds (kernel documentation:
admin-guide/cgroup-v2, admin-guide/cgroup-v1). A container usually sees its own group as the root.
"""

from __future__ import annotations

import os
from typing import Iterator, List, Optional

__all__ = ["cores", "memory"]


def cores(root: str = "/") -> Optional[float]:
    """Processor cores that the groups allow; None: no limit. `root`: where /proc and /sys are looked for."""
    found: List[float] = []
    for directory in _v2(root):
        words = (_read(os.path.join(directory, "cpu.max")) or "").split()
        if len(words) == 2:
            found.extend(_share(_number(words[0]), _number(words[1])))
    for directory in _v1(root, "cpu"):
        quota = _number(_read(os.path.join(directory, "cpu.cfs_quota_us")))
        found.extend(_share(quota, _number(_read(os.path.join(directory, "cpu.cfs_period_us")))))
    return min(found) if found else None


def memory(root: str = "/") -> Optional[int]:
    """Bytes of memory that the groups allow; None: no limit."""
    files = [os.path.join(directory, "memory.max") for directory in _v2(root)]
    files += [os.path.join(directory, "memory.limit_in_bytes") for directory in _v1(root, "memory")]
    # Version 1 says "no limit" with a number larger than any memory: the caller takes the least anyway.
    found = [int(limit) for limit in (_number(_read(file)) for file in files) if limit is not None and limit > 0]
    return min(found) if found else None


def _share(quota: Optional[float], period: Optional[float]) -> List[float]:
    return [quota / period] if quota is not None and quota > 0 and period else []


def _v2(root: str) -> Iterator[str]:
    for hierarchy, path in _own(root):
        if not hierarchy:
            yield from _up(os.path.join(root, "sys/fs/cgroup"), path)
            # Beside version 1, the unified hierarchy has a directory of its own.
            yield from _up(os.path.join(root, "sys/fs/cgroup/unified"), path)


def _v1(root: str, controller: str) -> Iterator[str]:
    for hierarchy, path in _own(root):
        if controller in hierarchy.split(","):
            for mount in {controller, hierarchy}:
                yield from _up(os.path.join(root, "sys/fs/cgroup", mount), path)


def _own(root: str) -> "Iterator[tuple[str, str]]":
    """Controllers (none: version 2) and path of each group that this process is in."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        # What was mounted there is looked at all the same.
        lines = ["0::/", "1:cpu:/", "2:memory:/"]
    for line in lines:
        parts = line.split(":", 2)
        if len(parts) == 3:
            yield parts[1], parts[2]


def _up(mount: str, path: str) -> Iterator[str]:
    """The group's directory and all above it. A path of another namespace may lead nowhere; the root is there."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        yield os.path.join(mount, *parts[:length])


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
