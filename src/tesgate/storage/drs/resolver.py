"""From a DRS id to where its bytes are: objects, their access URLs, and what lies in a bundle.

https://ga4gh.github.io/data-repository-service-schemas/ (DRS 1.2 to 1.4: ``/objects/{id}``,
``/objects/{id}/access/{access_id}``). Nothing is guessed: what a server says is checked before anybody goes by it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from operator import attrgetter
from typing import Any
from urllib.parse import quote

import anyio

from tesgate.config import DrsHost, DrsSettings
from tesgate.storage.drs.answers import DEEPEST, Access, Entry, Said, access_of, said_of
from tesgate.storage.drs.names import DrsName, NameRefused, parse_drs
from tesgate.storage.drs.web import JsonWeb, WebFault
from tesgate.storage.secrets import SecretMissing, read_secret

__all__ = ["DrsObject", "Leaf", "Resolver"]

KEPT_SECONDS = 60.0
"""For which what was said of an object is remembered; access URLs are not."""
KEPT_BYTES = 32 << 20
KEPT_OBJECT = 8 << 20
"""One that takes more bytes is not remembered."""
REGISTRY_SECONDS = 86_400.0
AT_ONCE = 8
"""Requests to DRS servers that one listing has under way."""


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
    said: Said

    @property
    def is_bundle(self) -> bool:
        """It has no bytes of its own."""
        return self.said.contents is not None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A blob in a bundle."""

    path: tuple[str, ...]
    blob: DrsObject


class Resolver:
    """Asks DRS servers, with the tokens of the configuration."""

    def __init__(self, settings: DrsSettings, web: JsonWeb) -> None:
        self._settings = settings
        self._web = web
        self._objects: OrderedDict[tuple[str, str], tuple[float, DrsObject]] = OrderedDict()
        self._bytes = 0
        self._patterns: dict[tuple[str, str | None], tuple[float, str]] = {}

    async def close(self) -> None:
        """Let go of connections."""
        await self._web.close()

    async def find(self, uri: str, *, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        """The object, or what lies in a bundle by the names behind it. Raises `WebFault`, `NameRefused`."""
        name = parse_drs(uri)
        found = await self._object(await self._place(name, owner, groups, until), owner, groups, until)
        for part in name.path:
            contents = found.said.contents or ()
            at = bisect_left(contents, part, key=attrgetter("name"))
            entry = contents[at] if at < len(contents) and contents[at].name == part else None
            if entry is None:
                raise WebFault("does not exist: its bundle has no such name", "missing")
            found = await self._child(found.place, entry, owner, groups, until)
        return found

    async def ways(self, found: DrsObject, schemes: Sequence[str], *, until: float) -> AsyncIterator[Access]:
        """The ways to its bytes, by URLs of these schemes. Raises `WebFault` where there is none."""
        refused: set[str] = set()
        failed: WebFault | None = None
        count = 0
        methods = sorted(
            found.said.methods,
            key=lambda method: schemes.index(method.kind) if method.kind in schemes else len(schemes),
        )
        for method in methods:
            way = method.access
            if way is None and method.access_id and method.kind in schemes:
                address = f"{found.place.url}/access/{quote(method.access_id, safe='')}"
                try:
                    way = access_of(await self._get(address, found.place.host, until))
                except WebFault as fault:
                    failed = fault
                    continue
            if way is None or way.scheme not in schemes:
                refused.add(method.kind)
                continue
            count += 1
            yield way
        if not count:
            if failed is not None:
                raise failed
            words = ", ".join(sorted(refused - {""})) or "none"
            raise WebFault(f"cannot be read: its ways of access ({words}) are not served here")

    async def leaves(
        self,
        found: DrsObject,
        *,
        after: tuple[str, ...],
        owner: str,
        groups: Sequence[str],
        until: float,
        path: tuple[str, ...] = (),
    ) -> AsyncGenerator[Leaf]:
        """The blobs of a bundle and of those in it, behind `after`, in the order of their names.

        What lies before `after` is not asked for, and what comes behind only as it is taken. `path`: of `found`.
        Raises `WebFault`.
        """
        if len(path) > DEEPEST:
            raise WebFault(f"has bundles in bundles more than {DEEPEST} deep")
        contents = found.said.contents or ()
        begin = 0
        if path == after[: len(path)] and len(path) < len(after):
            begin = bisect_left(contents, after[len(path)], key=attrgetter("name"))
        for at in range(begin, len(contents), AT_ONCE):
            some = contents[at : at + AT_ONCE]
            children = await self._children(found.place, some, owner, groups, until)
            for entry, child in zip(some, children, strict=True):
                below = (*path, entry.name)
                if isinstance(child, WebFault):
                    raise child
                if child.is_bundle:
                    inner = self.leaves(child, after=after, owner=owner, groups=groups, until=until, path=below)
                    async with aclosing(inner):
                        async for leaf in inner:
                            yield leaf
                elif below > after:
                    yield Leaf(below, child)

    # inside

    async def _children(
        self, parent: _Place, entries: Sequence[Entry], owner: str, groups: Sequence[str], until: float
    ) -> list[DrsObject | WebFault]:
        """Ask for all at a time."""
        found: dict[int, DrsObject | WebFault] = {}

        async def one(at: int) -> None:
            try:
                found[at] = await self._child(parent, entries[at], owner, groups, until)
            except WebFault as fault:
                found[at] = fault

        async with anyio.create_task_group() as group:
            for at in range(len(entries)):
                group.start_soon(one, at)
        return [found[at] for at in range(len(entries))]

    async def _child(self, parent: _Place, entry: Entry, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        if entry.contents is not None:
            return DrsObject(parent, Said(None, {}, (), entry.contents))
        for uri in entry.uris:
            try:
                place = await self._place(parse_drs(uri), owner, groups, until)
            except NameRefused:
                continue
            break
        else:
            if entry.id is None:
                raise WebFault("is a bundle with an entry that has neither id nor drs_uri")
            place = parent.other(entry.id)
        return await self._object(place, owner, groups, until)

    async def _object(self, place: _Place, owner: str, groups: Sequence[str], until: float) -> DrsObject:
        # Whoever may not use a host's token does not see what was said under it.
        key = (place.url, place.host.host if place.host is not None else "")
        kept = self._objects.get(key)
        if kept is not None and time.monotonic() - kept[0] < KEPT_SECONDS:
            return kept[1]
        said = await self._get(place.url, place.host, until)
        found = DrsObject(place, said_of(said))
        self._keep(key, found)
        return found

    def _keep(self, key: tuple[str, str], found: DrsObject) -> None:
        old = self._objects.pop(key, None)
        self._bytes -= old[1].said.weight if old is not None else 0
        if found.said.weight > KEPT_OBJECT:
            return
        self._objects[key] = (time.monotonic(), found)
        self._bytes += found.said.weight
        while self._bytes > KEPT_BYTES:
            _, (_, dropped) = self._objects.popitem(last=False)
            self._bytes -= dropped.said.weight

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
                raise WebFault(f"cannot be asked about: {error}", "passing") from None
        return await self._web.get(url, token=token, until=until)
