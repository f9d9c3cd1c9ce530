"""Brings one object of a store into an open file: ranges side by side, each going on where it was cut, verified."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Dict, Iterator, Optional

from ..access import Found
from .connect import HttpSettings
from .faults import StagingError, os_fault
from .s3access import Presigned, presigned
from .s3faults import RENEWAL_PAUSE, Expired, Pauses, Trouble, refusal
from .s3http import Connections, NotTrusted
from .s3sums import COMBINED, Combined, Sum, best_of, sum_of
from .s3wire import Answer, Broken
from .threads import Stop, parallel
from .urls import redact

__all__ = ["Fetcher", "Remote", "Renewer", "verify"]

RANGE = 16 << 20
"""Bytes of one request of a large object."""
WIDTH = 6
"""Requests at a time for one large object."""
REQUESTS = 24
"""Requests at a time of one fetcher, whatever number of objects it is that are fetched."""
_BUFFER = 256 << 10
_SLICE = 0.1
_WORTH = 64 << 10
"""Bytes that an answer must have brought for the count of failures to begin anew: drips do not."""
_ROUNDS = 3
"""Downloads of an object that is replaced, or does not match its checksum."""
_RENEWALS = 2


class _Replaced(Exception):
    """The object is not the one that was looked at."""


@dataclass
class Remote:
    """An object that is to be fetched. Its presigned request may be missing or over: `Source` gives a new one."""

    url: str
    size: Optional[int]
    etag: Optional[str]
    checksum: Dict[str, str]
    get: Optional[Presigned]
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def shown(self) -> str:
        """For messages."""
        return redact(self.url)


class Renewer:
    """Where fresh requests come from."""

    def renew(self, remote: Remote, stop: Stop) -> Found:
        """Look at the object again. Raises `StagingError`."""
        raise NotImplementedError


@dataclass
class _Piece:
    """A range of the object, `end` excluded; None: to its end, wherever that is."""

    begin: int
    end: Optional[int]
    sum: Optional[Sum] = None
    at: int = 0


class Fetcher:
    """Fetches objects for one step of one attempt. Safe in many threads."""

    def __init__(self, *, connections: Connections, renewer: Renewer, settings: HttpSettings, stop: Stop) -> None:
        self._connections = connections
        self._renewer = renewer
        self._settings = settings
        self._stop = stop
        self._room = threading.BoundedSemaphore(REQUESTS)
        self._lock = threading.Lock()
        self._threads = 0

    def fetch(self, remote: Remote, handle: int) -> int:
        """Fill the empty file `handle`; returns its size in bytes. Raises `StagingError`, `Stopped`."""
        why = ""
        for turn in range(_ROUNDS):
            if turn:
                os.ftruncate(handle, 0)
            try:
                return self._whole(remote, handle)
            except _Replaced:
                why = "was replaced while it was being read"
                self._refresh(remote, None, same=False)
            except _Wrong as error:
                why = "does not match its checksum (%s)" % error
        raise StagingError("input %s %s, %d times; try again later." % (remote.shown, why, _ROUNDS), transient=True)

    def _whole(self, remote: Remote, handle: int) -> int:
        known = best_of(remote.checksum)
        size = remote.size
        if size is None or size <= RANGE:
            piece = _Piece(0, size, None if known is None else sum_of(known[0]))
            self._piece(remote, handle, piece)
            size, check = piece.at, piece.sum
        else:
            check = self._ranges(remote, handle, size, None if known is None else known[0])
            if os.fstat(handle).st_size != size:
                raise StagingError(
                    "input %s has another length on disk than the %d bytes that were received." % (remote.shown, size),
                    transient=True,
                )
        if known is not None and check is not None and check.base64() != known[1]:
            raise _Wrong(known[0])
        return size

    def _ranges(self, remote: Remote, handle: int, size: int, name: Optional[str]) -> Optional[Sum]:
        try:
            os.ftruncate(handle, size)
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % remote.shown) from error
        pieces = [
            _Piece(begin, min(begin + RANGE, size), Combined(name) if name in COMBINED and name else None)
            for begin in range(0, size, RANGE)
        ]
        with self._width(min(WIDTH, len(pieces))) as width:
            parallel(
                (partial(self._piece, remote, handle, piece) for piece in pieces), concurrency=width, stop=self._stop
            )
        if name is None:
            return None
        total = sum_of(name)
        if isinstance(total, Combined):
            for piece in pieces:
                assert isinstance(piece.sum, Combined)
                total.append(piece.sum)
        else:  # a digest goes from the beginning to the end, and ranges do not come so
            for data in _read(handle, size, self._stop):
                total.update(data)
        return total

    @contextmanager
    def _width(self, wanted: int) -> Iterator[int]:
        """Of threads for one object, as many as the others leave; the caller's own is one."""
        with self._lock:
            width = max(1, min(wanted, REQUESTS - self._threads))
            self._threads += width
        try:
            yield width
        finally:
            with self._lock:
                self._threads -= width

    # -- one range ---------------------------------------------------------------------------------------------

    def _piece(self, remote: Remote, handle: int, piece: _Piece) -> None:
        pauses = Pauses(self._settings, self._stop)
        renewals = 0
        piece.at = piece.begin
        while True:
            before = piece.at
            used = self._request(remote)
            try:
                self._once(remote, used, handle, piece)
                return
            except Broken as error:
                trouble = Trouble(error.why)
            except Trouble as error:
                trouble = error
            except Expired as error:
                renewals += 1
                if renewals > _RENEWALS:
                    raise StagingError(
                        "input %s could not be read: %s." % (remote.shown, error.why), transient=error.renewing
                    ) from None
                if renewals > 1 and error.renewing:
                    self._stop.wait(RENEWAL_PAUSE)
                self._refresh(remote, used, same=True)
                continue
            except NotTrusted:
                raise StagingError(
                    "input %s could not be read: the certificate of the store is not accepted; "
                    "give the agent its authority (--ca-file)." % remote.shown
                ) from None
            except OSError as error:
                raise os_fault(error, "input %s could not be written" % remote.shown) from error
            if piece.at - before >= _WORTH:
                pauses.reset()
                renewals = 0
            if not pauses.after(trouble):
                raise StagingError(
                    "input %s could not be read: %s (tried %d times)." % (remote.shown, trouble.why, pauses.failures),
                    transient=True,
                )

    def _once(self, remote: Remote, used: Presigned, handle: int, piece: _Piece) -> None:
        headers = dict(used.signed.headers)
        ranged = piece.at > 0 or (piece.end is not None and piece.end != remote.size)
        if ranged:
            headers["range"] = "bytes=%d-%s" % (piece.at, "" if piece.end is None else piece.end - 1)
        if remote.etag:
            headers["if-match"] = remote.etag
        with self._turn(), self._connections.request("GET", used.signed.url, headers) as answer:
            self._check(remote, answer, piece, ranged)
            self._pump(answer, handle, piece)
        if piece.end is not None and piece.at != piece.end:
            raise Trouble("the answer ended after %d of %d bytes" % (piece.at - piece.begin, piece.end - piece.begin))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        while not self._room.acquire(timeout=_SLICE):
            self._stop.check()
        try:
            yield
        finally:
            self._room.release()

    def _check(self, remote: Remote, answer: Answer, piece: _Piece, ranged: bool) -> None:
        if answer.status in (412, 416):
            raise _Replaced
        if answer.status not in (200, 206):
            raise self._refused(remote, answer)
        etag = answer.headers.get("etag")
        if remote.etag and etag and etag.strip('"') != remote.etag.strip('"'):
            raise _Replaced
        if answer.status == 206:
            found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", _range_of(answer))
            if found is None or int(found.group(1)) != piece.at:
                raise Trouble("the store answered with another part than the one asked for")
            if found.group(3) != "*" and remote.size not in (None, int(found.group(3))):
                raise _Replaced
            end: Optional[int] = int(found.group(2)) + 1
        elif ranged:
            raise Trouble("the store answered with the whole object where a part was asked for")
        else:
            end = answer.length
        if piece.end is None and end is not None and answer.status == 200:
            piece.end = end  # nobody knew it before; a later answer must agree
        if end is not None and piece.end is not None and end != piece.end:
            raise Trouble(
                "the store announced %d bytes where %d were asked for" % (end - piece.at, piece.end - piece.at)
            )

    def _refused(self, remote: Remote, answer: Answer) -> Exception:
        fault = refusal(answer)
        if isinstance(fault, StagingError):
            what = "input %s could not be read: %s" % (remote.shown, fault.sentence)
            if answer.status == 404:
                what += "; somebody removed it while it was being staged"
            return StagingError(what + ".", transient=fault.transient)
        return fault

    def _pump(self, answer: Answer, handle: int, piece: _Piece) -> None:
        room = memoryview(bytearray((_BUFFER if piece.end is None else min(_BUFFER, piece.end - piece.at)) or 1))
        patience = self._settings.read_timeout
        since, mark = time.monotonic(), piece.at
        while True:
            self._stop.check()
            count = answer.read_into(room)
            if not count:
                return
            if piece.end is not None and count > piece.end - piece.at:
                raise Trouble("the store sent more bytes than were asked for")
            data = room[:count]
            if piece.sum is not None:
                piece.sum.update(data)
            done = 0
            while done < count:
                done += os.pwrite(handle, data[done:], piece.at + done)
            piece.at += count
            now = time.monotonic()
            if now - since > patience:
                if piece.at - mark < _WORTH:
                    raise Trouble("the store sends too slowly")
                since, mark = now, piece.at

    # -- the request -------------------------------------------------------------------------------------------

    def _request(self, remote: Remote) -> Presigned:
        used = remote.get
        if used is None or not used.is_fresh:
            return self._refresh(remote, used, same=True)
        return used

    def _refresh(self, remote: Remote, used: Optional[Presigned], *, same: bool) -> Presigned:
        """Ask for a new request; of many threads that need it one does. `same`: for the object as it was."""
        with remote.lock:
            if remote.get is not None and remote.get is not used and same:
                return remote.get
            asked = time.monotonic()
            found = self._renewer.renew(remote, self._stop)
            if found.fault is not None:
                raise StagingError("input %s" % found.fault.sentence, transient=found.fault.kind == "passing")
            if found.get is None:
                raise StagingError("input %s is not a file any more." % remote.shown, transient=True)
            changed = found.etag != remote.etag or found.size != remote.size
            if changed and same:
                raise _Replaced
            remote.size, remote.etag, remote.checksum = found.size, found.etag, found.checksum
            remote.get = presigned(found.get, asked)
            return remote.get


def verify(shown: str, handle: int, found: Found, stop: Stop) -> None:
    """Compare a file that came another way with what is known of the object. Raises `StagingError`."""
    size = os.fstat(handle).st_size
    if found.size is not None and size != found.size:
        raise StagingError("input %s has %d bytes where %d were announced." % (shown, size, found.size), transient=True)
    known = best_of(found.checksum)
    if known is not None:
        total = sum_of(known[0])
        for data in _read(handle, size, stop):
            total.update(data)
        if total.base64() != known[1]:
            raise StagingError("input %s does not match its checksum (%s)." % (shown, known[0]), transient=True)


class _Wrong(Exception):
    """The bytes do not match the checksum of this name."""


def _range_of(answer: Answer) -> str:
    return answer.headers.get("content-range", "").strip()


def _read(handle: int, size: int, stop: Stop) -> Iterator[memoryview]:
    room = memoryview(bytearray(_BUFFER))
    at = 0
    while at < size:
        stop.check()
        count = os.preadv(handle, [room], at)
        if not count:
            return
        yield room[:count]
        at += count
