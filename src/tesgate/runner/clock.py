"""Spans between moments of different processes: by the host's uptime where it is the same boot.

The wall clock may be set at any time, by hours; a span of it is only taken where nothing else is left, after a reboot.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Mapping

from .runtime.processes import boot_id

__all__ = ["boottime", "now", "since"]


def boottime() -> float:
    """Return seconds on a clock that goes on while the host sleeps (else a laptop's lid would stretch a lease)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now() -> str:
    """Return this moment in a form that `since` understands, also in a later process."""
    return "%s %.3f" % (_boot(), boottime())


def since(moment: Mapping[str, Any]) -> float:
    """Return the seconds since a moment that was noted with ``up`` (`now`) and ``at`` (the wall clock)."""
    boot, _, up = str(moment.get("up", "")).partition(" ")
    if boot and boot == _boot():
        with contextlib.suppress(ValueError):  # damaged: the wall clock has to do
            return max(0.0, boottime() - float(up))
    return max(0.0, time.time() - float(moment.get("at", time.time())))


def _boot() -> str:
    """This boot's id, or nothing where it cannot be read (no descriptor left, a container without it)."""
    try:
        return boot_id()
    except OSError:
        return ""
