"""Paths on the hosts: what a URL names there, and in which of the known file roots it lies. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

__all__ = ["KnownRoot", "lies_in", "local_path", "root_of"]


class KnownRoot(NamedTuple):
    """A file root of the gateway's own configuration."""

    path: str
    writable: bool = True
    mounted: bool = False
    """Its mode is ``mount``: tasks see what lies below it itself, not a copy."""


def local_path(url: str) -> str | None:
    """The path of a ``file://`` URL (percent-decoded once) or of a bare absolute path (taken as it is), else None.

    Reads as `tesgate.runner.transfer.urls` does, and resolves doubled slashes and ``..`` besides, so that the path can
    be compared with roots. Another host's path is None: whoever runs the task says what is wrong with it.
    """
    if url.startswith("/"):
        path = url
    elif url[:5].lower() == "file:":
        rest = url[5:]
        if rest.startswith("//"):
            host, slash, tail = rest[2:].partition("/")
            if host.lower() not in ("", "localhost"):
                return None
            rest = slash + tail
        path = unquote(rest, errors="surrogateescape")
        if not path.startswith("/"):
            return None
    else:
        return None
    return "/" + posixpath.normpath(path).lstrip("/")


def lies_in(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def root_of(path: str, roots: Iterable[KnownRoot]) -> KnownRoot | None:
    """The innermost root that holds the path."""
    holding = [root for root in roots if lies_in(path, root.path)]
    return max(holding, key=lambda root: len(root.path.rstrip("/")), default=None)
