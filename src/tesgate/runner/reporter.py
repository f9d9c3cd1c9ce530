"""Tells the gateway the newest state of one attempt without anybody waiting for it, and counts the publish lease."""

from __future__ import annotations

import logging
import time
from typing import Callable, List, Optional

import anyio

from .clock import boottime
from .gateway import Backoff, GatewayClient, GatewayFault, Gone, Unauthorized
from .journal import Journal
from .report import Answer, AttemptRef, OutputFile, Report, Snapshot

__all__ = ["Lease", "Reporter"]

MARGIN = 2.0
"""Seconds that we stop short of the lease's end: what was begun just before still has to land."""
RENEW = 10.0
LEAST_GAP = 1.0
UNAUTHORIZED_PAUSE = 5.0


class Lease:
    """The publish lease as the runner counts it: from before it asked."""

    def __init__(self, *, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._until = 0.0

    def granted(self, asked_at: float, seconds: float) -> None:
        """Take note of an answer; 0 seconds is no lease, and takes none back either."""
        if seconds > 0:
            self._until = max(self._until, asked_at + seconds)

    def left(self) -> float:
        """Return the seconds in which something may still be made visible; not positive: nothing may."""
        return self._until - MARGIN - self._clock()


class Reporter:
    """Sends the newest snapshot: at once where it matters, else at most once a second, and every ten seconds anyway.

    Versions rise within a run by one and from run to run by far (seconds of the wall clock, and more than any that the
    journal knows), so that they rise whatever is lost.
    """

    def __init__(
        self,
        *,
        client: GatewayClient,
        ref: AttemptRef,
        token: str,
        instance: str,
        journal: Journal,
        snapshot: Snapshot,
        answered: Callable[[Answer], None],
        gone: Callable[[], None],
        log: logging.LoggerAdapter,  # type: ignore[type-arg]  # 3.9 cannot subscript it at run time
    ) -> None:
        self._client, self._ref, self._token, self._instance = client, ref, token, instance
        self._answered, self._gone, self._log = answered, gone, log
        self.snapshot = snapshot
        self.lease = Lease()
        last = max([int(entry.get("run", 0)) for entry in journal.all("resumed")], default=0)
        run = max(last + 1, int(time.time()))
        journal.append("resumed", run=run)
        self._version = run << 20
        self._due = float("inf")
        self._sent_at = 0.0
        self._event: Optional[anyio.Event] = None
        self._closed = False

    # -- the newest snapshot -----------------------------------------------------------------------------------

    def changed(self, *, urgent: bool = False) -> None:
        """Have the snapshot sent: at once, or with the next one."""
        self._due = min(self._due, 0.0 if urgent else self._sent_at + LEAST_GAP)
        if self._event is not None:
            self._event.set()

    def close(self) -> None:
        """The last word is being said: send no more, and take no notice of an answer that is still under way."""
        self._closed = True

    def open(self) -> None:
        """Take `close` back: it was not the last word."""
        self._closed = False
        if self._event is not None:
            self._event.set()

    async def run(self) -> None:
        """Send until cancelled or gone."""
        backoff = Backoff()
        self._due = min(self._due, anyio.current_time() + RENEW)
        while True:
            self._event = anyio.Event()
            pause = self._due - anyio.current_time()
            if pause > 0 or self._closed:
                with anyio.move_on_after(None if self._closed else pause):
                    await self._event.wait()
                continue
            self._sent_at = anyio.current_time()
            self._due = self._sent_at + (RENEW / 2 if self.lease.left() > 0 else RENEW)
            try:
                await self.send("report")
                backoff.reset()
            except Gone:
                if not self._closed:
                    self._gone()
                    return
            except Unauthorized as exc:
                self._log.error("the gateway does not take this attempt's token: %s", exc)
                await self._client.pause(UNAUTHORIZED_PAUSE)
                self._due = 0.0
            except GatewayFault as exc:
                self._log.info("no report for now: %s", exc)
                await self._client.pause(backoff.next())
                self._due = 0.0

    async def flush(self) -> None:
        """Send what has not been sent, once; for an orderly end. Faults are kept to ourselves."""
        if self._due <= anyio.current_time() + LEAST_GAP and not self._closed:
            try:
                await self.send("report")
            except GatewayFault as exc:
                self._log.info("the last report did not get through: %s", exc)

    # -- any message -------------------------------------------------------------------------------------------

    async def send(
        self,
        message: str,
        *,
        state: Optional[str] = None,
        outputs: Optional[List[OutputFile]] = None,
        published: bool = False,
        cause: Optional[str] = None,
    ) -> Answer:
        """Send one message once, with the snapshot of this moment and the next version. Raises `GatewayFault`."""
        self._version += 1
        report = Report(
            version=self._version,
            instance=self._instance,
            snapshot=self.snapshot,
            state=state,
            outputs=outputs or [],
            published=published,
            cause=cause,
        )
        asked_at = boottime()
        answer = await self._client.send(self._ref, self._token, message, report)
        self.lease.granted(asked_at, answer.lease)
        if message != "report" or not self._closed:
            self._answered(answer)
        return answer
