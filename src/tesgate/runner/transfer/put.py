"""Stores outputs on web servers, one PUT for each file, under the publish lease: a PUT is visible when it ends."""

from __future__ import annotations

import base64
import os
import random
import re
from functools import partial
from typing import Callable, Dict, Iterator, List, Optional, Sequence
from urllib.parse import unquote

import urllib3

from ..plan import Output
from .answers import WORTH_RETRYING, Passing, Route, faults, retry_after
from .base import Entry, Item
from .connect import HttpSettings, make_pools
from .faults import LeaseLost, PathRefused, StagingError, os_fault
from .patterns import has_braces
from .policy import AddressPolicy
from .threads import Stop, parallel
from .urls import parted, printable, redact
from .view import View

__all__ = ["WebSink"]

_CHUNK = 256 << 10
_LEAST_PATIENCE = 0.05
_REPEATING = frozenset((307, 308))
"""Redirects that say to send the same again. After the others a client would go on with a GET."""
_MEANING = {
    401: "it wants other credentials; an administrator can name them (credentials)",
    403: "writing there is not allowed, or the URL has expired",
    404: "there is no such place; check the URL",
    405: "it does not take files by PUT there; check the URL",
    409: "the directory above it is missing, or something is in the way; make it, or check the URL",
    411: "it did not understand the length; check the server",
    413: "the file is too large for it; let the task pack or split it",
    501: "it does not take files by PUT; use another URL",
}


class WebSink:
    """Outputs below ``http(s)://`` URLs. Directories are what lies in them; a query goes with each file.

    `headers_for` asks for the headers of named credentials, in a thread; they are held in memory only.
    """

    def __init__(
        self,
        *,
        policy: AddressPolicy,
        settings: HttpSettings,
        concurrency: int,
        headers_for: Callable[[str, Stop], Dict[str, str]],
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._concurrency = concurrency
        self._headers_for = headers_for
        self._declared: Dict[str, str] = {}

    def target(self, output: Output) -> str:
        """The query first, so that names of what is below can follow the path."""
        path, rest = parted(output.url)
        target = "%s %s" % (rest.partition("#")[0], path)
        if output.login:
            self._declared[target.rstrip("/")] = output.url
            if _is_brace_pattern(path.rpartition("/")[2]):
                self._declared[target.rpartition("/")[0]] = output.url  # what it matches is stored beside it
        return target

    def place_directory(self, entry: Entry) -> Optional[Item]:
        """HTTP has no directories of its own."""
        return None

    def place(self, entry: Entry, tag: str, number: int) -> Item:
        """Nothing is to be found out, and nothing is left behind by a request that was cut off."""
        return Item(entry)

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Nothing can be brought there invisibly."""

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Send every file that is not done; what the lease stops to cover is cut off between two chunks."""

        def patience() -> float:
            # A server that reads nothing for a while must not find the end of a body after the lease.
            return min(self._settings.read_timeout, max(lease(), _LEAST_PATIENCE))

        pools = make_pools(self._policy, stop, self._settings, patience=patience)
        try:
            parallel(
                (partial(self._store, pools, item, view, lease, stop) for item in items if not item.done),
                concurrency=min(self._concurrency, max(1, len(items))),
                stop=stop,
            )
        finally:
            pools.clear()

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Nothing is ever left behind."""
        return []

    def _store(
        self, pools: urllib3.PoolManager, item: Item, view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        shown = printable(item.entry.path)
        failures, pause = 0, self._settings.first_pause
        while True:
            stop.check()
            try:
                # From the user's own URL on each time: what it leads to may expire. A PUT may be repeated.
                item.size = self._send(pools, item.entry, view, lease, stop)
                item.done = True
                return
            except Passing as error:
                failures += 1
                if failures >= self._settings.tries:
                    raise StagingError(
                        "output %s could not be stored at %s: %s (tried %d times)."
                        % (shown, redact(item.entry.url), error.why, failures),
                        transient=True,
                    ) from None
                stop.wait(max(error.pause, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 2, self._settings.max_pause)
            except PathRefused as error:
                raise StagingError("output %s %s." % (shown, error.why)) from None
            except OSError as error:
                raise os_fault(error, "output %s could not be read" % shown) from error

    def _send(
        self, pools: urllib3.PoolManager, entry: Entry, view: View, lease: Callable[[], float], stop: Stop
    ) -> int:
        what = "output %s at %s" % (printable(entry.path), redact(entry.url))
        route = Route(entry.url, what, self._headers(entry, stop), self._settings.max_redirects)
        with view.opened(entry.node) as (_, _, source):
            size = os.fstat(source).st_size
            while True:
                with faults(what, stop):
                    response = self._request(pools, route, size, _Body(source, entry, lease, stop))
                    try:
                        location = response.headers.get("Location")
                        if response.status not in _REPEATING or not location:
                            self._judge(entry, response)
                            return size
                    finally:
                        response.close()
                route.follow(location)

    def _headers(self, entry: Entry, stop: Stop) -> Dict[str, str]:
        """Named credentials are asked for by the URL that the task declared."""
        target = entry.target
        while target not in self._declared:
            target, slash, _ = target.rpartition("/")
            if not slash:
                return {}
        return self._headers_for(self._declared[target], stop)

    def _request(self, pools: urllib3.PoolManager, route: Route, size: int, body: _Body) -> urllib3.BaseHTTPResponse:
        parsed = route.parsed()
        headers = {"User-Agent": "tesgate", **route.headers, "Content-Length": str(size)}
        if parsed.auth:
            secret = base64.b64encode(unquote(parsed.auth).encode("utf-8")).decode("ascii")
            headers["Authorization"] = "Basic " + secret
        body.check()
        # No media type of our own: it may be part of what a presigned URL was signed with.
        return pools.connection_from_host(parsed.host, parsed.port, parsed.scheme).urlopen(
            "PUT",
            parsed.request_uri,
            body=iter(body),
            headers=headers,
            assert_same_host=False,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=self._settings.connect_timeout, read=self._settings.read_timeout),
        )

    def _judge(self, entry: Entry, response: urllib3.BaseHTTPResponse) -> None:
        if 200 <= response.status <= 299:
            response.read(_CHUNK)  # what an ordinary answer has to say; the connection is then used again
            return
        why = ("the server answered %d %s" % (response.status, (response.reason or "")[:80])).strip()
        # Object stores say in a word what is amiss. All else of a body may repeat the request's own secrets.
        code = re.search(rb"<Code>([A-Za-z0-9]{1,64})</Code>", response.read(64 << 10))
        if code is not None:
            why += " (%s)" % code.group(1).decode("ascii")
        if response.status in WORTH_RETRYING:
            raise Passing(why, retry_after(response.headers.get("Retry-After")))
        meaning = _MEANING.get(response.status)
        if 300 <= response.status <= 399:
            meaning = "that is no way to say where the file is to go; check the URL"
        raise StagingError(
            "output %s could not be stored at %s: %s%s."
            % (printable(entry.path), redact(entry.url), why, "; " + meaning if meaning else "")
        )


def _is_brace_pattern(name: str) -> bool:
    try:
        return has_braces(name)
    except ValueError:
        return False


class _Body:
    """The bytes of one file as it was when it was opened; what changes meanwhile is not completed."""

    def __init__(self, source: int, entry: Entry, lease: Callable[[], float], stop: Stop) -> None:
        self._source = source
        self._entry = entry
        self._lease = lease
        self._stop = stop
        self._before = os.fstat(source)

    def check(self) -> None:
        """Raise `Stopped`, or `LeaseLost` where nothing more may become visible."""
        self._stop.check()
        if self._lease() <= 0:
            raise LeaseLost("the publish lease ran out before %s was stored" % printable(self._entry.path))

    def __iter__(self) -> Iterator[bytes]:
        position, size = 0, self._before.st_size
        while position < size:
            try:
                data = os.pread(self._source, min(_CHUNK, size - position), position)
                now = os.fstat(self._source)
            except OSError as error:  # not to be taken for one of the connection's
                raise os_fault(error, "output %s could not be read" % printable(self._entry.path)) from error
            position += len(data)
            if not data or (now.st_size, now.st_mtime_ns) != (size, self._before.st_mtime_ns):
                raise StagingError(
                    "output %s changed while it was stored: something still writes to it."
                    % printable(self._entry.path),
                    transient=True,
                )
            self.check()
            yield data
