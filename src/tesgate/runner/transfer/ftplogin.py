"""Who to be on FTP servers: from the URL itself, or from the gateway. In memory only."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Callable, Dict, Mapping, Optional, Sequence

from ..access import AccessAnswer, AccessRequest, Login
from ..gateway import Backoff, Gone
from .faults import StagingError
from .ftpurl import FtpUrl, is_line
from .s3access import Access
from .threads import Stop
from .urls import redact

__all__ = ["DEFAULT_SESSIONS", "FtpLogin", "Logins"]

DEFAULT_SESSIONS = 4
"""At one server, of one agent with all its attempts."""
_MOST = 500
"""Questions in one message."""
_TRIES = 8
"""Of a question whose answer was a fault that passes, or no answer to it."""


@dataclass(frozen=True)
class FtpLogin:
    """A user, and how much TLS the server must have for it."""

    user: str = "anonymous"
    password: str = field(default="anonymous@", repr=False)
    tls: str = "never"
    """``required`` (verified), ``offered`` (taken where there is some, whoever it proves to be) or ``never``."""
    ca: Optional[str] = None
    """Certificates to trust in place of the system's, PEM."""
    sessions: int = DEFAULT_SESSIONS

    @property
    def secret(self) -> Optional[str]:
        """What no message may hold."""
        return None if self.user == "anonymous" else self.password


class Logins:
    """Logins of one attempt, by URL as the task has them. Safe in many threads; in memory only.

    A gateway that is away is waited for.
    """

    def __init__(self, *, ask: Callable[[AccessRequest], AccessAnswer], urls: Sequence[str]) -> None:
        """`urls`: all of the task, which are asked for together; `ask` raises `GatewayFault`."""
        self._access = Access(ask)
        self._urls = list(dict.fromkeys(urls))
        self._lock = threading.Lock()
        self._known: Dict[str, Login] = {}

    def of(self, url: str, spot: FtpUrl, stop: Stop, *, alone: Optional[Mapping[str, str]] = None) -> FtpLogin:
        """Who to be for a URL. Raises `StagingError`, `Stopped`.

        `alone`: where the attempt is over and the gateway says nothing any more, go by the URL itself and by these
        `Login.options`, as far as they are known from before.
        """
        with self._lock:
            if url not in self._known:
                try:
                    self._learn(url, stop)
                except Gone as exc:
                    if alone is not None:
                        return _login(Login(url, options=dict(alone)), spot)
                    raise StagingError(
                        "the gateway does not tell this attempt any more what to log in with: %s" % exc, transient=True
                    ) from None
            return _login(self._known[url], spot)

    def forget(self, url: str) -> None:
        """Ask again the next time: the server did not take what was known, and a password may have rotated."""
        with self._lock:
            self._known.pop(url, None)

    def _learn(self, url: str, stop: Stop) -> None:
        """Ask about a URL, and about others that come next in the same question. Raises `Gone` too."""
        start = self._urls.index(url) if url in self._urls else 0
        batch = [url, *(other for other in self._urls[start:] if other != url and other not in self._known)][:_MOST]
        backoff = Backoff()
        for last in [False] * (_TRIES - 1) + [True]:
            logins = self._access.answer(AccessRequest(login=batch), stop).logins
            why = "%s: the gateway did not tell what to log in with (it answered another question)." % redact(url)
            if [login.url for login in logins] == batch:
                # A fault of another one is asked about when its turn comes.
                self._known.update((login.url, login) for login in logins if login.fault is None)
                fault = logins[0].fault
                if fault is None:
                    return
                why = fault.sentence
                if fault.kind != "passing":
                    raise StagingError(why)
            if not last:
                stop.wait(backoff.next())
        raise StagingError(why, transient=True)


def _login(found: Login, spot: FtpUrl) -> FtpLogin:
    """Put together what the gateway says and what the URL itself holds, which wins."""
    user, password = found.user, found.password
    if spot.user is not None:
        user, password = spot.user, spot.password or ""
    tls = found.options.get("tls", "")
    if spot.scheme == "ftps" or tls not in ("required", "offered", "never"):
        # Whoever writes a password into a URL has not asked for TLS, and gets it where there is some.
        tls = "required" if spot.scheme == "ftps" else "never" if user is None else "offered"
    sessions = found.options.get("sessions", "")
    ca = found.options.get("ca")
    count = int(sessions) if sessions.isdigit() and 0 < int(sessions) <= 64 else DEFAULT_SESSIONS
    if user is None:
        return FtpLogin(tls=tls, ca=ca, sessions=count)
    if not is_line(user) or not is_line(password or ""):
        raise StagingError("the credential for %s cannot be sent to an FTP server." % redact(found.url))
    return FtpLogin(user=user, password=password or "", tls=tls, ca=ca, sessions=count)
