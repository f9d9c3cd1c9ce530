"""The URLs that a task names, decoded once: what its runner may ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tesgate.storage.s3.urls import Location, UrlRefused, parse

__all__ = ["NamedUrls", "is_drs", "urls_of"]


@dataclass(slots=True)
class NamedUrls:
    """What a task names, decoded once."""

    inputs: list[tuple[Location, bool]] = field(default_factory=list)
    """With whether it is declared as a directory."""
    outputs: list[Location] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    """URLs of all kinds, as the task has them."""
    reads: set[str] = field(default_factory=set)
    """Those of inputs."""
    directories: dict[Location, bool] = field(default_factory=dict)
    """Of FILE inputs that were asked for below: whether they are directories."""


def urls_of(document: Mapping[str, Any]) -> NamedUrls:
    """Those of inputs without content, and of outputs."""
    urls = NamedUrls()
    for item in document.get("inputs") or []:
        url = item.get("url") or ""
        # Specification: content wins over url.
        if not url or item.get("content") is not None:
            continue
        urls.words.add(url)
        urls.reads.add(url)
        try:
            urls.inputs.append((parse(url), item.get("type") == "DIRECTORY"))
        except UrlRefused:
            continue
    for item in document.get("outputs") or []:
        url = item.get("url") or ""
        urls.words.add(url)
        try:
            urls.outputs.append(parse(url))
        except UrlRefused:
            continue
    urls.words.discard("")
    return urls


def is_drs(url: str) -> bool:
    """Whether it is a DRS id."""
    return url[:6].lower() == "drs://"
