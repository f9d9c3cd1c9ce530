"""What the faults, answers and redirects of HTTP servers mean for a transfer, in whichever direction."""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from contextlib import contextmanager
from typing import Dict, Iterator, Optional, Tuple
from urllib.parse import urljoin

import urllib3
import urllib3.exceptions
import urllib3.util

from .connect import Unresolved
from .faults import StagingError
from .policy import AddressRefused
from .threads import Stop

__all__ = ["WORTH_RETRYING", "Passing", "Route", "faults", "retry_after", "timestamp"]

WORTH_RETRYING = frozenset((408, 425, 429, 500, 502, 503, 504, 507, 508, 509, 520, 521, 522, 523, 524, 529))
_LONGEST_RETRY_AFTER = 120.0


class Passing(Exception):
    """A fault that another request may not meet; `pause` is what the server asked for, in seconds."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.pause = pause


class Route:
    """Where a request goes, from the user's own URL through redirects; `headers` do not leave the first origin.

    `what` begins messages, such as ``input https://h/x``.
    """

    def __init__(self, url: str, what: str, headers: Dict[str, str], max_redirects: int) -> None:
        self.here = url
        self._what = what
        self._home = _origin(url)
        self._headers = headers
        self._left = max_redirects
        self._most = max_redirects

    @property
    def headers(self) -> Dict[str, str]:
        """Named credentials, as long as no redirect has led elsewhere: not even its way back gets them."""
        return self._headers

    def follow(self, location: str) -> None:
        """Go on where a redirect leads. Raises `StagingError`."""
        if self._left <= 0:
            raise StagingError("%s redirects more than %d times." % (self._what, self._most))
        self._left -= 1
        try:
            there = urljoin(self.here, location)
        except ValueError:
            raise StagingError("%s redirects to what is no URL; check the server." % self._what) from None
        scheme = there.partition(":")[0].lower()
        if scheme not in ("http", "https"):
            raise StagingError("%s redirects to %s:, which is refused." % (self._what, scheme))
        if self.here.lower().startswith("https:") and scheme == "http":
            raise StagingError("%s redirects from https to http, which is refused." % self._what)
        self.here = there
        if _origin(there) != self._home:
            self._headers = {}

    def parsed(self) -> urllib3.util.Url:
        """Take the place apart. Raises `StagingError`."""
        parsed = urllib3.util.parse_url(self.here)
        if not parsed.host or re.search(r"[\s\x00-\x1f\x7f]", parsed.host):
            raise StagingError("%s names no host; check the URL." % self._what)
        return parsed


def _origin(url: str) -> Optional[Tuple[str, str, int]]:
    try:
        parsed = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        return None
    scheme = (parsed.scheme or "").lower()
    return scheme, (parsed.host or "").lower(), parsed.port or (443 if scheme == "https" else 80)


@contextmanager
def faults(what: str, stop: Stop) -> Iterator[None]:
    """Translate what a connection can raise into `Passing` or `StagingError`; `what` begins its sentence."""
    try:
        yield
    except Unresolved as error:
        why = "the name %s could not be resolved" % error.host
        if error.passing:
            raise Passing(why) from None
        raise StagingError("%s: %s; check the URL." % (what, why)) from None
    except AddressRefused as error:
        raise StagingError(
            "%s was refused: %s; an administrator can allow it (allowed_hosts)." % (what, error.why)
        ) from None
    except urllib3.exceptions.LocationParseError:
        raise StagingError("%s is not a URL that can be read; check it." % what) from None
    except (urllib3.exceptions.HTTPError, ssl.SSLError) as error:
        stop.check()
        if _is_certificate(error):
            raise StagingError("%s: the server's certificate was not accepted." % what) from error
        raise Passing(_reason(error)) from error
    except OSError as error:
        stop.check()
        raise Passing("the connection failed (%s)" % (error.strerror or type(error).__name__)) from error


def timestamp(text: Optional[str]) -> Optional[float]:
    """Read a date of HTTP; None for what is none."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def retry_after(text: Optional[str]) -> float:
    """Read ``Retry-After``: seconds, bounded."""
    if not text:
        return 0.0
    if re.fullmatch(r"\s*[0-9]+\s*", text):
        return min(float(text), _LONGEST_RETRY_AFTER)
    then = timestamp(text)
    return 0.0 if then is None else min(max(then - time.time(), 0.0), _LONGEST_RETRY_AFTER)


def _is_certificate(error: BaseException) -> bool:
    seen: Optional[BaseException] = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        inner = seen.args[0] if seen.args and isinstance(seen.args[0], BaseException) else None
        seen = inner or seen.__cause__
    return False


def _reason(error: BaseException) -> str:
    """Say what happened without the URL, which urllib3 likes to put into its messages."""
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "the server fell silent"
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "no connection (%s)" % str(error).rpartition(": ")[2]
    if isinstance(error, (urllib3.exceptions.SSLError, ssl.SSLError)):
        return "the TLS connection failed"
    if isinstance(error, (urllib3.exceptions.IncompleteRead, urllib3.exceptions.ProtocolError)):
        return "the connection was cut"
    return "the connection failed (%s)" % type(error).__name__
