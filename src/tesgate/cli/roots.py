"""Reads ``--file-root [NAME=]PATH[:ro][:mount]``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tesgate.cli.failure import Failure

__all__ = ["file_roots"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def file_roots(words: Sequence[str]) -> list[dict[str, Any]]:
    """Turn the option's words into the settings ``file_roots``. Raises `Failure`."""
    roots: list[dict[str, Any]] = []
    for word in words:
        name, sign, rest = word.partition("=")
        if not (sign and _NAME.fullmatch(name)):
            name, rest = "", word
        path = rest.removesuffix(":mount")
        mode = "copy" if path == rest else "mount"
        rest, path = path, path.removesuffix(":ro").removesuffix(":rw")
        if not path or not os.path.isdir(path):
            raise Failure(f"--file-root {word}: {path!r} is not a directory here; make it, or correct the path.")
        name = name or _name_of(path, {root["name"] for root in roots})
        roots.append({"name": name, "path": os.path.abspath(path), "writable": not rest.endswith(":ro"), "mode": mode})
    return roots


def _name_of(path: str, taken: set[str]) -> str:
    """A name from the last part of the path."""
    base = re.sub(r"[^a-z0-9_-]+", "-", Path(os.path.abspath(path)).name.lower()).strip("-_")[:56] or "root"
    return next(name for name in (base, *(f"{base}-{index}" for index in range(2, 10_000))) if name not in taken)
