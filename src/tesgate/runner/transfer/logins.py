"""Asks the gateway for the headers of named credentials for URLs of the web, and forgets them soon."""

from __future__ import annotations

import base64
import re
import threading
import time
from typing import Callable, Dict, Mapping, Tuple

from ..access import AccessAnswer, AccessRequest, Login
from ..gateway import Backoff, GatewayFault, Gone
from .faults import StagingError
from .threads import Stop
from .urls import redact

__all__ = ["WebLogins", "can_be_sent"]

_KEPT = 60.0
"""Seconds for which an answer is used: it may rotate."""
_TRIES = 8
"""Of a question whose answer was a fault that passes."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00\r\n\u0100-\U0010ffff]*")


class WebLogins:
    """For one attempt; safe in many threads. What it learns is in memory only, and in no message.

    A gateway that is away is waited for. Raises `Gone` where the attempt is nobody's any more.
    """

    def __init__(self, ask: Callable[[AccessRequest], AccessAnswer]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._known: Dict[str, Tuple[float, Dict[str, str]]] = {}

    def headers(self, url: str, stop: Stop) -> Dict[str, str]:
        """What to send to the URL's own origin. Raises `StagingError`."""
        with self._lock:
            until, headers = self._known.get(url, (0.0, {}))
        if time.monotonic() < until:
            return headers
        headers = self._headers(self._login(url, stop))
        with self._lock:
            self._known[url] = (time.monotonic() + _KEPT, headers)
        return headers

    def _login(self, url: str, stop: Stop) -> Login:
        backoff = Backoff()
        faults = refusals = 0
        while True:
            stop.check()
            try:
                (login,) = self._ask(AccessRequest(login=[url])).logins
            except Gone:
                raise
            except (GatewayFault, ValueError) as error:
                status = getattr(error, "status", 400)  # an answer that cannot be read is none that helps
                refusals += status is not None and 400 <= status < 500
                if refusals >= _TRIES:  # a gateway that is away is waited for; this one never will
                    raise StagingError(
                        "The gateway does not take questions about credentials for %s." % redact(url), transient=True
                    ) from None
                stop.wait(backoff.next())
                continue
            if login.fault is None:
                return login
            faults += 1
            if login.fault.kind != "passing" or faults >= _TRIES:
                raise StagingError(login.fault.sentence, transient=login.fault.kind == "passing")
            stop.wait(backoff.next())

    @staticmethod
    def _headers(login: Login) -> Dict[str, str]:
        headers = dict(login.headers)
        if login.user is not None:
            secret = "%s:%s" % (login.user, login.password or "")
            headers["Authorization"] = "Basic " + base64.b64encode(secret.encode("utf-8")).decode("ascii")
        if not can_be_sent(headers):
            raise StagingError(
                "%s: a header of its named credentials cannot be sent; tell the gateway's operator." % redact(login.url)
            )
        return headers


def can_be_sent(headers: Mapping[str, str]) -> bool:
    """Whether these are headers of HTTP. To be asked before: the HTTP library would quote a value in what it raises."""
    return all(_NAME.fullmatch(name) and _VALUE.fullmatch(value) for name, value in headers.items())
