"""Stages inputs from the agent's roots: what an input is, all files below a directory, one file into the scratch."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Iterator, List, Sequence, Tuple

from .copying import Changed, Copier, copied_mode
from .faults import PathRefused, StagingError, os_fault
from .notes import Notes
from .paths import Found, RootDir, Roots, is_temporary, open_file
from .scratch import Scratch
from .threads import Stop, retrying

__all__ = ["Listing", "LocalFile", "LocalInputs", "together"]

MAX_DEPTH = 200
MOST, MOST_BYTES = 32, 4 << 20
"""What one thread takes at a time: files enough to open their directories once, bytes few enough to be spread."""
MAX_ENTRIES = 2_000_000


@dataclass
class LocalFile:
    """One regular file to stage: where it is, free of links, and where it goes in the scratch directory."""

    root: RootDir
    parts: List[str]
    place: List[str]
    shown: str
    """How messages call it: the input's URL and what is below it."""
    private: bool
    """The task can write to it: never a hard link."""
    size: int = 0
    """Bytes when it was listed; only for sharing the work out."""


@dataclass
class Listing:
    """All that one input consists of."""

    files: List[LocalFile] = field(default_factory=list)
    directories: List[List[str]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


class LocalInputs:
    """Reads beneath the roots and writes into one attempt's scratch directory."""

    def __init__(self, *, roots: Roots, scratch: Scratch, copier: Copier) -> None:
        self._roots = roots
        self._scratch = scratch
        self._copier = copier

    def list(self, path: str, place: List[str], *, kind: str, shown: str, private: bool, stop: Stop) -> Listing:
        """Find out what an input is. Raises `StagingError` in the input's name."""
        listing = Listing()
        try:
            with self._roots.find(path) as found:
                self._list(found, place, kind, shown, private, listing, stop)
        except PathRefused as error:
            raise StagingError("input %s %s." % (shown, error.why)) from None
        except (FileNotFoundError, NotADirectoryError):
            raise StagingError(
                "input %s does not exist; check the path, and that it lies on the host of the agent." % shown
            ) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be read" % shown) from error
        return listing

    def _list(
        self, found: Found, place: List[str], kind: str, shown: str, private: bool, listing: Listing, stop: Stop
    ) -> None:
        assert found.info is not None
        mode = found.info.st_mode
        if stat.S_ISDIR(mode):
            self._list_directory(found, place, shown, private, listing, [], stop)
        elif kind == "DIRECTORY":
            raise StagingError("input %s is a DIRECTORY in the task but not on disk; declare it as FILE." % shown)
        elif stat.S_ISREG(mode):
            listing.files.append(LocalFile(found.root, found.parts, place, shown, private, found.info.st_size))
        else:
            raise StagingError("input %s is neither a file nor a directory; only those can be staged." % shown)

    def _list_directory(
        self,
        found: Found,
        place: List[str],
        shown: str,
        private: bool,
        listing: Listing,
        above: List[Tuple[int, int]],
        stop: Stop,
    ) -> None:
        assert found.info is not None
        identity = (found.info.st_dev, found.info.st_ino)
        if identity in above:
            listing.notes.add("%s repeats a directory that it lies in; it was left out." % shown)
            return
        if len(above) >= MAX_DEPTH:
            raise StagingError("input %s is nested more than %d directories deep." % (shown, MAX_DEPTH))
        listing.directories.append(place)
        handle = found.open_dir()
        try:
            names = sorted(os.listdir(handle))
        finally:
            os.close(handle)
        for name in names:
            stop.check()
            if is_temporary(name):
                continue  # an output that is being stored by another attempt
            self._list_entry(found, place, shown, private, listing, [*above, identity], stop, name)

    def _list_entry(
        self,
        found: Found,
        place: List[str],
        shown: str,
        private: bool,
        listing: Listing,
        above: List[Tuple[int, int]],
        stop: Stop,
        name: str,
    ) -> None:
        below = shown.rstrip("/") + "/" + name
        if len(listing.files) + len(listing.directories) >= MAX_ENTRIES:
            raise StagingError("input %s holds more than %d entries; pack it." % (shown, MAX_ENTRIES))
        try:
            inner = self._roots.walk(found.root, [*found.parts, name])
        except (FileNotFoundError, NotADirectoryError):
            listing.notes.add("%s leads to nothing (any more); it was left out." % below)
            return
        except PathRefused as error:
            raise PathRefused("holds '%s', which %s" % (name, error.why)) from None
        try:
            assert inner.info is not None
            if stat.S_ISDIR(inner.info.st_mode):
                self._list_directory(inner, [*place, name], below, private, listing, above, stop)
            elif stat.S_ISREG(inner.info.st_mode):
                size = inner.info.st_size
                listing.files.append(LocalFile(inner.root, inner.parts, [*place, name], below, private, size))
            else:
                listing.notes.add("%s is neither a file nor a directory; it was left out." % below)
        finally:
            inner.close()

    def make_directory(self, place: List[str], shown: str) -> None:
        """Make a directory of the scratch, and its parents. Raises `StagingError`."""
        try:
            with self._scratch.directory(place):
                return
        except OSError as error:
            raise os_fault(error, "input %s could not be staged" % shown) from error

    def stage(self, item: LocalFile, stop: Stop) -> int:
        """Bring one file into the scratch directory; returns its size. Raises `StagingError`."""
        for _ in range(3):
            try:
                return retrying(lambda: self._stage(item, stop), stop)
            except Changed:
                continue
            except PathRefused as error:
                raise StagingError("input %s %s." % (item.shown, error.why)) from None
            except FileNotFoundError:
                raise StagingError("input %s vanished while it was staged." % item.shown) from None
            except OSError as error:
                raise os_fault(error, "input %s could not be staged" % item.shown) from error
        raise StagingError(
            "input %s kept changing while it was copied; submit the task when it is complete." % item.shown
        )

    def stage_all(self, items: Sequence[LocalFile], stop: Stop) -> None:
        """Bring in files of one directory that go into one directory (`together`), both opened once.

        What cannot be done this way is done file by file, which also finds the words for a fault.
        """
        first = items[0]
        left = list(items)
        if len(items) > 1:
            again: List[LocalFile] = []
            try:
                found = self._roots.walk(first.root, first.parts[:-1])
                try:
                    source = found.open_dir()
                finally:
                    found.close()
                try:
                    with self._scratch.directory(first.place[:-1]) as target:
                        while left:
                            stop.check()
                            try:
                                self._bring(left[0], source, left[0].parts[-1], target, stop)
                            except (Changed, PathRefused, OSError):
                                again.append(left[0])
                            del left[0]
                finally:
                    os.close(source)
            except (PathRefused, OSError):
                again += left
            left = again
        for item in left:
            self.stage(item, stop)

    def _stage(self, item: LocalFile, stop: Stop) -> int:
        # `parts` is free of links; a link that has appeared since leads at most to another file beneath the roots.
        found = self._roots.walk(item.root, item.parts)
        try:
            with self._scratch.directory(item.place[:-1]) as target:
                return self._bring(item, found.parent, found.name, target, stop)
        finally:
            found.close()

    def _bring(self, item: LocalFile, source: int, name: str, target: int, stop: Stop) -> int:
        """Bring the file `name` of the directory `source` into the directory `target`; returns its size."""
        handle = open_file(source, name)
        try:
            info = os.fstat(handle)
            mode = copied_mode(info.st_mode, 0o666 if item.private else 0o644)
            shared = not item.private and item.place[0] == "ro"
            if shared and (
                self._clone(handle, target, item.place[-1], mode)
                or self._link(source, name, info, target, item.place[-1])
            ):
                return info.st_size
            with self._scratch.new_file_in(target, item.place[-1], mode) as copy:
                return self._copier.copy(handle, copy, stop)
        finally:
            os.close(handle)

    def _clone(self, handle: int, parent: int, name: str, mode: int) -> bool:
        if not self._copier.may_clone(handle, parent):
            return False
        with self._scratch.new_file_in(parent, name, mode) as target:
            return self._copier.clone(handle, target)

    def _link(self, source: int, name: str, info: os.stat_result, parent: int, link: str) -> bool:
        """Hard-link a file that the task sees read-only, if every user may read it as it is.

        Its mode and owner are the original's and cannot be changed here, so a file that some image's user could
        not read or run is copied, and so is one with set-id bits.
        """
        mode = info.st_mode
        if not mode & stat.S_IROTH or mode & (stat.S_ISUID | stat.S_ISGID):
            return False
        if mode & 0o111 and not mode & stat.S_IXOTH:
            return False
        for _ in range(2):
            try:
                os.link(name, link, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                break
            except FileExistsError:
                self._scratch.clear(parent, link)
            except OSError:
                return False
        else:
            return False
        made = os.stat(link, dir_fd=parent, follow_symlinks=False)
        if (made.st_dev, made.st_ino) == (info.st_dev, info.st_ino):
            return True
        os.unlink(link, dir_fd=parent)
        return False


def together(files: Sequence[LocalFile]) -> Iterator[List[LocalFile]]:
    """Cut a listing into short runs of files that lie in one directory and go into one directory."""
    run: List[LocalFile] = []
    size = 0
    for item in files:
        if run and (len(run) >= MOST or size + item.size > MOST_BYTES or not _beside(run[-1], item)):
            yield run
            run, size = [], 0
        run.append(item)
        size += item.size
    if run:
        yield run


def _beside(one: LocalFile, other: LocalFile) -> bool:
    return one.root is other.root and one.parts[:-1] == other.parts[:-1] and one.place[:-1] == other.place[:-1]
