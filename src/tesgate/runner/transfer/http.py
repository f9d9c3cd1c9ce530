"""Downloads one http(s) URL into a file: redirects by hand, resumed with Range, verified, tried again."""

from __future__ import annotations

import base64
import os
import random
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple
from urllib.parse import unquote

import urllib3

from .answers import WORTH_RETRYING, Passing, Route, faults, retry_after, timestamp
from .connect import HttpSettings, make_pools
from .faults import StagingError, os_fault
from .policy import AddressPolicy
from .threads import Stop
from .urls import redact

__all__ = ["Downloader"]

_CHUNK = 256 << 10
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


@dataclass
class _Progress:
    """What is known of the remote file, and how much of it lies in the local one."""

    offset: int = 0
    best: int = 0
    total: Optional[int] = None
    validator: Optional[str] = None
    note: Optional[str] = None

    def restart(self, target: int) -> None:
        os.ftruncate(target, 0)
        self.offset, self.total, self.validator = 0, None, None


class Downloader:
    """Downloads for one step of one attempt; its connections belong to one `Stop`. Safe in many threads."""

    def __init__(self, *, policy: AddressPolicy, settings: HttpSettings, stop: Stop) -> None:
        self._settings = settings
        self._stop = stop
        self._pools = make_pools(policy, stop, settings)

    def close(self) -> None:
        self._pools.clear()

    def download(self, url: str, target: int, headers: Optional[Dict[str, str]] = None) -> Tuple[int, List[str]]:
        """Fill the empty file `target`; returns its size in bytes and notes. Raises `StagingError`, `Stopped`.

        `headers` are sent to the URL's own origin only.
        """
        progress = _Progress()
        failures = 0
        pause = self._settings.first_pause
        while True:
            self._stop.check()
            try:
                self._once(url, target, progress, headers or {})
                break
            except Passing as error:
                if progress.offset > progress.best:
                    progress.best, failures, pause = progress.offset, 0, self._settings.first_pause
                failures += 1
                if failures >= self._settings.tries:
                    raise StagingError(
                        "input %s could not be downloaded: %s (tried %d times)." % (redact(url), error.why, failures),
                        transient=True,
                    ) from None
                self._stop.wait(max(error.pause, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 2, self._settings.max_pause)
        size = os.fstat(target).st_size
        if size != progress.offset or progress.total not in (None, size):
            raise StagingError(
                "input %s has %d bytes on disk, not the %d that were received." % (redact(url), size, progress.offset),
                transient=True,
            )
        return size, [progress.note] if progress.note else []

    def _once(self, url: str, target: int, progress: _Progress, headers: Dict[str, str]) -> None:
        what = "input %s" % redact(url)
        with faults(what, self._stop):
            # From the user's own URL on each time: what it leads to may expire.
            route = Route(url, what, headers, self._settings.max_redirects)
            while True:
                response = self._request(route, progress)
                try:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or not location:
                        return self._receive(url, response, target, progress)
                finally:
                    response.close()
                route.follow(location)

    def _request(self, route: Route, progress: _Progress) -> urllib3.BaseHTTPResponse:
        parsed = route.parsed()
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "tesgate", **route.headers}
        if parsed.auth:
            secret = base64.b64encode(unquote(parsed.auth).encode("utf-8")).decode("ascii")
            headers["Authorization"] = "Basic " + secret
        if progress.offset and progress.validator:
            headers["Range"] = "bytes=%d-" % progress.offset
            headers["If-Range"] = progress.validator
        # Straight to the host's pool: `PoolManager.request` would take the URL apart twice more for each small file.
        pool = self._pools.connection_from_host(parsed.host, parsed.port, parsed.scheme)
        return pool.urlopen(
            "GET",
            parsed.request_uri,
            headers=headers,
            assert_same_host=False,
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
            timeout=urllib3.Timeout(connect=self._settings.connect_timeout, read=self._settings.read_timeout),
        )

    def _receive(self, url: str, response: urllib3.BaseHTTPResponse, target: int, progress: _Progress) -> None:
        status = response.status
        if status == 416 and progress.offset:
            progress.restart(target)
            raise Passing("the server refused to go on where the last answer ended")
        if status not in (200, 206):
            raise self._refusal(url, response)
        length = _length(response.headers.get("Content-Length"))
        if status == 206:
            self._check_range(response, target, progress)
        elif progress.offset:
            progress.restart(target)  # another version, or a server without Range: begin anew
        if status == 200:
            progress.total = length
            progress.validator = _validator(response)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            progress.note = "input %s was sent with Content-Encoding %s; it was stored as sent." % (
                redact(url),
                response.headers["Content-Encoding"][:40],
            )
        self._pump(url, response, target, progress)
        if progress.total is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
            progress.note = "input %s came without a length; that it is whole could not be verified." % redact(url)
        if progress.total is not None and progress.offset != progress.total:
            raise Passing("the answer ended after %d of %d bytes" % (progress.offset, progress.total))

    def _pump(self, url: str, response: urllib3.BaseHTTPResponse, target: int, progress: _Progress) -> None:
        while True:
            self._stop.check()
            data = response.read1(_CHUNK)
            if not data:
                return
            view = memoryview(data)
            try:
                while view:
                    count = os.pwrite(target, view, progress.offset)
                    progress.offset += count
                    view = view[count:]
            except OSError as error:
                raise os_fault(error, "input %s could not be written" % redact(url)) from error

    def _check_range(self, response: urllib3.BaseHTTPResponse, target: int, progress: _Progress) -> None:
        found = re.fullmatch(
            r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "").strip()
        )
        good = (
            progress.offset > 0
            and found is not None
            and int(found.group(1)) == progress.offset
            and (found.group(3) == "*" or progress.total in (None, int(found.group(3))))
            and _validator(response) in (None, progress.validator)
        )
        if not good:
            progress.restart(target)
            raise Passing("the server answered with another part than the one asked for")
        if found is not None and found.group(3) != "*":
            progress.total = int(found.group(3))

    def _refusal(self, url: str, response: urllib3.BaseHTTPResponse) -> Exception:
        why = "the server answered %d %s" % (response.status, (response.reason or "")[:80])
        if response.status in WORTH_RETRYING:
            return Passing(why.strip(), retry_after(response.headers.get("Retry-After")))
        return StagingError("input %s could not be downloaded: %s." % (redact(url), why.strip()))


def _length(text: Optional[str]) -> Optional[int]:
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _validator(response: urllib3.BaseHTTPResponse) -> Optional[str]:
    """Return what proves that a later answer is of the same bytes: a strong ETag, else a settled Last-Modified."""
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return etag
    modified, date = response.headers.get("Last-Modified"), response.headers.get("Date")
    then, now = timestamp(modified), timestamp(date)
    if modified and then is not None and now is not None and now - then >= 1:
        return modified
    return None
