"""``http(s)://`` as a kind of storage: a GET for each input, a PUT for each file of an output."""

from __future__ import annotations

import re
from functools import partial
from typing import Callable, Dict, List, Sequence

from ..plan import Input, Output
from .base import Staging
from .connect import HttpSettings
from .faults import PathRefused, StagingError, os_fault
from .http import Downloader
from .policy import AddressPolicy
from .put import WebSink
from .scratch import Scratch
from .threads import Stop
from .urls import parted, printable, redact

__all__ = ["WebStorage", "no_headers"]


def no_headers(url: str, stop: Stop) -> Dict[str, str]:
    """There are no named credentials."""
    return {}


class WebStorage:
    """Files that a GET gives, and that a PUT takes.

    `headers_for` asks for the headers of the named credentials for a URL; blocking, and raises `StagingError`.
    """

    schemes: Sequence[str] = ("http", "https")

    def __init__(
        self,
        *,
        policy: AddressPolicy,
        settings: HttpSettings,
        concurrency: int,
        headers_for: Callable[[str, Stop], Dict[str, str]] = no_headers,
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._headers_for = headers_for
        self._sink = WebSink(policy=policy, settings=settings, concurrency=concurrency, headers_for=headers_for)

    def check_input(self, item: Input) -> None:
        """Refuse a directory: HTTP has none."""
        if item.type == "DIRECTORY":
            raise StagingError(
                "input %s is a DIRECTORY, which http(s) does not have; list its files as inputs of their own."
                % redact(item.url or "")
            )

    def check_output(self, output: Output) -> None:
        """Refuse what names no host."""
        if not re.match(r"(?i)https?://[^/@\s]", parted(output.url)[0]):
            raise StagingError("output %s cannot be stored: its url names no host; check it." % printable(output.path))

    def source(self, scratch: Scratch, stop: Stop) -> _WebSource:
        """See `base.Storage`."""
        downloader = Downloader(policy=self._policy, settings=self._settings, stop=stop)
        return _WebSource(scratch, downloader, self._headers_for)

    def sink(self) -> WebSink:
        """See `base.Storage`."""
        return self._sink


class _WebSource:
    def __init__(
        self, scratch: Scratch, downloader: Downloader, headers_for: Callable[[str, Stop], Dict[str, str]]
    ) -> None:
        self._scratch = scratch
        self._downloader = downloader
        self._headers_for = headers_for

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        return Staging(calls=[partial(self._download, item, item.url or "", place)])

    def close(self) -> None:
        self._downloader.close()

    def _download(self, item: Input, url: str, place: List[str], stop: Stop) -> List[str]:
        headers = self._headers_for(url, stop) if item.login else {}
        try:
            with self._scratch.new_file(place, 0o666 if item.writable else 0o644) as target:
                return self._downloader.download(url, target, headers)[1]
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(url), error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % redact(url)) from error
