"""Sessions of one agent: so many at each server and no more, kept for the attempt that opened them."""

from __future__ import annotations

import ftplib
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Tuple

from .ftpfaults import is_full
from .ftplogin import FtpLogin
from .ftpsession import FtpSession, FtpSettings, Habits, Trust
from .ftpurl import FtpUrl
from .policy import AddressPolicy
from .threads import Stop

__all__ = ["FtpServers"]

_IDLE = 30.0
"""Seconds for which a session is kept that nobody uses."""
_MEMORY = 60.0
"""Seconds for which a server's "too many" counts, and for which a server is known that nobody uses."""


@dataclass
class _Idle:
    session: FtpSession
    owner: int
    since: float


@dataclass
class _Server:
    habits: Habits = field(default_factory=Habits)
    users: int = 0
    """Threads that hold a session or wait for one."""
    used: float = field(default_factory=time.monotonic)
    """When the last of them was done."""
    opened: int = 0
    """Sessions that are open or being opened, idle ones too."""
    idle: List[_Idle] = field(default_factory=list)
    ceiling: Optional[int] = None
    """As many as it took before it said "too many"."""
    ceiling_until: float = 0.0


class FtpServers:
    """All of an agent, shared by its attempts. Safe in many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._servers: Dict[Tuple[str, int, bool], _Server] = {}
        self._trust = Trust()

    @contextmanager
    def session(
        self,
        spot: FtpUrl,
        login: FtpLogin,
        *,
        owner: object,
        policy: AddressPolicy,
        settings: FtpSettings,
        stop: Stop,
    ) -> Iterator[FtpSession]:
        """Hold a session; one of `owner`'s own is used again. A thread must hold one at a time.

        Waits for a free place. Raises `Stopped` and what opening raises.
        """
        key = (spot.host, spot.port, spot.implicit)
        with self._changed:
            server = self._servers.setdefault(key, _Server())
            server.users += 1
        try:
            with self._held(server, spot, login, owner, policy, settings, stop) as session:
                yield session
        finally:
            with self._changed:
                server.users -= 1
                server.used = time.monotonic()

    @contextmanager
    def _held(
        self,
        server: _Server,
        spot: FtpUrl,
        login: FtpLogin,
        owner: object,
        policy: AddressPolicy,
        settings: FtpSettings,
        stop: Stop,
    ) -> Iterator[FtpSession]:
        held = self._kept(server, login, id(owner), stop)
        try:
            if held is None:
                try:
                    held = FtpSession(
                        spot,
                        login,
                        policy=policy,
                        settings=settings,
                        habits=server.habits,
                        trust=self._trust,
                        stop=stop,
                    )
                except ftplib.Error as error:
                    self._lower(server, error)
                    raise
            else:
                held.reused = True
                held.bind(stop)
            yield held
        finally:
            if held is not None:
                held.unbind()
            self._give_back(server, held, id(owner))

    def _kept(self, server: _Server, login: FtpLogin, owner: int, stop: Stop) -> Optional[FtpSession]:
        """Wait for a place: an idle session of the owner's, or None for the right to open one."""
        number = stop.add(self._wake)
        gone: List[FtpSession] = []
        try:
            with self._changed:
                while True:
                    stop.check()
                    now = time.monotonic()
                    self._reap(now, gone)
                    limit = login.sessions
                    if server.ceiling is not None and now < server.ceiling_until:
                        limit = min(limit, server.ceiling)
                    ours = [one for one in server.idle if one.owner == owner and one.session.login_as == login]
                    if ours and server.opened <= max(limit, 1):
                        server.idle.remove(ours[-1])
                        return ours[-1].session
                    if server.opened >= limit and server.idle:
                        oldest = min(server.idle, key=lambda one: one.since)
                        server.idle.remove(oldest)
                        server.opened -= 1
                        gone.append(oldest.session)
                        continue
                    if server.opened < limit:
                        server.opened += 1
                        return None
                    self._changed.wait(5.0)
        finally:
            stop.remove(number)
            for session in gone:
                session.end()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _reap(self, now: float, gone: List[FtpSession]) -> None:
        for key, server in list(self._servers.items()):
            for one in [one for one in server.idle if now - one.since > _IDLE]:
                server.idle.remove(one)
                server.opened -= 1
                gone.append(one.session)
            # A task chooses the names: without this an agent would know ever more servers.
            if not server.users and not server.opened and now - server.used > _MEMORY:
                del self._servers[key]

    def _give_back(self, server: _Server, session: Optional[FtpSession], owner: int) -> None:
        keep = session is not None and not session.broken
        if session is not None and not keep:
            session.end()
        with self._changed:
            if session is not None and keep:
                server.idle.append(_Idle(session, owner, time.monotonic()))
            else:
                server.opened -= 1
            self._changed.notify_all()

    def _lower(self, server: _Server, error: ftplib.Error) -> None:
        """Take "too many" at its word, as far as we are among them."""
        if not is_full(error):
            return
        with self._changed:
            if server.opened > 1:
                server.ceiling, server.ceiling_until = server.opened - 1, time.monotonic() + _MEMORY

    def drop(self, owner: object = None) -> None:
        """Close what is kept for an owner, or for all."""
        with self._changed:
            gone = []
            for server in self._servers.values():
                for one in [one for one in server.idle if owner is None or one.owner == id(owner)]:
                    server.idle.remove(one)
                    server.opened -= 1
                    gone.append(one.session)
            self._changed.notify_all()
        for session in gone:
            session.end()

    def count(self) -> int:
        """Open sessions."""
        with self._changed:
            return sum(server.opened for server in self._servers.values())
