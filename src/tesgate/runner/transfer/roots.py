"""Local paths as a kind of storage: beneath the agent's roots, and nowhere else."""

from __future__ import annotations

from functools import partial
from typing import List, Sequence

from ..plan import Input, Output
from .base import Staging
from .copying import Copier
from .faults import PathRefused, StagingError
from .local import LocalFile, LocalInputs, together
from .paths import Roots
from .scratch import Scratch
from .storing import Storing
from .threads import Stop
from .urls import local_path, printable, redact

__all__ = ["LocalSource", "LocalStorage"]


class LocalStorage:
    """``file:`` URLs and plain absolute paths."""

    schemes: Sequence[str] = ("file",)

    def __init__(self, *, roots: Roots, copier: Copier, umask: int, link: bool, durable: bool) -> None:
        self._roots = roots
        self._copier = copier
        self._storing = Storing(roots=roots, copier=copier, umask=umask, link=link, durable=durable)

    def check_input(self, item: Input) -> None:
        """Refuse a path outside the roots."""
        try:
            self._roots.belongs(local_path(item.url or ""))
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(item.url or ""), error.why)) from None

    def check_output(self, output: Output) -> None:
        """Refuse a path outside the roots, and in one that is read-only."""
        try:
            root, _ = self._roots.belongs(local_path(output.url))
            why = None if root.writable else "it lies in the root %s, which is read-only." % root.path
        except PathRefused as error:
            why = "its url %s." % error.why
        if why is not None:
            raise StagingError("output %s cannot be stored: %s" % (printable(output.path), why))

    def source(self, scratch: Scratch, stop: Stop) -> LocalSource:
        """See `base.Storage`."""
        return LocalSource(LocalInputs(roots=self._roots, scratch=scratch, copier=self._copier))

    def sink(self) -> Storing:
        """See `base.Storage`."""
        return self._storing


class LocalSource:
    """Inputs from the roots, for one run of stage-in."""

    def __init__(self, inputs: LocalInputs) -> None:
        self._inputs = inputs

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        """List it whole."""
        url = item.url or ""
        listing = self._inputs.list(
            local_path(url), place, kind=item.type, shown=redact(url), private=item.writable, stop=stop
        )
        notes = listing.notes.lines(redact(url))
        if not listing.directories:
            return Staging(files=listing.files, notes=notes)

        def directories(stop: Stop) -> List[str]:
            for directory in listing.directories:
                stop.check()
                self._inputs.make_directory(directory, url)
            return []

        return Staging(
            calls=[directories, *(partial(self.stage_files, files) for files in together(listing.files))],
            notes=notes,
        )

    def stage_files(self, files: List[LocalFile], stop: Stop) -> List[str]:
        """Stage files that `together` has put together."""
        self._inputs.stage_all(files, stop)
        return []

    def close(self) -> None:
        """Nothing is held open."""
