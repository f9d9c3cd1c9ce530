"""Which region each bucket's requests are signed for: the configured one, until its store names another.

A store refuses what is signed for another region (400 ``AuthorizationHeaderMalformed``, 301) and names the right one.
botocore follows that in silence, for itself alone; what is presigned for runners must know it too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

__all__ = ["USUAL", "Regions", "named_in"]

log = structlog.get_logger(__name__)

USUAL = "us-east-1"
"""What stores without regions take."""
MOST = 1000
"""Buckets that are remembered."""
GUESSED = 60.0
"""Seconds for which a bucket is signed for as configured after a refusal that says nothing of regions."""
MOST_NAMES = 32
"""Regions of one endpoint: each has a client of its own."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REFUSALS = frozenset(
    ("400", "301", "307", "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect",
     "AuthorizationQueryParametersError", "IllegalLocationConstraintException")
)  # fmt: skip


def named_in(response: Mapping[str, Any]) -> str | None:
    """The region that an answer of a store names, in its headers or in the words of its error."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    for name in (headers.get("x-amz-bucket-region"), response.get("Error", {}).get("Region")):
        if isinstance(name, str) and _NAME.fullmatch(name):
            return name
    return None


class Regions:
    """Of the buckets of one endpoint."""

    def __init__(self, *, endpoint: str, configured: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guessed: dict[str, tuple[str, float]] = {}
        self._endpoint = endpoint
        self._configured = configured
        self._known: dict[str, str] = {}
        self.learnt = 0
        """From refusals."""

    def known(self, bucket: str) -> str | None:
        """What was found out about a bucket, or guessed a moment ago."""
        known = self._known.get(bucket)
        if known is None and bucket in self._guessed:
            known, until = self._guessed[bucket]
            return known if self._clock() < until else None
        return known

    def guess(self, bucket: str, region: str) -> None:
        """Take a region for a while: neither an answer nor a refusal said which it is."""
        if len(self._guessed) >= MOST:
            self._guessed.clear()
        self._guessed[bucket] = (region, self._clock() + GUESSED)

    def note(self, bucket: str, region: str) -> None:
        """Remember one."""
        if region not in self._known.values() and len(set(self._known.values())) >= MOST_NAMES:
            return
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[bucket] = region

    def heed(self, response: Any = None, request_dict: Any = None, **_: Any) -> None:
        """Learn from a refusal; botocore calls this before it follows one itself."""
        if not isinstance(response, tuple) or not isinstance(request_dict, Mapping):
            return
        said = response[1]
        if str(said.get("Error", {}).get("Code")) not in _REFUSALS:
            return
        bucket = request_dict.get("context", {}).get("s3_redirect", {}).get("bucket")
        region = named_in(said)
        if not isinstance(bucket, str) or region is None or self._known.get(bucket) == region:
            return
        if self._configured is not None:
            log.warning(
                "a bucket is in another region than its endpoint: set `region`, or give it an endpoint of its own",
                endpoint=self._endpoint,
                bucket=bucket,
                configured=self._configured,
                region=region,
            )
        self.learnt += 1
        self.note(bucket, region)
