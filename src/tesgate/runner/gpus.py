"""NVIDIA devices of this host: how many there are, and which of them an attempt gets."""

from __future__ import annotations

import os
import re
from typing import Iterable, List, Optional

__all__ = ["count", "free"]

_DEVICE = re.compile(r"nvidia[0-9]+")


def count(root: str = "/") -> int:
    """Devices that the driver shows, else device files: a container has only these. `root`: where to look."""
    listed = _names(os.path.join(root, "proc/driver/nvidia/gpus"))
    return len(listed) or sum(_DEVICE.fullmatch(name) is not None for name in _names(os.path.join(root, "dev")))


def free(have: int, taken: Iterable[str], wanted: int) -> Optional[List[str]]:
    """So many devices that nobody has, by their numbers; None: there are too few now.

    The engine's own count would give every container the first ones (moby: daemon/nvidia_linux.go).
    """
    gone = set(taken)
    left = [str(number) for number in range(have) if str(number) not in gone]
    return left[:wanted] if len(left) >= wanted else None


def _names(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
