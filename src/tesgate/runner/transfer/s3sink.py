"""Outputs to object stores: large files as multipart uploads before the lease, small ones by one PUT under it.

An upload is invisible until the gateway completes it. Directories are not stored: a store has none, and whoever lists
it sees those that hold something.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union
from urllib.parse import unquote_to_bytes

from ..access import Completion, Fault, Upload
from ..plan import Output
from .base import Entry, Item
from .connect import HttpSettings
from .faults import LeaseLost, PathRefused, StagingError
from .folder import Folder, State, state_of
from .s3access import Access, Presigned
from .s3http import Connections
from .s3put import Changed, NoLease, Sender, checked, fault_of
from .s3small import ObjectFolder, SmallFile, SmallSender, as_changed, fault_with
from .s3sums import sum_of
from .s3wire import FilePart
from .threads import Stop, parallel
from .urls import printable, redact
from .view import View

__all__ = ["SINGLE", "ObjectSink", "key_of"]

SINGLE = 16 << 20
"""Bytes up to which a file is one PUT, under the lease."""
PARTS_AT_ONCE = 4
"""Parts of one file that are sent at a time, and the most that are asked for at once."""
ABORTED_AT_ONCE = 96
"""Uploads in one question."""
_MARK = "s3-upload:"
_KEY_BYTES = 1024

_log = logging.getLogger(__name__)


def key_of(url: str) -> Tuple[str, str]:
    """Return bucket and key, percent signs decoded once. Raises `PathRefused`."""
    rest = url.partition("://")[2]
    bucket, _, path = rest.partition("/")
    try:
        key = unquote_to_bytes(path).decode("utf-8")
    except UnicodeError:
        raise PathRefused("has a key that is not UTF-8, as names in object stores are; rename it") from None
    if not bucket:
        raise PathRefused("names no bucket; write s3://BUCKET/KEY")
    if "\0" in key or len(key.encode("utf-8")) > _KEY_BYTES:
        raise PathRefused("has a key that holds a NUL or is longer than %d bytes" % _KEY_BYTES)
    return bucket, key


@dataclass
class ObjectItem(Item):
    """One file. `upload` is there for a large one, from `begin` on."""

    sink: ObjectSink = field(repr=False)
    upload: Optional[Upload] = None
    etags: List[str] = field(default_factory=list)
    checksums: List[str] = field(default_factory=list)
    state: Optional[State] = None
    """Of the file, when it was sent (or looked at, to be sent later)."""

    @property
    def trace(self) -> Optional[str]:
        """URL and id of the upload."""
        if self.upload is None:
            return None
        return _MARK + json.dumps({"url": self.upload.url, "id": self.upload.id})

    def begin(self, stop: Stop) -> None:
        """Begin the upload of a large file, so that its id can be journalled. Raises `StagingError`."""
        self.sink.begin(self, stop)

    def small_files(self, view: View, stop: Stop) -> Iterator[SmallFile]:
        """This one, read. Raises `StagingError`, `Stopped`."""
        assert self.state is not None
        small = SmallFile(self.entry.path, self.entry.url, self.state, partial(_opened, self, view), self._stored)
        try:
            with _opened(self, view) as handle:
                small.read(handle, stop)
        except (Changed, PathRefused, OSError) as error:
            raise fault_with(self.entry.path, error) from None
        yield small

    def _stored(self) -> None:
        self.done = True


class ObjectSink:
    """One run of stage-out to object stores."""

    def __init__(self, *, access: Access, settings: HttpSettings, width: int) -> None:
        """`width`: single PUTs at a time."""
        self._access = access
        self._settings = settings
        self._width = width

    def target(self, output: Output) -> str:
        """Bucket and key, as they are compared with others."""
        bucket, key = key_of(output.url)
        if not key.strip("/") and output.type != "DIRECTORY":
            raise PathRefused("names no key; write s3://BUCKET/KEY")
        return "s3://%s/%s" % (bucket, key)

    def place_directory(self, entry: Entry) -> Optional[Item]:
        """None: a store has no directories."""
        return None

    def place(self, entry: Entry, tag: str, number: int) -> ObjectItem:
        """Check its name. Raises `StagingError`."""
        try:
            key_of(entry.url)
        except PathRefused as error:
            raise _unfit(entry.path, entry.url, error) from None
        return ObjectItem(entry, self)

    @property
    def largest(self) -> int:
        """See `base.FolderSink`."""
        return SINGLE

    def place_folder(self, folder: Folder) -> ObjectFolder:
        """Check its names. Raises `StagingError`."""
        for name, _ in folder:
            try:
                key_of(folder.url_of(name))
            except PathRefused as error:
                raise _unfit(folder.path_of(name), folder.url_of(name), error) from None
        return ObjectFolder(folder.entry, folder)

    # -- before the lease --------------------------------------------------------------------------------------

    def begin(self, item: ObjectItem, stop: Stop) -> None:
        """See `ObjectItem.begin`."""
        size = _size(item.entry)
        if size <= SINGLE:
            return
        upload = self._access.begin(Upload(url=item.entry.url, size=size), stop)
        if isinstance(upload, Fault):
            raise fault_of(_shown(item), upload)
        item.upload = upload

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Send the parts of a large file; of a small one only its state is noted. Raises `StagingError`, `Stopped`."""
        if isinstance(item, ObjectFolder):
            item.look(view, stop)
            return
        assert isinstance(item, ObjectItem)
        try:
            with _opened(item, view) as handle:
                state = state_of(os.fstat(handle))
                item.size = state[1]
                if item.upload is not None:
                    if item.size != item.upload.size:
                        raise Changed
                    with self._sending(stop) as sender:
                        self._send_parts(item, item.upload, handle, sender, stop)
                    if state_of(os.fstat(handle)) != state:
                        raise Changed
                item.state = state
        except NoLease:
            raise StagingError(
                "output %s: the gateway wants a lease too early." % _shown(item), transient=True
            ) from None
        except PathRefused as error:
            raise StagingError("output %s %s." % (_shown(item), error.why)) from None
        except (Changed, OSError) as error:
            raise fault_with(item.entry.path, error) from error

    def _send_parts(self, item: ObjectItem, upload: Upload, handle: int, sender: Sender, stop: Stop) -> None:
        if upload.part_size <= 0:
            raise StagingError("output %s: the gateway gave no size of parts." % _shown(item), transient=True)
        count = -(-upload.size // upload.part_size)
        item.etags, item.checksums = [""] * count, [""] * count if upload.algorithm else []
        batch = max(1, min(PARTS_AT_ONCE, count // PARTS_AT_ONCE))
        numbers = [list(range(first, min(first + batch, count + 1))) for first in range(1, count + 1, batch)]
        parallel(
            (partial(self._send_some, item, upload, handle, some, sender, stop) for some in numbers),
            concurrency=min(PARTS_AT_ONCE, len(numbers)),
            stop=stop,
        )

    def _send_some(
        self, item: ObjectItem, upload: Upload, handle: int, numbers: List[int], sender: Sender, stop: Stop
    ) -> None:
        """Send some parts one after the other, asked for together."""
        starts = [(number - 1) * upload.part_size for number in numbers]
        pieces = [FilePart(handle, start, min(upload.part_size, upload.size - start)) for start in starts]
        sizes = [piece.size for piece in pieces]
        sums: List[str] = []
        if upload.algorithm is not None:
            for piece in pieces:
                total = sum_of(upload.algorithm)
                checked(handle, piece.offset, piece.size, [total], stop)
                sums.append(total.base64())
        signed = self._access.parts(upload, numbers, sums, sizes, stop)
        for index, (number, piece, made) in enumerate(zip(numbers, pieces, signed)):
            if isinstance(made, Fault):
                raise fault_of(_shown(item), made)
            again = partial(self._part_again, upload, number, sums[index : index + 1], piece.size, stop)
            item.etags[number - 1] = sender.send(_shown(item), piece, made, again, stop.check)
            if sums:
                item.checksums[number - 1] = sums[index]

    def _part_again(
        self, upload: Upload, number: int, sums: List[str], size: int, stop: Stop
    ) -> Union[Presigned, Fault]:
        return self._access.parts(upload, [number], sums, [size], stop)[0]

    # -- under the lease ---------------------------------------------------------------------------------------

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Complete the uploads, and PUT the small files. See `base.Sink`."""
        todo = [item for item in items if isinstance(item, (ObjectItem, ObjectFolder)) and not item.done]
        large = [item for item in todo if isinstance(item, ObjectItem) and item.upload is not None]
        small = [item for item in todo if isinstance(item, ObjectFolder) or item.upload is None]
        for item in large:
            self._unchanged(item, view)

        def check() -> None:
            stop.check()
            if lease() <= 0:
                raise LeaseLost("the publish lease ran out before all outputs were stored")

        try:
            parallel(
                (partial(self._complete, item, item.upload, check, stop) for item in large if item.upload is not None),
                concurrency=PARTS_AT_ONCE,
                stop=stop,
            )
            if small:
                files = chain.from_iterable(item.small_files(view, stop) for item in small)
                with self._sending(stop, lease) as sender:
                    SmallSender(access=self._access, sender=sender, check=check, width=self._width, stop=stop).send(
                        files
                    )
                for sent in small:
                    sent.done = True
        except NoLease:
            raise LeaseLost("the gateway says that the publish lease is not held any more") from None

    @staticmethod
    def _unchanged(item: ObjectItem, view: View) -> None:
        try:
            with _opened(item, view) as handle:
                if state_of(os.fstat(handle)) != item.state:
                    raise Changed
        except (Changed, PathRefused, OSError) as error:
            raise fault_with(item.entry.path, error) from None

    def _complete(self, item: ObjectItem, upload: Upload, check: Callable[[], None], stop: Stop) -> None:
        check()
        completion = Completion(
            url=upload.url, id=upload.id, etags=item.etags, checksums=item.checksums, size=upload.size
        )
        fault = self._access.complete(completion, stop)
        if fault is not None:
            error = fault_of(_shown(item), fault)
            # The upload, or a part of it, is gone: what was sent must be sent anew, by another attempt.
            if isinstance(error, StagingError) and fault.kind == "missing":
                error.transient = True
            raise error
        item.done = True

    # -- afterwards --------------------------------------------------------------------------------------------

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Abort uploads. One that cannot be is left to the gateway's own sweep."""
        uploads: List[Upload] = []
        for trace in traces:
            if trace.startswith(_MARK):
                try:
                    known = json.loads(trace[len(_MARK) :])
                    uploads.append(Upload(url=known["url"], id=known["id"]))
                except (ValueError, KeyError, TypeError):
                    continue
        for begin in range(0, len(uploads), ABORTED_AT_ONCE):
            why = self._access.abort(uploads[begin : begin + ABORTED_AT_ONCE], stop)
            if why is not None:
                _log.warning("uploads of outputs are left to the gateway's sweep: %s", why)
                break
        return []

    @contextmanager
    def _sending(self, stop: Stop, lease: Optional[Callable[[], float]] = None) -> Iterator[Sender]:
        connections = Connections(settings=self._settings, stop=stop)
        try:
            yield Sender(connections=connections, settings=self._settings, stop=stop, lease=lease)
        finally:
            connections.close()


def _shown(item: Item) -> str:
    return printable(item.entry.path)


def _size(entry: Entry) -> int:
    return 0 if entry.node.info is None else entry.node.info.st_size


@contextmanager
def _opened(item: Item, view: View) -> Iterator[int]:
    """Open the file of an item. Raises `Changed` where another one is in its place, `PathRefused`, OSError."""
    with as_changed(), view.opened(item.entry.node) as (_, _, handle):
        yield handle


def _unfit(path: str, url: str, error: PathRefused) -> StagingError:
    return StagingError("output %s: its url %s %s." % (printable(path), redact(url), error.why))
