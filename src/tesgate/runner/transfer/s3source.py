"""Inputs from object stores: what each URL is, one object or a directory of them, and where DRS leads."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..access import Fault, Found, ListQuestion, Page
from ..plan import Input
from .base import Source, Staging, Storage
from .connect import HttpSettings
from .directories import Directories
from .faults import PathRefused, StagingError, os_fault
from .http import Downloader
from .logins import can_be_sent
from .policy import AddressPolicy
from .s3access import Access, ahead, presigned
from .s3http import Connections
from .s3object import Fetcher, Remote, Renewer, verify
from .scratch import Scratch
from .threads import Stop, parallel
from .urls import printable, redact, scheme

__all__ = ["ObjectSource"]

LOOKED_AT_ONCE = 256
"""URLs in one question: an answer holds a presigned request for each."""
KEPT_SIGNED = 4096
"""Requests that are held until they are used; with more inputs the later ones are asked for again, in batches."""
PAGE = 500
_NAME_BYTES = 255


class ObjectSource(Renewer):
    """One run of stage-in from object stores."""

    def __init__(
        self,
        *,
        access: Access,
        scratch: Scratch,
        stop: Stop,
        settings: HttpSettings,
        urls: Sequence[str],
        others: Mapping[str, Storage],
        policy: AddressPolicy,
        width: int,
    ) -> None:
        """`urls`: what will be looked at, to ask for many at once. `width`: small objects of a directory at a time.

        `others`: by scheme, what serves where a DRS id leads; `policy`: for those that lead to the web.
        """
        self._access = access
        self._scratch = scratch
        self._stop = stop
        self._width = width
        self._others = others
        self._policy = policy
        self._settings = settings
        self._downloader: Optional[Downloader] = None
        self._sources: Dict[int, Source] = {}
        self._lock = threading.Lock()
        self._signing = threading.Lock()
        self._waiting: OrderedDict[str, None] = OrderedDict.fromkeys(urls)
        self._looked: Dict[str, Tuple[float, Found]] = {}
        self._signed = 0
        self._unsigned: OrderedDict[int, Remote] = OrderedDict()
        self._connections = Connections(settings=settings, stop=stop)
        self._fetcher = Fetcher(connections=self._connections, renewer=self, settings=settings, stop=stop)

    def close(self) -> None:
        self._connections.close()
        if self._downloader is not None:
            self._downloader.close()
        for source in self._sources.values():
            source.close()

    # -- what it is --------------------------------------------------------------------------------------------

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        """See `base.Source`; raises `StagingError` where there is no such object."""
        asked, found = self._look(item.url or "")
        return self._staging(item, asked, found, place)

    def _look(self, url: str) -> Tuple[float, Found]:
        """Ask about a URL and, in the same question, about others that will be looked at."""
        with self._lock:
            known = self._looked.pop(url, None)
            if known is not None:
                return known
            batch = [url]
            self._waiting.pop(url, None)
            while self._waiting and len(batch) < LOOKED_AT_ONCE:
                batch.append(self._waiting.popitem(last=False)[0])
            asked, found = self._access.look(batch, self._stop)
            for other, each in zip(batch[1:], found[1:]):
                self._looked[other] = (asked, each)
            return asked, found[0]

    def _staging(self, item: Input, asked: float, found: Found, place: List[str]) -> Staging:
        if found.fault is not None:
            raise fault_of(found.fault)
        if found.kind == "elsewhere":
            return self._elsewhere(item, found, place)
        if found.kind == "directory" or item.type == "DIRECTORY":
            return Staging(calls=[partial(self._directory, item, place, found.kind)])
        remote = self._remote(asked, found)
        return Staging(waiting=[partial(self._one, item, remote, place)])

    def _remote(self, asked: float, found: Found) -> Remote:
        remote = Remote(found.url, found.size, found.etag, found.checksum, None)
        if found.get is not None:
            self._signed += 1
            if self._signed <= KEPT_SIGNED:
                remote.get = presigned(found.get, asked)
            else:
                with self._lock:
                    self._unsigned[id(remote)] = remote
        return remote

    def _elsewhere(self, item: Input, found: Found, place: List[str]) -> Staging:
        """Stage what a DRS id leads to in its place."""
        there = found.moved_to or ""
        if scheme(there) in ("http", "https"):
            return Staging(calls=[partial(self._download, item, found, place)])
        storage = self._others.get(scheme(there) or "")
        if storage is None:
            raise StagingError(
                "input %s leads to %s, which this runner does not serve; use another access method of the object."
                % (redact(item.url or ""), redact(there))
            )
        moved = replace(item, url=there)
        storage.check_input(moved)
        with self._lock:
            if id(storage) not in self._sources:
                self._sources[id(storage)] = storage.source(self._scratch, self._stop)
            source = self._sources[id(storage)]

        def all_calls(stop: Stop) -> List[str]:
            staging = source.look(moved, place, stop)
            notes = [note for call in (*staging.calls, *staging.waiting) for note in call(stop)]
            with self._scratch.directory(place[:-1]) as parent:
                handle = os.open(place[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                verify(redact(item.url or ""), handle, found, stop)
            finally:
                os.close(handle)
            return [*staging.notes, *notes]

        return Staging(calls=[all_calls])

    def _download(self, item: Input, found: Found, place: List[str], stop: Stop) -> List[str]:
        shown = redact(item.url or "")
        if not can_be_sent(found.headers):
            raise StagingError(
                "input %s leads to a URL with headers that cannot be sent; tell its server's operator." % shown
            )
        try:
            with self._scratch.new_file(place, _mode(item)) as handle:
                notes = self._web().download(found.moved_to or "", handle, found.headers)[1]
                verify(shown, handle, found, self._stop)
                return notes
        except PathRefused as error:
            raise StagingError("input %s %s." % (shown, error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % shown) from error

    def _web(self) -> Downloader:
        with self._lock:
            if self._downloader is None:
                self._downloader = Downloader(policy=self._policy, settings=self._settings, stop=self._stop)
            return self._downloader

    def renew(self, remote: Remote, stop: Stop) -> Found:
        """See `Renewer`."""
        return self._access.look([remote.url], stop)[1][0]

    def _sign(self, remote: Remote) -> None:
        """Ask for the request of one that has none, and of those that come next, in one question of all threads."""
        with self._signing:
            if remote.get is not None:
                return
            with self._lock:
                batch = [remote]
                self._unsigned.pop(id(remote), None)
                while self._unsigned and len(batch) < LOOKED_AT_ONCE:
                    batch.append(self._unsigned.popitem(last=False)[1])
            asked, found = self._access.look([each.url for each in batch], self._stop)
            for one, each in zip(batch, found):
                # What is otherwise now has none: who fetches it asks again, and says what is wrong.
                if each.fault is None and each.get is not None and (each.etag, each.size) == (one.etag, one.size):
                    one.get = presigned(each.get, asked)

    # -- one object --------------------------------------------------------------------------------------------

    def _one(self, item: Input, remote: Remote, place: List[str], stop: Stop) -> List[str]:
        try:
            with self._scratch.new_file(place, _mode(item)) as handle:
                self._fetch(remote, handle)
        except PathRefused as error:
            raise StagingError("input %s %s." % (remote.shown, error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % remote.shown) from error
        return []

    def _fetch(self, remote: Remote, handle: int) -> None:
        if remote.size != 0:
            if remote.get is None:
                self._sign(remote)
            self._fetcher.fetch(remote, handle)
        remote.get = None

    # -- a directory -------------------------------------------------------------------------------------------

    def _directory(self, item: Input, place: List[str], kind: str, stop: Stop) -> List[str]:
        url = item.url or ""
        listed = _Listed()
        directories = Directories(self._scratch)
        try:
            with self._scratch.directory(place):
                pass
            parallel(self._calls(item, url, place, directories, listed), concurrency=self._width, stop=self._stop)
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(url), error.why)) from None
        except NotADirectoryError:
            raise StagingError("input %s is a directory where another input has put a file." % redact(url)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % redact(url)) from error
        finally:
            directories.close()
        if not listed.count and kind == "file":
            raise StagingError(
                "input %s is one object and no directory; declare it as a FILE, or name the directory." % redact(url)
            )
        return listed.notes

    def _calls(
        self, item: Input, url: str, place: List[str], directories: Directories, listed: _Listed
    ) -> Iterator[Callable[[], None]]:
        """Yield one call for each object; no more than two pages of them are held."""
        for asked, page in ahead(self._pages(url), self._stop):
            for found, name in zip(page.objects, page.names):
                listed.count += 1
                parts = _components(url, name)
                if name.endswith("/") or not name:
                    yield partial(self._marker, url, name, place + parts, directories)
                elif found.kind == "elsewhere":
                    yield partial(self._moved, item, found, place + parts, listed)
                else:
                    get = None if found.get is None else presigned(found.get, asked)
                    remote = Remote(found.url, found.size, found.etag, found.checksum, get)
                    yield partial(self._member, item, remote, name, place + parts, directories)

    def _pages(self, url: str) -> Iterator[Tuple[float, Page]]:
        after: Optional[str] = None
        while True:
            asked, page = self._access.page(ListQuestion(url=url, after=after, limit=PAGE), self._stop)
            if isinstance(page, Fault):
                raise fault_of(page)
            yield asked, page
            if page.after is None:
                return
            if page.after == after:
                raise StagingError("input %s: the listing does not come to its end." % redact(url), transient=True)
            after = page.after

    def _marker(self, url: str, name: str, parts: List[str], directories: Directories) -> None:
        with _clash(url, name), directories.opened(parts):
            pass

    def _member(self, item: Input, remote: Remote, name: str, parts: List[str], directories: Directories) -> None:
        with _clash(item.url or "", name), directories.opened(parts[:-1]) as parent:
            with self._scratch.new_file_in(parent, parts[-1], _mode(item)) as handle:
                self._fetch(remote, handle)

    def _moved(self, item: Input, found: Found, parts: List[str], listed: _Listed) -> None:
        one = replace(item, type="FILE", url=found.url)
        staging = self._elsewhere(one, found, parts)
        for call in (*staging.calls, *staging.waiting):
            listed.notes.extend(call(self._stop))
        listed.notes.extend(staging.notes)


@dataclass
class _Listed:
    """What was found in a directory."""

    count: int = 0

    def __post_init__(self) -> None:
        self.notes: List[str] = []


@contextmanager
def _clash(url: str, name: str) -> Iterator[None]:
    """Translate what happens where one name is a file and a directory; the store allows it, no file system does."""
    try:
        yield
    except (PathRefused, NotADirectoryError, IsADirectoryError, FileExistsError):
        raise StagingError(
            "input %s holds %s both as an object and as a directory of others, or another input is there; "
            "rename one of them." % (redact(url), _quoted(name))
        ) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StagingError("input %s: a symbolic link is where %s goes." % (redact(url), _quoted(name))) from None
        raise


def _components(url: str, name: str) -> List[str]:
    """Split a key below a listed one; refuse what is no file name. The last ``/`` of a marker is none of it."""
    parts = name[:-1].split("/") if name.endswith("/") else name.split("/")
    if parts == [""]:
        return []  # the directory's own marker
    try:
        sizes = [len(part.encode("utf-8")) for part in parts]
    except UnicodeEncodeError:
        sizes = [_NAME_BYTES + 1]
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        why = "has a component that is empty, '.', '..' or holds a NUL"
    elif max(sizes) > _NAME_BYTES:
        why = "has a component that is longer than %d bytes, or is no text" % _NAME_BYTES
    else:
        return parts
    raise StagingError(
        "input %s holds the key %s, which %s: no file can be called so; rename it or list the other keys as inputs."
        % (redact(url), _quoted(name), why)
    )


def _quoted(name: str) -> str:
    return "'%s'" % printable(name[:120]).replace("\0", "\\0").encode("utf-8", "replace").decode("utf-8")


def _mode(item: Input) -> int:
    return 0o666 if item.writable else 0o644


def fault_of(fault: Fault) -> StagingError:
    """The error of an input that has no answer."""
    return StagingError("input %s" % fault.sentence, transient=fault.kind == "passing")
