"""The keeper: one heartbeat statement a replica, adoption of what silent ones left, and the local trust window."""

from __future__ import annotations

from datetime import timedelta

import structlog

from tesgate.control.drivers import Drivers
from tesgate.control.held import Trust
from tesgate.store.replicas import ReplicaStore
from tesgate.store.wakes import Wakes

__all__ = ["Keeper", "Superseded"]

log = structlog.get_logger(__name__)


class Superseded(BaseException):
    """Another epoch of this replica has begun: this process must go at once. Not an Exception: no loop may catch it."""


class Keeper:
    """Keeps what this replica holds, or lets go of it."""

    def __init__(
        self,
        *,
        replicas: ReplicaStore,
        trust: Trust,
        drivers: Drivers,
        wakes: Wakes,
        adopt_after: timedelta,
        adopts: bool = True,
    ) -> None:
        self._replicas = replicas
        self._trust = trust
        self._drivers = drivers
        self._wakes = wakes
        self._adopt_after = adopt_after
        self._adopts = adopts
        self._let_go = False

    async def once(self) -> bool:
        """One heartbeat. Raises `Superseded`."""
        # After a stop of the process this may run before `watch_trust`, and must not hide that others took over.
        await self.watch_trust()
        asked_at, heard = self._trust.now(), self._wakes.voices
        others = await self._replicas.beat(self._trust.holder)
        if others is None:
            raise Superseded("another process took over this replica's next epoch")
        # Who has entered since the question was answered has announced itself.
        self._wakes.alone = others == 0 and self._wakes.voices == heard
        self._trust.renew(asked_at)
        if not self._adopts:
            return False
        adopted = await self._replicas.adopt(self._trust.holder, self._adopt_after)
        if adopted:
            log.info("adopted", attempts=len(adopted))
            self._drivers.suspect(task_id for task_id, crashed in adopted.items() if crashed)
        if adopted or self._let_go:
            if self._let_go:
                # The others may think that they are alone.
                self._wakes.announce()
            self._let_go = False
            await self._drivers.compare()
        return False

    async def watch_trust(self) -> bool:
        """Past the trust window everything held is dropped; the next heartbeat reads anew what is ours."""
        if not self._trust.holds() and not self._let_go:
            self._let_go = True
            log.error("no heartbeat within the trust window; everything held is dropped")
            self._drivers.drop_all()
        return False
