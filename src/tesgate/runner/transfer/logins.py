"""Asks the gateway for the headers of named credentials for URLs of the web, and forgets them soon."""

from __future__ import annotations

import base64
import re
import threading
import time
from typing import Callable, Dict, Tuple

from ..access import AccessAnswer, AccessRequest, Login
from ..gateway import Backoff, GatewayFault, Gone
from .faults import StagingError
from .threads import Stop
from .urls import redact

__all__ = ["WebLogins"]

_KEPT = 60.0
"""Seconds for which an answer is used: it may rotate."""
_TRIES = 8
"""Of a question whose answer was a fault that passes."""
_VALUE = re.compile(r"[^\x00\r\n]*")


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
        faults = 0
        while True:
            stop.check()
            try:
                (login,) = self._ask(AccessRequest(login=[url])).logins
            except Gone:
                raise
            except (GatewayFault, ValueError):
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
        for name, value in headers.items():
            # The HTTP library would quote the value in what it raises.
            if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not _VALUE.fullmatch(value):
                raise StagingError(
                    "%s: a header of its named credentials cannot be sent; tell the gateway's operator."
                    % redact(login.url)
                )
        return headers
