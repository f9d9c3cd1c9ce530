"""What object stores refuse, and what may be tried again: words that the ways in and out share."""

from __future__ import annotations

import random
import re

from .connect import HttpSettings
from .faults import StagingError
from .s3wire import Answer
from .threads import Stop

__all__ = ["PASSING_STATUS", "RENEWAL_PAUSE", "Expired", "Pauses", "Trouble", "refusal", "retry_after"]

RENEWAL_PAUSE = 1.0
"""Seconds before the second time: keys that are being exchanged are there in a moment."""
PASSING_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504, 507, 508, 509, 520, 521, 522, 523, 524, 529))
_PASSING_CODES = frozenset(("RequestTimeout", "SlowDown", "BadDigest", "XAmzContentChecksumMismatch", "IncompleteBody"))
_REGION_CODES = frozenset(("AuthorizationHeaderMalformed", "AuthorizationQueryParametersError"))
_KEY_CODES = frozenset(("InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"))
"""The keys that a request is signed with are not (or no longer) good, whatever they may do."""
_LONGEST_RETRY_AFTER = 120.0


class Trouble(Exception):
    """What another request may not meet. `pause`: what the store asked for, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.pause = pause


class Expired(Exception):
    """The request is not taken (any more); `why` is half a sentence.

    `renewing`: the gateway's keys are not taken. They may be just being exchanged.
    """

    def __init__(self, why: str, *, renewing: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.renewing = renewing


def retry_after(answer: Answer) -> float:
    """Seconds that the server asks for; dates, which object stores do not send, count as none."""
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text), _LONGEST_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", text) else 0.0


def _code_in(text: str) -> str:
    """The store's own name of a fault, such as ``SlowDown``; empty where it says none."""
    found = re.search(r"<Code>([A-Za-z0-9.]{1,64})</Code>", text)
    return found.group(1) if found else ""


def _named_region(answer: Answer, text: str) -> str:
    """Where the store says that the bucket is, for an administrator."""
    region = answer.headers.get("x-amz-bucket-region", "")
    # The element is Amazon's and MinIO's; others say it in their sentence alone: expecting 'eu-west-1'.
    if not region and (found := re.search(r"<Region>([^<]*)</Region>|expecting (?:&#?\w+;|['\"])([a-z0-9-]+)", text)):
        region = found.group(1) or found.group(2)
    return " (the store names %s)" % region if re.fullmatch(r"[a-z0-9-]{1,63}", region) else ""


def refusal(answer: Answer) -> Exception:
    """Return `Trouble`, `Expired` or a `StagingError` whose sentence is only half: "the store answered …"."""
    text = answer.text()
    code = _code_in(text)
    why = "the store answered %d %s" % (answer.status, code or answer.reason)
    if answer.status in PASSING_STATUS or code in _PASSING_CODES:
        return Trouble(why.strip(), retry_after(answer))
    if answer.status in (401, 403) or code == "AccessDenied" or code in _KEY_CODES:
        return Expired(why.strip(), renewing=code in _KEY_CODES)
    if answer.status in (301, 302, 307, 308) or code in _REGION_CODES:
        if answer.status != 400:
            why += " and sends us elsewhere"
        why += "; let the administrator check the endpoint and region of this bucket" + _named_region(answer, text)
        return StagingError(why, transient=answer.status == 307)
    return StagingError(why.strip(), transient=answer.status == 404)


class Pauses:
    """Counts failures in a row and sleeps after each, longer and longer; gives up after some."""

    def __init__(self, settings: HttpSettings, stop: Stop) -> None:
        self._settings = settings
        self._stop = stop
        self.failures = 0

    def reset(self) -> None:
        """Something was reached."""
        self.failures = 0

    def after(self, trouble: Trouble) -> bool:
        """Sleep; False: that was the last try."""
        self.failures += 1
        if self.failures >= self._settings.tries:
            return False
        pause = min(self._settings.first_pause * 2.0 ** (self.failures - 1), self._settings.max_pause)
        self._stop.wait(max(trouble.pause, pause * random.uniform(0.5, 1.0)))
        return True
