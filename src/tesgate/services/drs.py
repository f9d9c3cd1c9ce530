"""Answers questions about ``drs://`` inputs: what they lead to, with what the gateway may read for a task's owner."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

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
            if found.is_bundle:
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
            leaves = self._resolver.leaves(bundle, after=after, owner=owner, groups=groups, until=until)
            async with aclosing(leaves):
                async for leaf in leaves:
                    if len(page.names) == limit or (page.names and time.monotonic() > until):
                        page.after = page.names[-1]
                        break
                    found = await self._found(join(question.url, list(leaf.path)), leaf.blob, until, read)
                    page.objects.append(found)
                    page.names.append("/".join(leaf.path))
        except (WebFault, NameRefused) as error:
            if page.names and isinstance(error, WebFault) and error.kind == "passing":
                # The next page begins with what was not answered: a slow server's bundle arrives, too.
                page.after = page.names[-1]
                return page
            return Page(fault=_fault(question.url, error))
        return page

    async def _found(self, url: str, one: DrsObject, until: float, read: ReadObject) -> Found:
        async for way in self._resolver.ways(one, SCHEMES, until=until):
            if way.scheme in ("s3", "gs"):
                there = await read(way.url)
                if there is None:
                    continue
                if one.said.size is not None and there.size is not None and there.size != one.said.size:
                    raise WebFault(f"has {one.said.size} bytes by its DRS server, and {there.size} where it leads to")
                return Found(
                    url=url,
                    size=there.size,
                    etag=there.etag,
                    checksum={**one.said.checksum, **there.checksum},
                    get=there.get,
                )
            return Found(
                url=url,
                kind="elsewhere",
                size=one.said.size,
                checksum=dict(one.said.checksum),
                moved_to=way.url,
                headers=dict(way.headers),
            )
        raise WebFault("leads to an object store that no endpoint is configured for, or that this owner may not read")


def _fault(url: str, error: WebFault | NameRefused) -> Fault:
    return Fault(f"{url} {error.why}.", error.kind if isinstance(error, WebFault) else "refused")
