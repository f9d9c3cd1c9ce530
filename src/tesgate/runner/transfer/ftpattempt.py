"""What one attempt does on FTP servers: every action in a session, tried again where a fault may pass."""

from __future__ import annotations

import random
from typing import Callable, Mapping, Optional, TypeVar

from .faults import PathRefused, StagingError, Stopped
from .ftpfaults import code_of, explain
from .ftplogin import FtpLogin, Logins
from .ftppool import FtpServers
from .ftpsession import FtpSession, FtpSettings
from .ftpurl import FtpUrl
from .policy import AddressPolicy
from .threads import Stop

__all__ = ["FtpAttempt"]

T = TypeVar("T")


class FtpAttempt:
    """Sessions and logins of one attempt. Safe in many threads."""

    def __init__(self, *, servers: FtpServers, policy: AddressPolicy, settings: FtpSettings, logins: Logins) -> None:
        self._servers = servers
        self._policy = policy
        self.settings = settings
        self._logins = logins

    def act(
        self,
        spot: FtpUrl,
        url: str,
        what: str,
        action: Callable[[FtpSession], T],
        stop: Stop,
        *,
        progress: Optional[Callable[[], int]] = None,
        tries: Optional[int] = None,
        alone: Optional[Mapping[str, str]] = None,
    ) -> T:
        """Call `action` with a session until it returns. It may be called again, each time with another session.

        `url`: the task's own, by which the login is found. `what` begins the sentence of an error. `progress`: bytes
        that were moved so far; a try that moved some does not count as failed. `alone`: see `Logins.of`.

        Raises `StagingError`, `Stopped`.
        """
        settings = self.settings
        failures, pause, best = 0, settings.first_pause, 0
        asked_again = False
        while True:
            login = self._logins.of(url, spot, stop, alone=alone)
            session: Optional[FtpSession] = None
            try:
                with self._servers.session(
                    spot, login, owner=self, policy=self._policy, settings=settings, stop=stop
                ) as session:
                    return action(session)
            except (StagingError, Stopped):
                raise
            except Exception as error:
                stop.check()
                found = explain(error, login.secret)
                if found is None:
                    raise
                why, passing = found
                if code_of(error) == 530 and not passing and not asked_again:
                    # It may have rotated since it was asked for.
                    asked_again = True
                    self._logins.forget(url)
                    if self._logins.of(url, spot, stop, alone=alone) != login:
                        continue
                if not passing:
                    raise StagingError("%s: %s." % (what, why)) from error
                now = progress() if progress is not None else 0
                if session is not None and session.reused and session.broken and now <= best:
                    continue  # it had been closed while nobody used it
                if now > best:
                    failures, pause, best = 0, settings.first_pause, now
                failures += 1
                if failures >= (tries or settings.tries):
                    raise StagingError("%s: %s (tried %d times)." % (what, why, failures), transient=True) from error
            stop.wait(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, settings.max_pause)

    def login(self, url: str, spot: FtpUrl, stop: Stop) -> FtpLogin:
        """Who to be for a URL of the task. Raises `StagingError`, `Stopped`."""
        return self._logins.of(url, spot, stop)

    def once(self, spot: FtpUrl, url: str, action: Callable[[FtpSession], None], stop: Stop) -> None:
        """Call `action` with a session, for what may be left undone: whoever calls does the rest by `act`.

        Faults of transfers and of local files end it in silence. Raises `StagingError`, `Stopped`.
        """
        login = self._logins.of(url, spot, stop)
        try:
            with self._servers.session(
                spot, login, owner=self, policy=self._policy, settings=self.settings, stop=stop
            ) as session:
                action(session)
        except (StagingError, Stopped):
            raise
        except PathRefused:
            return
        except Exception as error:
            stop.check()
            if explain(error) is None:
                raise

    def close(self) -> None:
        """Close what is kept open."""
        self._servers.drop(self)
