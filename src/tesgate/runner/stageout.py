"""Stores the outputs of one attempt: under temporary names first, then by rename under the publish lease."""

from __future__ import annotations

import json
import logging
from typing import List, Optional

import anyio

from . import crash
from .gateway import Backoff, Conflict, GatewayClient, GatewayFault, Gone, Unauthorized
from .plan import Plan
from .record import Record
from .report import OutputFile
from .reporter import UNAUTHORIZED_PAUSE, Reporter
from .transfer.faults import LeaseLost, StagingError
from .transfer.stage import Stager

__all__ = ["StageOut"]

LISTED_BYTES = 16 << 20
"""Of the list of outputs, in JSON: a quarter of the longest message that a gateway takes."""


class StageOut:
    """May be cancelled and made anew at any moment: what is not journalled as published is stored again."""

    def __init__(
        self,
        *,
        plan: Plan,
        attempt_dir: str,
        record: Record,
        reporter: Reporter,
        client: GatewayClient,
        stager: Stager,
        log: logging.LoggerAdapter,  # type: ignore[type-arg]  # 3.9 cannot subscript it at run time
    ) -> None:
        self._plan, self._dir, self._record = plan, attempt_dir, record
        self._journal = record.journal
        self._reporter, self._client, self._stager, self._log = reporter, client, stager, log
        self._left: Optional[List[str]] = None
        """Of what `discard` has asked for, what is to be asked for again; None: everything."""

    async def store(self) -> List[OutputFile]:
        """Return what has been made visible. Raises `StagingError`, `Gone`."""
        plan = self._plan
        if not await self.discard():  # what a runner before us left
            # Asked for again when everything is published: those names that it uses once more are gone by then.
            self._journal.append("left", names=self._left)
        prepared = await self._stager.prepare_outputs(
            plan.outputs, plan.mounts, self._dir, plan.external_name, journal=self._note_temporaries
        )
        crash.point("during-stage-out")
        self._record.notes(prepared.notes)
        if prepared.empty:
            return []
        crash.point("before-publish")
        anew = False
        while True:
            await self._lease(anew=anew)
            self._record.leased()
            crash.point("after-lease")
            try:
                return self.listed(await self._stager.publish(prepared, self._reporter.lease.left))
            except LeaseLost as exc:
                # Gateways end it a little earlier than we: what is left of it by our count is of no use to anybody.
                anew = True
                self._log.warning("publishing goes on under another lease: %s", exc)

    def listed(self, outputs: List[OutputFile]) -> List[OutputFile]:
        """As many as one message and one row can hold. All are stored; the rest is only not listed."""
        room = LISTED_BYTES
        for count, item in enumerate(outputs):
            room -= len(json.dumps(item.url)) + len(json.dumps(item.path)) + 60
            if room < 0:
                self._record.note("%d outputs were stored; logs[].outputs lists the first %d." % (len(outputs), count))
                return outputs[:count]
        return outputs

    def _note_temporaries(self, names: List[str]) -> None:
        self._journal.append("temporaries", names=names)
        self._left = None

    async def _lease(self, *, anew: bool) -> None:
        """Ask for the publish lease until it is ours; `anew`: ask in any case."""
        backoff = Backoff()
        while anew or self._reporter.lease.left() <= 0:
            try:
                await self._reporter.send("publish")
                backoff.reset()
                if self._reporter.lease.left() > 0:
                    return
                await self._client.pause(1.0)
            except Conflict as exc:
                self._log.info("not yet: %s", exc)
                await anyio.sleep(1.0)
            except Unauthorized as exc:
                self._log.error("the gateway does not take this attempt's token: %s", exc)
                await self._client.pause(UNAUTHORIZED_PAUSE)
            except Gone:
                raise
            except GatewayFault as exc:
                self._log.info("the outputs wait for the gateway: %s", exc)
                await self._client.pause(backoff.next())

    async def discard(self) -> bool:
        """Remove what lies beside the outputs' places under temporary names; idempotent. Faults are only logged.

        False: some of it lies where nobody answers now; ask again.
        """
        names = self._names() if self._left is None else self._left
        if not names:
            return True
        try:
            self._left = await self._stager.discard(names)
        except (StagingError, OSError) as exc:
            self._log.warning("temporary files of outputs are left behind: %s", exc)
            self._left = []
        return not self._left

    def _names(self) -> List[str]:
        """All names that may be there, each once."""
        names = [name for entry in self._journal.all("temporaries") for name in entry["names"]]
        if names and self._journal.find("published") is not None and self._journal.find("unpublished") is None:
            names = [name for entry in self._journal.all("left") for name in entry["names"]]
        return list(dict.fromkeys(names))
