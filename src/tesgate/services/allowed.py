"""Which URLs a runner may ask about: those of its task or below one, within what its owner is allowed."""

from __future__ import annotations

from tesgate.services.asked import Asker
from tesgate.storage.s3 import objects
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location, UrlRefused, parse

__all__ = ["Allowed"]


class Allowed:
    """Every method raises `UrlRefused` for what is not."""

    def __init__(self, *, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def readable(self, asker: Asker, url: str) -> tuple[ObjectStore, Location, bool]:
        """The store of an input, or of what lies below one, and whether it is declared as a directory."""
        at = parse(url)
        declared = asker.urls.inputs(at)
        if not declared:
            raise UrlRefused("is no input of this task")
        store = self.owners(asker, at)
        own = [directory for base, directory in declared if base.key.rstrip("/") == at.key.rstrip("/")]
        if own or any(directory for _, directory in declared):
            return store, at, any(own)
        for base, _ in declared:
            # A FILE allows itself alone, but clients also declare directories so (Nextflow).
            known = asker.urls.directories.get(base)
            if known is None:
                known = (await objects.look(store, base, directory=False)).kind == "directory"
                asker.urls.directories[base] = known
            if known:
                return store, at, False
        raise UrlRefused("is no input of this task; it lies below one that is a file")

    def owners(self, asker: Asker, at: Location) -> ObjectStore:
        """The store of what the task's owner may read, be it an input or what a DRS id leads to."""
        return self._endpoints.find(at, "read", owner=asker.attempt.owner, groups=asker.groups)

    def drs(self, asker: Asker, url: str) -> None:
        """Below a bundle lies what it holds; what a blob is, only its server knows."""
        if not asker.urls.reads_drs(url):
            raise UrlRefused("is no input of this task")

    def writable(self, asker: Asker, url: str) -> tuple[ObjectStore, Location]:
        """The store of an output, or of what lies below one."""
        at = parse(url)
        if not at.key or at.key.endswith("/"):
            raise UrlRefused("names no object; give it a name behind the last slash")
        bases = asker.urls.outputs(at)
        if not bases:
            raise UrlRefused("is no output of this task")
        # The slash before what lies below is its base's own: `out//x` has an empty name below `out`.
        if not any(base.key == at.key or "//" not in f"/{at.key[len(base.prefix) :]}" for base in bases):
            raise UrlRefused("has two slashes in a row below its output")
        return self._endpoints.find(at, "write", owner=asker.attempt.owner, groups=asker.groups), at
