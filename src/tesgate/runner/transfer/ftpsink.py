"""Outputs to FTP servers: bytes under a temporary name, then a rename under the publish lease.

The temporary file lies in the file's own directory, or where that is missing in the deepest one above it that exists:
directories are made when the outputs become visible, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ftplib
import logging
import os
import threading
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence, Set, Tuple

from ..plan import Output
from .base import Entry, Item
from .faults import LeaseLost, PathRefused, StagingError, os_fault
from .ftpattempt import FtpAttempt
from .ftpdata import Progress, send
from .ftpfaults import FtpPassing, FtpRefused, code_of
from .ftpleft import discard_left
from .ftpmany import alike, rename_many, send_many
from .ftprename import (
    FtpItem,
    NotTaken,
    aside_name,
    between,
    can_tell,
    joined,
    parent_of,
    rename_item,
    size_or_none,
)
from .ftpsession import FtpSession
from .ftptree import is_there
from .ftpurl import FtpUrl, is_line, read_url, split_target
from .paths import temporary_name
from .runs import runs
from .threads import Stop, parallel
from .urls import printable, redact
from .view import View

__all__ = ["FtpSink"]

_log = logging.getLogger(__name__)

_AT_A_TIME = 4
_LARGEST_CA = 64 << 10
"""Letters of certificates that are journalled. With more the system's authorities are taken afterwards."""


class FtpSink:
    """See `base.Sink`."""

    def __init__(self, *, attempt: FtpAttempt, urls: Sequence[str]) -> None:
        """`urls`: of the task's outputs, as it has them."""
        self._attempt = attempt
        self._declared: Dict[str, List[Tuple[List[str], FtpUrl, str]]] = {}
        for url in urls:
            spot = read_url(url)
            self._declared.setdefault(spot.server, []).append((spot.parts, spot, url))
        self._lock = threading.Lock()
        self._told: Set[Tuple[str, str]] = set()
        self._there: Set[Tuple[str, str]] = set()
        self._missing: Set[Tuple[str, str]] = set()
        self._renames_well = True
        """No server has refused a rename: where one does not rename over files, each is a case of its own."""

    def target(self, output: Output) -> str:
        """See `FtpUrl.target`. Raises `PathRefused`."""
        return read_url(output.url).target

    def _belongs(self, server: str, path: str) -> Tuple[FtpUrl, str]:
        """Find the output that a path is of, or lies below: the innermost. Raises `StagingError`."""
        parts = (["/"] if path.startswith("/") else []) + [part for part in path.split("/") if part]
        best: Optional[Tuple[int, FtpUrl, str]] = None
        for declared, spot, url in self._declared.get(server, ()):
            # What a pattern stands for lies in the directory of its URL.
            for prefix in (declared, declared[:-1]):
                if parts[: len(prefix)] == prefix and (best is None or len(prefix) > best[0]):
                    best = (len(prefix), spot, url)
        if best is None:
            raise StagingError("%s belongs to no output of the task." % server)
        return best[1], best[2]

    def _item(self, entry: Entry) -> FtpItem:
        server, path = split_target(entry.target)
        if not is_line(path):
            raise StagingError(
                "output %s cannot be stored over FTP: its name holds a line break." % printable(repr(entry.path)[1:-1])
            )
        spot, url = self._belongs(server, path)
        return FtpItem(entry, spot, url, path)

    def place_directory(self, entry: Entry) -> FtpItem:
        """Nothing is asked yet. Raises `StagingError`."""
        return self._item(entry)

    def place(self, entry: Entry, tag: str, number: int) -> FtpItem:
        """Nothing is asked yet. Raises `StagingError`."""
        item = self._item(entry)
        item.temporary = temporary_name(tag, number)
        item.learn = self._learn
        return item

    def _learn(self, item: FtpItem, stop: Stop) -> None:
        login = self._attempt.login(item.url, item.spot, stop)
        item.habits = {"tls": login.tls}
        if login.ca is not None and len(login.ca) <= _LARGEST_CA:
            with self._lock:
                # Once for each URL of the task: a journal has thousands of items.
                first = (item.spot.server, item.url) not in self._told
                self._told.add((item.spot.server, item.url))
            if first:
                item.habits["ca"] = login.ca

    # -- bytes -------------------------------------------------------------------------------------------------

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Store the bytes under the temporary name, and compare the size. Raises `StagingError`, `Stopped`."""
        assert isinstance(item, FtpItem)
        shown = printable(item.entry.path)
        try:
            with view.opened(item.entry.node) as (_, _, source):
                before = os.fstat(source)
                progress = Progress(total=before.st_size)
                furthest = 0

                def once(session: FtpSession) -> None:
                    nonlocal furthest
                    try:
                        self._send(session, item, source, progress)
                    finally:
                        furthest = max(furthest, progress.offset)

                self._act(item, once, stop, progress=lambda: furthest)
                after = os.fstat(source)
        except PathRefused as error:
            raise StagingError("output %s %s." % (shown, error.why)) from None
        except OSError as error:
            raise os_fault(error, "output %s could not be read" % shown) from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StagingError(
                "output %s changed while it was stored: something still writes to it." % shown, transient=True
            )
        item.size = before.st_size

    def put_many(self, items: Sequence[Item], view: View, stop: Stop) -> None:
        """See `base.SinkOfMany`. Raises `StagingError`, `Stopped`."""

        def quickly(session: FtpSession) -> None:
            if "SIZE" in session.features and session.can_pipeline():
                send_many(session, some, view, self._deepest)

        for some in alike([item for item in items if isinstance(item, FtpItem)]):
            self._attempt.once(some[0].spot, some[0].url, quickly, stop)
            for item in some:
                if not item.stored:
                    self.put(item, view, stop)

    def _act(
        self,
        item: FtpItem,
        action: Callable[[FtpSession], None],
        stop: Stop,
        *,
        progress: Optional[Callable[[], int]] = None,
    ) -> None:
        what = "output %s could not be stored at %s" % (printable(item.entry.path), redact(item.entry.url))
        self._attempt.act(item.spot, item.url, what, action, stop, progress=progress)

    def _send(self, session: FtpSession, item: FtpItem, source: int, progress: Progress) -> None:
        if not item.beside:
            item.beside = self._deepest(session, item)
        path = joined(item.beside, item.temporary)
        total = progress.total or 0
        append = False
        if progress.begun:
            there = size_or_none(session, path)
            if there == total:
                progress.offset = total
                return
            restarts = "STREAM" in session.features.get("REST", "").upper()
            progress.offset = there if there is not None and 0 < there < total else 0
            append = progress.offset > 0 and not restarts
        try:
            send(session, path, source, progress, append=append)
        except ftplib.error_perm as error:
            if not progress.offset or code_of(error) not in (500, 501, 502, 504, 550, 554):
                raise
            # It does not go on with what is there.
            progress.begun, progress.offset = False, 0
            raise FtpPassing("the server does not go on in the middle of a file") from error
        if session.broken:
            raise FtpPassing("the server did not say that it has the file")
        there = size_or_none(session, path)
        if there is None and not can_tell(session):
            there = total  # its word is all that there is
        if there != total:
            # Nothing that is longer than it should be can be gone on with, and STOR cuts off what is there.
            progress.begun = there is not None and there < total
            progress.offset = there or 0
            raise FtpPassing("the server has %s of %d bytes" % ("none" if there is None else there, total))
        progress.offset = total

    def _deepest(self, session: FtpSession, item: FtpItem) -> str:
        """Find the deepest directory of an item's path that exists."""
        here = parent_of(session.absolute(item.path))
        above: List[str] = []
        while here != "/":
            key = (item.spot.server, here)
            with self._lock:
                known = True if key in self._there else False if key in self._missing else None
            if known is None and not above and self._above_is_missing(item, here):
                known = False
            if known is None:
                known = session.enter(here)
                with self._lock:
                    (self._there if known else self._missing).add(key)
            if known:
                break
            above.append(here)
            here = parent_of(here)
        return here

    def _above_is_missing(self, item: FtpItem, path: str) -> bool:
        while path != "/":
            path = parent_of(path)
            with self._lock:
                if (item.spot.server, path) in self._missing:
                    return True
                if (item.spot.server, path) in self._there:
                    return False
        return False

    # -- names -------------------------------------------------------------------------------------------------

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Make everything visible. Raises `LeaseLost`, `StagingError`; what is visible is not touched again."""
        try:
            for item in directories:
                if isinstance(item, FtpItem) and not item.done:
                    self._visible(item, self._make, lease, stop)
            files = [item for item in items if isinstance(item, FtpItem) and not item.done]
            parallel(
                (partial(self._rename_run, run, lease, stop) for run in runs(files, size=_nothing, beside=_together)),
                concurrency=_AT_A_TIME,
                stop=stop,
            )
        except LeaseLost:
            raise  # it is called again
        except BaseException:
            self._attempt.close()
            raise
        self._attempt.close()

    def _rename_run(self, items: Sequence[FtpItem], lease: Callable[[], float], stop: Stop) -> None:
        def covered() -> None:
            stop.check()
            if lease() <= 0:
                raise _Uncovered

        def quickly(session: FtpSession) -> None:
            if session.can_pipeline():
                for item in items:
                    self._make_directories(session, item, parent_of(session.absolute(item.path)), covered)
                self._renames_well = rename_many(session, items, covered) and self._renames_well

        if len(items) > 1 and self._renames_well and not any(item.renaming or item.aside for item in items):
            with contextlib.suppress(_Uncovered):  # which is found again below
                self._attempt.once(items[0].spot, items[0].url, quickly, stop)
        for item in items:
            if not item.done:
                self._visible(item, self._rename, lease, stop)

    def _visible(
        self,
        item: FtpItem,
        act: Callable[[FtpSession, FtpItem, Callable[[], None]], None],
        lease: Callable[[], float],
        stop: Stop,
    ) -> None:
        def covered() -> None:
            stop.check()
            if lease() <= 0:
                raise _Uncovered

        def once(session: FtpSession) -> None:
            covered()
            act(session, item, covered)

        try:
            self._act(item, once, stop)
        except _Uncovered:
            raise LeaseLost("the publish lease ran out before %s was stored" % redact(item.entry.url)) from None
        item.done = True

    def _make(self, session: FtpSession, item: FtpItem, covered: Callable[[], None]) -> None:
        self._make_directories(session, item, session.absolute(item.path), covered)

    def _make_directories(self, session: FtpSession, item: FtpItem, path: str, covered: Callable[[], None]) -> None:
        """Make a directory with its parents. Others may make them in the same moment."""
        key = (item.spot.server, path)
        with self._lock:
            if path == "/" or key in self._there:
                return
        if not session.enter(path):
            self._make_directories(session, item, parent_of(path), covered)
            covered()
            try:
                session.voidcmd("MKD " + path)
            except ftplib.error_perm:
                if not session.enter(path):
                    raise
        with self._lock:
            self._there.add(key)

    def _rename(self, session: FtpSession, item: FtpItem, covered: Callable[[], None]) -> None:
        source, target = joined(item.beside, item.temporary), session.absolute(item.path)
        self._make_directories(session, item, parent_of(target), covered)
        covered()
        try:
            rename_item(session, item, source, target, covered)
        except NotTaken as error:
            if session.enter(target):
                raise FtpRefused("a directory is there, where a file is to be; remove it or change the url") from error
            if error.code not in (550, 553) or not is_there(session, target):
                raise error.answer from None
            self._replace(session, item, source, target, covered)
        if item.aside:
            # Also of an earlier try. That it stays does not undo what is visible.
            with contextlib.suppress(ftplib.error_perm):
                session.voidcmd("DELE " + joined(parent_of(target), aside_name(item.temporary)))
            item.aside = False

    def _replace(
        self, session: FtpSession, item: FtpItem, source: str, target: str, covered: Callable[[], None]
    ) -> None:
        """Put what is there aside first: some servers do not rename over a file. For a moment, then, there is none."""
        aside = joined(parent_of(target), aside_name(item.temporary))
        covered()
        session.sendcmd("RNFR " + target)
        between(session, covered)
        item.aside = True
        try:
            session.voidcmd("RNTO " + aside)
        except ftplib.error_perm:
            item.aside = False
            raise
        try:
            rename_item(session, item, source, target, covered)
        except NotTaken as error:
            # The name itself is refused: what was there stays.
            session.sendcmd("RNFR " + aside)
            session.voidcmd("RNTO " + target)
            item.aside = False
            raise error.answer from None

    # -- what is left ------------------------------------------------------------------------------------------

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Remove temporary files by their traces. A server that does not answer is logged."""
        return discard_left(self._attempt, self._belongs, traces, stop)


def _nothing(item: FtpItem) -> int:
    return 0


def _together(one: FtpItem, other: FtpItem) -> bool:
    return (one.spot.server, one.url) == (other.spot.server, other.url)


class _Uncovered(Exception):
    """The lease does not cover the next step."""
