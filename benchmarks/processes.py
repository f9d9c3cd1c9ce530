"""What processes cost, from /proc: CPU time and memory of a process with all that it started."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["clear_peak", "cpu_seconds", "named", "peak_bytes", "tree"]

_TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Fields from the third on (state first); empty for nobody."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [] if fields[0] in ("Z", "X") else fields


def tree(pid: int) -> list[int]:
    """Living processes from `pid` down; empty when it has gone."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            parents.setdefault(int(fields[1]), []).append(int(entry))
    found, left = [], [pid] if _stat(pid) else []
    while left:
        here = left.pop()
        found.append(here)
        left += parents.get(here, [])
    return found


def cpu_seconds(pid: int, *, alone: bool = False) -> float:
    """User and system time of `pid`, of what it started, and of what of that has ended and been waited for."""
    ticks = 0
    for each in [pid] if alone else tree(pid):
        fields = _stat(each)
        ticks += sum(int(field) for field in fields[11:13]) if fields else 0
        ticks += sum(int(field) for field in fields[13:15]) if fields and not alone else 0
    return ticks / _TICK


def named(name: str) -> list[int]:
    """Processes of this name."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path(f"/proc/{entry}/comm").read_text().strip() == name:
                found.append(int(entry))
        except OSError:
            continue
    return found


def clear_peak(pid: int) -> None:
    """Have the kernel count the largest resident size anew, for all of a tree."""
    for each in tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """Largest resident sizes since `clear_peak`, of a tree, summed."""
    total = 0
    for each in tree(pid):
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())
        except OSError:
            continue
        total += int(found[1]) * 1024 if found else 0
    return total
