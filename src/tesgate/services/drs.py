"""Answers questions about ``drs://`` inputs: what they lead to, with what the gateway may read for a task's owner."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from tesgate.runner.access import Fault, Found, ListQuestion, Page
from tesgate.storage.drs.names import NameRefused, join
from tesgate.storage.drs.resolver import DrsObject, Resolver
from tesgate.storage.drs.web import WebFault

__all__ = ["DrsAnswers", "ReadObject"]

SCHEMES = ("s3", "gs", "https", "http", "ftp", "ftps")
"""Of access URLs, the best first: what the gateway signs is read in ranges, resumed and checked."""
PAGE = 100
"""Objects of one page: each has an access URL that must be asked for."""

ReadObject = Callable[[str], Awaitable[Found | None]]
"""What lies at an object store's URL; None: there is no endpoint for it, or this owner may not."""


class DrsAnswers:
    """In the words of the access contract."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def look(self, url: str, *, owner: str, groups: Sequence[str], until: float, read: ReadObject) -> Found:
        """What the id leads to."""
        try:
            found = await self._resolver.find(url, owner=owner, groups=groups, until=until)
            if found.contents is not None:
                return Found(url=url, kind="directory")
            return await self._found(url, found, until, read)
        except (WebFault, NameRefused) as error:
            return Found(url=url, fault=_fault(url, error))

    async def page(
        self, question: ListQuestion, *, owner: str, groups: Sequence[str], until: float, read: ReadObject
    ) -> Page:
        """One page of what a bundle holds, bundles in it included."""
        page = Page()
        after = tuple(question.after.split("/")) if question.after else ()
        limit = max(1, min(question.limit, PAGE))
        try:
            bundle = await self._resolver.find(question.url, owner=owner, groups=groups, until=until)
            leaves = await self._resolver.leaves(bundle, owner=owner, groups=groups, until=until)
            left = [leaf for leaf in leaves if leaf.path > after]
            for leaf in left[:limit]:
                one = await self._resolver.blob(leaf, owner=owner, groups=groups, until=until)
                url = join(question.url, list(leaf.path))
                page.objects.append(await self._found(url, one, until, read))
                page.names.append("/".join(leaf.path))
                if time.monotonic() > until:
                    break
        except (WebFault, NameRefused) as error:
            return Page(fault=_fault(question.url, error))
        if len(page.names) < len(left):
            page.after = page.names[-1]
        return page

    async def _found(self, url: str, one: DrsObject, until: float, read: ReadObject) -> Found:
        async for way in self._resolver.ways(one, SCHEMES, until=until):
            if way.url.partition(":")[0].lower() in ("s3", "gs"):
                there = await read(way.url)
                if there is None:
                    continue
                if one.size is not None and there.size is not None and there.size != one.size:
                    raise WebFault(f"has {one.size} bytes by its DRS server, and {there.size} where it leads to")
                return Found(
                    url=url,
                    size=there.size,
                    etag=there.etag,
                    checksum={**one.checksum, **there.checksum},
                    get=there.get,
                )
            return Found(
                url=url,
                kind="elsewhere",
                size=one.size,
                checksum=dict(one.checksum),
                moved_to=way.url,
                headers=dict(way.headers),
            )
        raise WebFault("leads to an object store that no endpoint is configured for, or that this owner may not read")


def _fault(url: str, error: WebFault | NameRefused) -> Fault:
    return Fault(f"{url} {error.why}.", error.kind if isinstance(error, WebFault) else "refused")
