"""``http(s)://`` as a kind of storage."""

from __future__ import annotations

from functools import partial
from typing import List, Optional, Sequence

from ..plan import Input, Output
from .base import Sink, Staging
from .connect import HttpSettings
from .faults import PathRefused, StagingError, os_fault
from .http import Downloader
from .policy import AddressPolicy
from .scratch import Scratch
from .threads import Stop
from .urls import printable, redact

__all__ = ["WebStorage"]


class WebStorage:
    """Files that a GET gives."""

    schemes: Sequence[str] = ("http", "https")

    def __init__(self, *, policy: AddressPolicy, settings: HttpSettings) -> None:
        self._policy = policy
        self._settings = settings

    def check_input(self, item: Input) -> None:
        """Refuse a directory: HTTP has none."""
        if item.type == "DIRECTORY":
            raise StagingError(
                "input %s is a DIRECTORY, which http(s) does not have; list its files as inputs of their own."
                % redact(item.url or "")
            )

    def check_output(self, output: Output) -> None:
        """Refuse all."""
        raise StagingError(
            "output %s cannot be stored: http(s):// is not served for outputs by this runner; "
            "use a file:// URL (or a plain path) inside one of the agent's roots." % printable(output.path)
        )

    def source(self, scratch: Scratch, stop: Stop) -> _WebSource:
        """See `base.Storage`."""
        return _WebSource(scratch, Downloader(policy=self._policy, settings=self._settings, stop=stop))

    def sink(self) -> Optional[Sink]:
        """It is for inputs only."""
        return None


class _WebSource:
    def __init__(self, scratch: Scratch, downloader: Downloader) -> None:
        self._scratch = scratch
        self._downloader = downloader

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        return Staging(calls=[partial(self._download, item, item.url or "", place)])

    def close(self) -> None:
        self._downloader.close()

    def _download(self, item: Input, url: str, place: List[str], stop: Stop) -> List[str]:
        try:
            with self._scratch.new_file(place, 0o666 if item.writable else 0o644) as target:
                return self._downloader.download(url, target)[1]
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(url), error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % redact(url)) from error
