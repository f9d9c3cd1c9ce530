"""``s3://`` and ``gs://``, and ``drs://`` as far as the gateway resolves it, as a kind of storage.

The runner has no credentials: the gateway looks, lists and presigns (`..access`), the runner moves the bytes.
"""

from __future__ import annotations

from typing import Optional, Sequence

from ..plan import Input, Output, UrlPolicy
from .base import Storage
from .connect import HttpSettings
from .faults import PathRefused, StagingError
from .policy import AddressPolicy
from .s3access import Access, Ask
from .s3sink import ObjectSink, key_of
from .s3source import ObjectSource
from .scratch import Scratch
from .threads import Stop
from .urls import printable, redact, scheme

__all__ = ["ObjectStorage"]

WIDTH = 8
"""Small objects at a time, of one directory or of all outputs: enough to hide a store's answer times of 30 ms."""


class ObjectStorage:
    """Object stores that the gateway knows, for one attempt."""

    schemes: Sequence[str] = ("s3", "gs", "drs")

    def __init__(
        self,
        *,
        ask: Ask,
        settings: HttpSettings,
        inputs: Sequence[Input] = (),
        policy: Optional[AddressPolicy] = None,
        others: Sequence[Storage] = (),
        width: int = WIDTH,
    ) -> None:
        """`ask`: the gateway's `access`. `inputs`: of the plan, to ask about many at once.

        `policy`: of the web addresses that DRS leads to; `others`: what serves its other schemes.
        """
        self._access = Access(ask)
        self._settings = settings
        self._urls = [
            item.url for item in inputs if item.url and item.content is None and scheme(item.url) in self.schemes
        ]
        self._policy = policy if policy is not None else AddressPolicy(UrlPolicy())
        self._others = {name: storage for storage in others for name in storage.schemes}
        self._width = width

    def check_input(self, item: Input) -> None:
        """Refuse a URL without bucket or key."""
        url = item.url or ""
        if scheme(url) == "drs":
            return
        try:
            _, key = key_of(url)
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(url), error.why)) from None
        if not key.strip("/") and item.type != "DIRECTORY":
            raise StagingError("input %s names a whole bucket; declare it as a DIRECTORY or name a key." % redact(url))

    def check_output(self, output: Output) -> None:
        """Refuse DRS, which is for reading, and a URL without bucket or key."""
        if scheme(output.url) == "drs":
            raise StagingError(
                "output %s cannot be stored: drs:// identifiers are for inputs; use the s3:// or other URL of where it "
                "is to lie." % printable(output.path)
            )
        try:
            key_of(output.url)
        except PathRefused as error:
            raise StagingError(
                "output %s: its url %s %s." % (printable(output.path), redact(output.url), error.why)
            ) from None

    def source(self, scratch: Scratch, stop: Stop) -> ObjectSource:
        """See `base.Storage`."""
        return ObjectSource(
            access=self._access,
            scratch=scratch,
            stop=stop,
            settings=self._settings,
            urls=self._urls,
            others=self._others,
            policy=self._policy,
            width=self._width,
        )

    def sink(self) -> ObjectSink:
        """See `base.Storage`."""
        return ObjectSink(access=self._access, settings=self._settings, width=self._width)
