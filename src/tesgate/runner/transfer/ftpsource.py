"""Inputs from FTP servers: what an input is, all files below a directory, one file into the scratch."""

from __future__ import annotations

import ftplib
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import List, Optional, Sequence, Tuple

from ..plan import Input
from .base import Staging
from .faults import PathRefused, StagingError, os_fault
from .ftpattempt import FtpAttempt
from .ftpdata import Progress, receive
from .ftpfaults import FtpPassing, FtpRefused, code_of
from .ftplist import Listed
from .ftpsession import FtpSession
from .ftptree import MAX_ENTRIES, list_directory, look_up, size_of
from .ftpurl import FtpUrl, is_line, read_url
from .notes import Notes
from .paths import is_temporary
from .runs import SMALL, runs
from .scratch import Scratch
from .threads import Stop
from .urls import printable, redact

__all__ = ["FtpSource"]

MAX_DEPTH = 100
MAX_LINKS = 8
"""Links to directories on one path."""


@dataclass
class _File:
    path: str
    place: List[str]
    size: Optional[int]


@dataclass
class _Tree:
    files: List[_File] = field(default_factory=list)
    directories: List[List[str]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


class FtpSource:
    """See `base.Source`."""

    def __init__(self, *, attempt: FtpAttempt, scratch: Scratch) -> None:
        self._attempt = attempt
        self._scratch = scratch

    def close(self) -> None:
        self._attempt.close()

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        """Ask what it is; a directory is listed whole. Raises `StagingError`."""
        url = item.url or ""
        spot = read_url(url)
        expected = item.type == "DIRECTORY" or spot.path.endswith("/") or spot.path in ("", "/")
        what = "input %s could not be read" % redact(url)
        path, found = self._attempt.act(spot, url, what, partial(_find, path=spot.path, directory=expected), stop)
        if found.kind != "directory":
            if item.type == "DIRECTORY":
                raise StagingError(
                    "input %s is a DIRECTORY in the task but a file on the server; declare it as FILE." % redact(url)
                )
            return Staging(calls=[partial(self._bring, item, spot, [_File(path, place, found.size)])])
        tree = _Tree()
        self._walk(spot, url, path, place, tree, [], 0, stop)
        return Staging(
            calls=[
                partial(self._make, item, tree.directories),
                *(partial(self._bring, item, spot, files) for files in runs(tree.files, size=_bytes, beside=_always)),
            ],
            notes=tree.notes.lines(redact(url)),
        )

    def _walk(
        self,
        spot: FtpUrl,
        url: str,
        path: str,
        place: List[str],
        tree: _Tree,
        above: List[str],
        links: int,
        stop: Stop,
    ) -> None:
        shown = redact(url) if not above else "%s, in it %s," % (redact(url), printable(path))
        if len(above) >= MAX_DEPTH:
            raise StagingError("input %s is nested more than %d directories deep." % (redact(url), MAX_DEPTH))
        tree.directories.append(place)

        def read(session: FtpSession) -> List[Tuple[Listed, str]]:
            room = max(0, MAX_ENTRIES - len(tree.files) - len(tree.directories))
            # All of them, before any of them is asked about.
            entries = list(list_directory(session, path, most=room))
            return [(_behind(session, path, one), _real(session, path, one)) for one in entries]

        found = self._attempt.act(spot, url, "input %s could not be listed" % shown, read, stop)
        for one, real in sorted(found, key=lambda pair: pair[0].name):
            stop.check()
            if is_temporary(one.name):
                continue  # an output that is being stored by another attempt
            if "/" in one.name or one.name in ("", ".", "..") or not is_line(one.name):
                raise StagingError(
                    "input %s holds an entry whose name cannot be a file's: %s."
                    % (shown, printable(repr(one.name)[:80]))
                )
            below = path.rstrip("/") + "/" + one.name
            if len(tree.files) + len(tree.directories) >= MAX_ENTRIES:
                raise StagingError("input %s holds more than %d entries; pack it." % (redact(url), MAX_ENTRIES))
            if one.kind == "directory":
                through = links + bool(real)
                if through > MAX_LINKS or (real and real in [*above, path]):
                    tree.notes.add("%s repeats a directory that it lies in; it was left out." % printable(below))
                    continue
                self._walk(spot, url, below, [*place, one.name], tree, [*above, path], through, stop)
            elif one.kind == "file":
                tree.files.append(_File(below, [*place, one.name], one.size))
            else:
                tree.notes.add(
                    "%s on the server is neither a file nor a directory; it was left out." % printable(below)
                )

    def _make(self, item: Input, directories: Sequence[List[str]], stop: Stop) -> List[str]:
        for place in directories:
            stop.check()
            try:
                with self._scratch.directory(place):
                    continue
            except OSError as error:
                raise os_fault(error, "input %s could not be staged" % redact(item.url or "")) from error
        return []

    def _bring(self, item: Input, spot: FtpUrl, files: Sequence[_File], stop: Stop) -> List[str]:
        notes: List[str] = []
        left = list(files)
        if len(files) > 1:
            self._attempt.once(spot, item.url or "", partial(self._bring_quickly, item, left), stop)
        for file in left:
            stop.check()
            shown = self._shown(item, file)
            try:
                with self._scratch.new_file(file.place, _mode(item)) as target:
                    notes.extend(self._download(item, spot, file, target, shown, stop))
            except PathRefused as error:
                raise StagingError("input %s %s." % (shown, error.why)) from None
            except OSError as error:
                raise os_fault(error, "input %s could not be written" % shown) from error
        return notes

    def _shown(self, item: Input, file: _File) -> str:
        below = len(file.place) > len(self._scratch.parts(item.place))
        return redact(item.url or "") + (" (%s)" % printable(file.path) if below else "")

    def _bring_quickly(self, item: Input, left: List[_File], session: FtpSession) -> None:
        """Bring small files as long as nothing is out of the ordinary, and take them out of the list.

        What stays in it is done one by one, with all that it needs: which also finds the words for a fault.
        """
        with ExitStack() as stack:
            parent: Optional[int] = None
            place: List[str] = []
            while left:
                file = left[0]
                if parent is None or file.place[:-1] != place:
                    stack.close()
                    place = file.place[:-1]
                    parent = stack.enter_context(self._scratch.directory(place))
                progress = Progress(total=file.size)
                with self._scratch.new_file_in(parent, file.place[-1], _mode(item)) as target:
                    receive(session, file.path, target, progress, self._shown(item, file))
                    if progress.offset != file.size or os.fstat(target).st_size != file.size:
                        return
                del left[0]
                if session.broken:
                    return  # the file is whole, but its last word did not come

    def _download(self, item: Input, spot: FtpUrl, file: _File, target: int, shown: str, stop: Stop) -> List[str]:
        progress = Progress(total=file.size)
        furthest = 0

        def once(session: FtpSession) -> None:
            nonlocal furthest
            if progress.begun:
                _look_again(session, file.path, target, progress)
            if not progress.offset:
                large = progress.total is None or progress.total > SMALL
                progress.stamp = session.changed(file.path) if large else None
            progress.begun = True
            try:
                receive(session, file.path, target, progress, shown)
            except ftplib.error_perm as error:
                # What it has to say about REST, not about the file.
                if not progress.offset or code_of(error) not in (500, 501, 502, 504, 554):
                    raise
                _restart(target, progress)
                raise FtpPassing("the server does not go on in the middle of a file") from error
            finally:
                furthest = max(furthest, progress.offset)
            if progress.total is not None and progress.offset != progress.total:
                _check_again(session, file.path, target, progress)

        self._attempt.act(
            spot, item.url or "", "input %s could not be downloaded" % shown, once, stop, progress=lambda: furthest
        )
        size = os.fstat(target).st_size
        if size != progress.offset:
            raise StagingError(
                "input %s has %d bytes on disk, not the %d that were received." % (shown, size, progress.offset),
                transient=True,
            )
        if progress.total is None:
            return ["input %s came from a server that tells no sizes; that it is whole could not be verified." % shown]
        return []


def _mode(item: Input) -> int:
    return 0o666 if item.writable else 0o644


def _restart(target: int, progress: Progress) -> None:
    os.ftruncate(target, 0)
    progress.offset = 0


def _look_again(session: FtpSession, path: str, target: int, progress: Progress) -> None:
    """Before going on: where the file has another size or time now, it is another file.

    A server that tells no times is believed by the size; a small file was not asked about, and begins anew.
    """
    total = size_of(session, path)
    small = total is not None and total <= SMALL
    other = progress.offset > 0 and (small or session.changed(path) != progress.stamp)
    if total is None or total != progress.total or progress.offset > total or other:
        _restart(target, progress)
    progress.total = total


def _check_again(session: FtpSession, path: str, target: int, progress: Progress) -> None:
    """Find out after a "226" whether the file changed its size, or was cut off in silence. Raises `FtpPassing`."""
    expected, progress.total = progress.total, size_of(session, path)
    if progress.offset == progress.total:
        return
    if progress.total is None or progress.total != expected or progress.offset > progress.total:
        _restart(target, progress)
        raise FtpPassing("the file changed while it was read")
    raise FtpPassing("the server sent %d of %d bytes" % (progress.offset, progress.total))


def _find(session: FtpSession, *, path: str, directory: bool) -> Tuple[str, Listed]:
    """Find a path, also under the name that a server without UTF-8 has it by."""
    names = [path]
    if "UTF8" not in session.features:
        try:
            if not path.isascii():
                names.append(os.fsdecode(path.encode("latin-1")))
        except UnicodeEncodeError:
            names = [path]
    for name in names:
        absolute = session.absolute(name)
        found = look_up(session, absolute, directory=directory)
        if found is not None:
            return absolute, found
    raise FtpRefused("there is no such file or directory on the server, or this user may not see it; check the URL")


def _behind(session: FtpSession, path: str, link: Listed) -> Listed:
    """Find out what a link leads to; what is no link is itself."""
    if link.kind != "link":
        return link
    found = look_up(session, path.rstrip("/") + "/" + link.name, directory=False)
    return Listed(link.name, "other") if found is None else Listed(link.name, found.kind, found.size)


def _real(session: FtpSession, path: str, one: Listed) -> str:
    """Return where a link to a directory leads, as the server calls it; empty for what is no link."""
    if one.kind != "link" or not session.enter(path.rstrip("/") + "/" + one.name):
        return ""
    return session.where().rstrip("/") or "/"


def _bytes(file: _File) -> int:
    return SMALL + 1 if file.size is None else file.size


def _always(one: _File, other: _File) -> bool:
    return True
