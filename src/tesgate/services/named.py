"""The URLs that a task names, decoded once: what its runner may ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tesgate.storage.drs.names import DrsName, NameRefused, parse_drs
from tesgate.storage.s3.urls import Location, UrlRefused, parse

__all__ = ["NamedUrls", "is_drs", "urls_of"]

_Place = tuple[str, str, str]
"""Scheme, bucket, key without slashes at its end."""
_DrsObject = tuple[str, str | None, str | None, str | None]


@dataclass(slots=True)
class NamedUrls:
    """What a task names, decoded once. A question costs as much as its URL has slashes, however many are named."""

    directories: dict[Location, bool] = field(default_factory=dict)
    """Of FILE inputs that were asked for below: whether they are directories."""
    _inputs: dict[_Place, dict[Location, bool]] = field(default_factory=dict)
    _outputs: dict[_Place, set[Location]] = field(default_factory=dict)
    _drs: dict[_DrsObject, set[tuple[str, ...]]] = field(default_factory=dict)
    _words: set[str] = field(default_factory=set)
    """URLs of all kinds, as the task has them."""
    _above: set[str] = field(default_factory=set)
    """The same without slashes at their ends."""

    def read(self, url: str, *, directory: bool) -> None:
        """Name an input."""
        self._name(url)
        if is_drs(url):
            try:
                name = parse_drs(url)
            except NameRefused:
                return
            self._drs.setdefault(_object(name), set()).add(name.path)
            return
        try:
            at = parse(url)
        except UrlRefused:
            return
        same = self._inputs.setdefault(_place(at), {})
        same[at] = same.get(at, False) or directory

    def write(self, url: str) -> None:
        """Name an output."""
        self._name(url)
        try:
            at = parse(url)
        except UrlRefused:
            return
        self._outputs.setdefault(_place(at), set()).add(at)

    def inputs(self, at: Location) -> list[tuple[Location, bool]]:
        """Those that it is or lies below, with whether they are declared as directories."""
        return [one for place in _places(at) for one in self._inputs.get(place, {}).items()]

    def outputs(self, at: Location) -> list[Location]:
        """Those that it is or lies below."""
        return [one for place in _places(at) for one in self._outputs.get(place, ())]

    def reads_drs(self, url: str) -> bool:
        """Whether it is a DRS input or lies below one."""
        try:
            name = parse_drs(url)
        except NameRefused:
            return False
        paths = self._drs.get(_object(name), set())
        return any(name.path[:length] in paths for length in range(len(name.path) + 1))

    def has(self, url: str) -> bool:
        """Whether it is named in these very words."""
        return url in self._words

    def has_above(self, url: str) -> bool:
        """Whether it lies below one by its words."""
        longest = max(map(len, self._above), default=-1)
        return any(letter == "/" and url[:at] in self._above for at, letter in enumerate(url[: longest + 1]))

    def _name(self, url: str) -> None:
        if url:
            self._words.add(url)
            self._above.add(url.rstrip("/"))


def urls_of(document: Mapping[str, Any]) -> NamedUrls:
    """Those of inputs without content, and of outputs."""
    urls = NamedUrls()
    for item in document.get("inputs") or []:
        url = item.get("url") or ""
        # Specification: content wins over url.
        if url and item.get("content") is None:
            urls.read(url, directory=item.get("type") == "DIRECTORY")
    for item in document.get("outputs") or []:
        urls.write(item.get("url") or "")
    return urls


def is_drs(url: str) -> bool:
    """Whether it is a DRS id."""
    return url[:6].lower() == "drs://"


def _object(name: DrsName) -> _DrsObject:
    return name.id, name.host, name.namespace, name.provider


def _place(at: Location) -> _Place:
    return at.scheme, at.bucket, at.key.rstrip("/")


def _places(at: Location) -> list[_Place]:
    """Its own, and those of all that it can lie below: see `Location.below`."""
    key = at.key.rstrip("/")
    keys = {"", key, *(at.key[:end] for end, letter in enumerate(at.key) if letter == "/")}
    return [(at.scheme, at.bucket, one) for one in sorted(keys)]
