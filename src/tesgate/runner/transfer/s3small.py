"""Small files to object stores: one PUT each, under the publish lease, signed in batches and one batch ahead."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Callable, ContextManager, Iterator, List, Optional, Union

from ..access import Fault, StoreQuestion
from ..report import OutputFile
from .base import Item
from .faults import PathRefused, StagingError, os_fault
from .folder import Folder, State, state_of
from .s3access import Access, Presigned, ahead
from .s3put import Changed, Sender, checked, fault_of
from .s3sums import CRC32, sum_of
from .s3wire import FilePart
from .threads import Stop, parallel
from .urls import listed, printable
from .view import View

__all__ = ["ObjectFolder", "SmallFile", "SmallSender", "as_changed", "fault_with"]

HELD = 32 << 10
"""Bytes up to which a file is read once and held until it is sent."""
BATCH = 96
"""Single PUTs that are asked for at once. Two batches are held."""
FIRST = 8
"""Those of the first batch, so that sending begins soon; each further one is twice as large."""


@dataclass
class SmallFile:
    """One file that is to be sent."""

    path: str
    url: str
    state: State
    opened: Callable[[], ContextManager[int]]
    """Opens it anew. Raises `Changed`, `PathRefused`, OSError."""
    stored: Callable[[], None]
    """Told when it is."""
    body: Optional[bytes] = field(default=None, repr=False)
    checksum: str = ""
    presigned: Optional[Presigned] = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """For messages."""
        return printable(self.path)

    @property
    def question(self) -> StoreQuestion:
        """What the gateway is asked."""
        return StoreQuestion(url=self.url, size=self.state[1], checksum={CRC32: self.checksum})

    def read(self, handle: int, stop: Stop) -> None:
        """Read it for its checksum. Raises `Changed`, `Stopped`, OSError."""
        if state_of(os.fstat(handle)) != self.state:
            raise Changed
        size = self.state[1]
        total = sum_of(CRC32)
        if size <= HELD:
            self.body = os.pread(handle, HELD + 1, 0)
            if len(self.body) != size:
                raise Changed
            total.update(self.body)
        else:
            checked(handle, 0, size, [total], stop)
        self.checksum = total.base64()


@dataclass
class ObjectFolder(Item):
    """Small files of one directory, each visible as soon as it is sent."""

    folder: Folder = field(repr=False)

    def __post_init__(self) -> None:
        self._stored = bytearray(len(self.folder))
        self.size = sum(size for _, (_, size, _) in self.folder)

    def files(self) -> Iterator[OutputFile]:
        """See `Item`."""
        for name, (_, size, _) in self.folder:
            yield OutputFile(listed(self.folder.url_of(name)), printable(self.folder.path_of(name)), size)

    def look(self, view: View, stop: Stop) -> None:
        """Open each, as long as nothing is visible yet. Raises `StagingError`, `Stopped`."""
        path = self.entry.path
        try:
            ours = view.is_ours(self.entry.node)
            with as_changed(), view.directory(self.entry.node) as parent:
                for name, state in self.folder:
                    stop.check()
                    path = self.folder.path_of(name)
                    with self.folder.opened(parent, name, ours=ours) as handle:
                        if state_of(os.fstat(handle)) != state:
                            raise Changed
        except (Changed, PathRefused, OSError) as error:
            raise fault_with(path, error) from error

    def small_files(self, view: View, stop: Stop) -> Iterator[SmallFile]:
        """Those that are not stored yet, read. Raises `StagingError`, `Stopped`."""
        path = self.entry.path
        try:
            ours = view.is_ours(self.entry.node)
            with as_changed(), view.directory(self.entry.node) as parent:
                for index, (name, state) in enumerate(self.folder):
                    if self._stored[index]:
                        continue
                    stop.check()
                    path = self.folder.path_of(name)
                    small = SmallFile(
                        path=path,
                        url=self.folder.url_of(name),
                        state=state,
                        opened=partial(self._opened, view, name),
                        stored=partial(self._stored.__setitem__, index, 1),
                    )
                    with self.folder.opened(parent, name, ours=ours) as handle:
                        small.read(handle, stop)
                    yield small
        except (Changed, PathRefused, OSError) as error:
            raise fault_with(path, error) from error

    @contextmanager
    def _opened(self, view: View, name: str) -> Iterator[int]:
        ours = view.is_ours(self.entry.node)
        with as_changed(), view.directory(self.entry.node) as parent:
            with self.folder.opened(parent, name, ours=ours) as handle:
                yield handle


class SmallSender:
    """Sends small files of all outputs, some at a time, under one lease."""

    def __init__(self, *, access: Access, sender: Sender, check: Callable[[], None], width: int, stop: Stop) -> None:
        """`check` raises where the lease is over; `width`: files at a time."""
        self._access = access
        self._sender = sender
        self._check = check
        self._width = width
        self._stop = stop

    def send(self, files: Iterator[SmallFile]) -> None:
        """Send them all. Raises `StagingError`, `Stopped`, `NoLease`, what the check raises."""
        parallel(self._calls(files), concurrency=self._width, stop=self._stop)

    def _calls(self, files: Iterator[SmallFile]) -> Iterator[Callable[[], None]]:
        """Yield a call for each file; the next requests are asked for while these are sent."""
        for ready in ahead(self._signed(files), self._stop):
            for small in ready:
                yield partial(self._put, small)

    def _signed(self, files: Iterator[SmallFile]) -> Iterator[List[SmallFile]]:
        count = FIRST
        while True:
            self._check()
            batch = list(islice(files, count))
            if not batch:
                return
            made = self._access.store([small.question for small in batch], self._stop)
            for small, each in zip(batch, made):
                if isinstance(each, Fault):
                    raise fault_of(small.shown, each)
                small.presigned = each
            yield batch
            count = min(2 * count, BATCH)

    def _put(self, small: SmallFile) -> None:
        assert small.presigned is not None
        again = partial(self._again, small)
        try:
            if small.body is not None:
                self._sender.send(small.shown, small.body, small.presigned, again, self._check)
            else:
                with small.opened() as handle:
                    body = FilePart(handle, 0, small.state[1])
                    self._sender.send(small.shown, body, small.presigned, again, self._check)
                    if state_of(os.fstat(handle)) != small.state:
                        raise Changed
        except (Changed, PathRefused, OSError) as error:
            raise fault_with(small.path, error) from error
        small.stored()

    def _again(self, small: SmallFile) -> Union[Presigned, Fault]:
        return self._access.store([small.question], self._stop)[0]


@contextmanager
def as_changed() -> Iterator[None]:
    """Translate into `Changed` what opening says where another file, or none, is in a place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise Changed from None
        raise


def fault_with(path: str, error: Exception) -> Exception:
    """The error of an output that could not be read or sent."""
    if isinstance(error, OSError):
        return os_fault(error, "output %s could not be stored" % printable(path))
    return StagingError(
        "output %s changed while it was stored: something still writes to it." % printable(path), transient=True
    )
