"""From a DRS id to where its bytes are: objects, their access URLs, and what lies in a bundle.

https://ga4gh.github.io/data-repository-service-schemas/ (DRS 1.2 to 1.4: ``/objects/{id}``,
``/objects/{id}/access/{access_id}``). Nothing is guessed: what a server says is checked before anybody goes by it.
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from tesgate.config import DrsHost, DrsSettings
from tesgate.storage.drs.names import DrsName, NameRefused, parse_drs
from tesgate.storage.drs.web import JsonWeb, WebFault
from tesgate.storage.secrets import SecretMissing, read_secret

__all__ = ["Access", "DrsObject", "Leaf", "Resolver"]

DEEPEST = 8
MOST_OBJECTS = 100_000
KEPT_SECONDS = 60.0
"""For which what was said of an object is remembered; access URLs are not."""
KEPT = 4096
REGISTRY_SECONDS = 86_400.0
SUMS = {"md5": "md5", "sha-1": "sha1", "sha1": "sha1", "sha-256": "sha256", "sha256": "sha256", "crc32c": "crc32c"}
"""DRS's names of checksums (hexadecimal) by the access contract's (base64)."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object is asked for."""

    url: str
    host: DrsHost | None

    def other(self, id: str) -> _Place:
        """Another object of the same server."""
        return _Place(f"{self.url.rpartition('/')[0]}/{quote(id, safe='')}", self.host)


@dataclass(frozen=True, slots=True)
class DrsObject:
    """What a server says of one object."""

    place: _Place
    name: str
    size: int | None
    checksum: Mapping[str, str]
    methods: Sequence[Mapping[str, Any]]
    contents: Sequence[Mapping[str, Any]] | None
    """Of a bundle; None: it is a blob."""


@dataclass(frozen=True, slots=True)
class Access:
    """One way to the bytes."""

    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A blob in a bundle."""

    path: tuple[str, ...]
    content: Mapping[str, Any]
    place: _Place


class Resolver:
    """Asks DRS servers, with the tokens of the configuration."""

    def __init__(self, settings: DrsSettings, web: JsonWeb) -> None:
        self._settings = settings
        self._web = web
        self._objects: OrderedDict[tuple[str, str], tuple[float, DrsObject]] = OrderedDict()
        self._patterns: dict[tuple[str, str | None], tuple[float, str]] = {}

    async def close(self) -> None:
        """Let go of connections."""
        await self._web.close()

    async def find(self, uri: str, *, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        """The object, or what lies in a bundle by the names behind it. Raises `WebFault`, `NameRefused`."""
        name = parse_drs(uri)
        found = await self._object(await self._place(name, owner, groups, until), owner, groups, until)
        for part in name.path:
            content = next((item for item in _contents(found) if item["name"] == part), None)
            if content is None:
                raise WebFault("does not exist: its bundle has no such name", "missing")
            found = await self._child(found.place, content, owner, groups, until)
        return found

    async def ways(self, found: DrsObject, schemes: Sequence[str], *, until: float) -> AsyncIterator[Access]:
        """The ways to its bytes, by URLs of these schemes. Raises `WebFault` where there is none."""
        refused: set[str] = set()
        failed: WebFault | None = None
        count = 0
        kinds = [str(method.get("type") or "").lower() for method in found.methods]
        order = sorted(
            range(len(kinds)), key=lambda at: schemes.index(kinds[at]) if kinds[at] in schemes else len(kinds) + 9
        )
        for at in order:
            method = found.methods[at]
            given = method.get("access_url")
            if not given and method.get("access_id") and kinds[at] in schemes:
                address = f"{found.place.url}/access/{quote(str(method['access_id']), safe='')}"
                try:
                    given = await self._get(address, found.place.host, until)
                except WebFault as fault:
                    failed = fault
                    continue
            way = _access(given)
            if way is None or urlsplit(way.url).scheme.lower() not in schemes:
                refused.add(kinds[at])
                continue
            count += 1
            yield way
        if not count:
            if failed is not None:
                raise failed
            words = ", ".join(sorted(refused - {""})) or "none"
            raise WebFault(f"cannot be read: its ways of access ({words}) are not served here")

    async def leaves(self, found: DrsObject, *, owner: str, groups: Sequence[str], until: float) -> list[Leaf]:
        """All blobs of a bundle in the order of their names, and of the bundles in it. Raises `WebFault`."""
        leaves: list[Leaf] = []
        await self._walk(found, (), leaves, owner, groups, until)
        return sorted(leaves, key=lambda leaf: leaf.path)

    async def blob(self, leaf: Leaf, *, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        """The object of a leaf. Raises `WebFault`."""
        return await self._child(leaf.place, leaf.content, owner, groups, until)

    # inside

    async def _walk(
        self,
        found: DrsObject,
        path: tuple[str, ...],
        leaves: list[Leaf],
        owner: str,
        groups: Sequence[str],
        until: float,
    ) -> None:
        if len(path) > DEEPEST:
            raise WebFault(f"has bundles in bundles more than {DEEPEST} deep")
        for item in _contents(found):
            below = (*path, str(item["name"]))
            child = await self._child(found.place, item, owner, groups, until)
            if child.contents is not None:
                await self._walk(child, below, leaves, owner, groups, until)
                continue
            leaves.append(Leaf(below, item, found.place))
            if len(leaves) > MOST_OBJECTS:
                raise WebFault(f"has more than {MOST_OBJECTS} objects")

    async def _child(
        self, parent: _Place, item: Mapping[str, Any], owner: str, groups: Sequence[str], until: float
    ) -> DrsObject:
        if item.get("contents"):
            return DrsObject(parent, str(item["name"]), None, {}, (), item["contents"])
        place = None
        for uri in item.get("drs_uri") or []:
            try:
                place = await self._place(parse_drs(str(uri)), owner, groups, until)
            except NameRefused:
                continue
            break
        if place is None:
            if not isinstance(item.get("id"), str):
                raise WebFault("is a bundle with an entry that has neither id nor drs_uri")
            place = parent.other(item["id"])
        return await self._object(place, owner, groups, until)

    async def _object(self, place: _Place, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        # Whoever may not use a host's token does not see what was said under it.
        key = (place.url, place.host.host if place.host is not None else "")
        kept = self._objects.get(key)
        if kept is not None and time.monotonic() - kept[0] < KEPT_SECONDS:
            return kept[1]
        said = await self._get(place.url, place.host, until)
        if not isinstance(said, dict):
            raise WebFault("has no answer: the server did not send an object")
        contents = said.get("contents")
        found = DrsObject(
            place=place,
            name=str(said.get("name") or said.get("id") or ""),
            size=said["size"] if isinstance(said.get("size"), int) and said["size"] >= 0 else None,
            checksum=_sums(said.get("checksums")),
            methods=[item for item in said.get("access_methods") or [] if isinstance(item, dict)],
            contents=contents if isinstance(contents, list) and contents else None,
        )
        self._objects[key] = (time.monotonic(), found)
        while len(self._objects) > KEPT:
            self._objects.popitem(last=False)
        return found

    async def _place(self, name: DrsName, owner: str, groups: Sequence[str], until: float) -> _Place:
        word = name.host or name.namespace or ""
        host = next((item for item in self._settings.hosts if item.host.lower() == word), None)
        if host is not None and not (
            "*" in host.who or owner in host.who or any(f"group:{group}" in host.who for group in groups)
        ):
            raise WebFault(f"may not be used by {owner} (drs.hosts[].who)")
        encoded = quote(name.id, safe="")
        if host is not None and host.url is not None:
            base = host.url.rstrip("/")
        elif name.host is not None:
            base = f"https://{name.host}"
        else:
            pattern = await self._pattern(name, until)
            return _Place(pattern.replace("{$id}", encoded), host)
        return _Place(f"{base.removesuffix('/ga4gh/drs/v1')}/ga4gh/drs/v1/objects/{encoded}", host)

    async def _pattern(self, name: DrsName, until: float) -> str:
        """Where a namespace's objects are, by the registry of compact ids."""
        key = (name.namespace or "", name.provider)
        kept = self._patterns.get(key)
        if kept is not None and time.monotonic() - kept[0] < REGISTRY_SECONDS:
            return kept[1]
        if self._settings.registry is None:
            raise WebFault("has a namespace that is not in drs.hosts, and there is no registry")
        base = self._settings.registry.rstrip("/") + "/restApi"
        query = quote(name.namespace or "", safe="")
        try:
            found = await self._web.get(f"{base}/namespaces/search/findByPrefix?prefix={query}", until=until)
            number = str(found["_links"]["self"]["href"]).rstrip("/").rpartition("/")[2]
            if not number.isdecimal():
                raise ValueError(number)
            listed = await self._web.get(f"{base}/resources/search/findAllByNamespaceId?id={number}", until=until)
            resources = listed["_embedded"]["resources"]
            chosen = [
                item
                for item in sorted(resources, key=lambda item: not item.get("official"))
                if name.provider is None or str(item.get("providerCode") or "").lower() == name.provider
            ]
            pattern = str(chosen[0]["urlPattern"])
        except WebFault as fault:
            if fault.kind == "missing":
                raise WebFault("has a namespace that the registry of compact ids does not know", "missing") from None
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise WebFault("has a namespace for which the registry of compact ids names no server") from None
        if "{$id}" not in pattern or "/ga4gh/drs/" not in pattern:
            raise WebFault("has a namespace whose registered server does not speak DRS")
        self._patterns[key] = (time.monotonic(), pattern)
        return pattern

    async def _get(self, url: str, host: DrsHost | None, until: float) -> Any:
        token = None
        if host is not None and host.token is not None:
            try:
                token = read_secret(host.token, f"the token of {host.host}")
            except SecretMissing as error:
                raise WebFault(f"cannot be asked about: {error}") from None
        return await self._web.get(url, token=token, until=until)


def _contents(found: DrsObject) -> list[Mapping[str, Any]]:
    items = []
    for item in found.contents or []:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise WebFault("is a bundle with an entry whose name is no file name")
        items.append(item)
    return items


def _access(given: Any) -> Access | None:
    if isinstance(given, str):
        given = {"url": given}
    if not isinstance(given, dict) or not isinstance(given.get("url"), str):
        return None
    headers = {}
    for line in given.get("headers") or []:
        name, colon, value = str(line).partition(":")
        if colon and name.strip() and "\n" not in line and "\r" not in line:
            headers[name.strip()] = value.strip()
    return Access(given["url"], headers)


def _sums(given: Any) -> dict[str, str]:
    sums: dict[str, str] = {}
    for item in given if isinstance(given, list) else []:
        try:
            sums[SUMS[str(item["type"]).lower()]] = base64.b64encode(bytes.fromhex(item["checksum"])).decode()
        except (KeyError, TypeError, ValueError):
            continue
    return sums
