"""NVIDIA devices of this host: which there are, and which of them an attempt gets."""

from __future__ import annotations

import itertools
import os
import re
from typing import Iterable, List, Optional

__all__ = ["found", "free", "offered"]

_DEVICE = re.compile(r"nvidia([0-9]+)")
_MINOR = re.compile(r"^Device Minor:\s*([0-9]+)\s*$", re.MULTILINE)


def found(root: str = "/") -> List[str]:
    """Numbers of the devices that the driver shows, as far as they have a file; a container may have only some files.

    Where there are no such files at all, or the driver shows nothing, the other alone counts. `root`: where to look.
    """
    names = map(_DEVICE.fullmatch, _names(os.path.join(root, "dev")))
    files = sorted(int(match.group(1)) for match in names if match)
    driver = os.path.join(root, "proc/driver/nvidia/gpus")
    minors = [_minor(os.path.join(driver, name)) for name in sorted(_names(driver))]
    known = sorted(minor for minor in minors if minor is not None)
    if len(known) < len(minors):  # the driver counts them and does not say which
        numbers = files[: len(minors)] or list(range(len(minors)))
    elif known and files:
        numbers = [number for number in known if number in files]
    else:
        numbers = known or files
    return [str(number) for number in numbers]


def offered(wanted: Optional[int], root: str = "/") -> List[str]:
    """The first `wanted` of them, and others where so many are declared but not seen from here; None: all."""
    have = found(root)
    if wanted is None:
        return have
    unseen = (str(number) for number in itertools.count() if str(number) not in have)
    return [*have[:wanted], *itertools.islice(unseen, max(0, wanted - len(have)))]


def free(have: Iterable[str], taken: Iterable[str], wanted: int) -> Optional[List[str]]:
    """So many of the devices `have` that nobody has; None: there are too few now.

    The engine's own count would give every container the first ones (moby: daemon/nvidia_linux.go).
    """
    gone = set(taken)
    left = [number for number in have if number not in gone]
    return left[:wanted] if len(left) >= wanted else None


def _minor(path: str) -> Optional[int]:
    """The number in the name of the device's file (NVIDIA driver README, "The /proc interface")."""
    try:
        with open(os.path.join(path, "information"), encoding="utf-8", errors="replace") as stream:
            match = _MINOR.search(stream.read(65536))
    except OSError:
        return None
    return int(match.group(1)) if match else None


def _names(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
