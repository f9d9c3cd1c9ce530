"""The attempts of which this host has a directory: taken up at the start, begun, followed until they are removed."""

from __future__ import annotations

import logging
import os
from typing import Dict, Iterator, Optional, Set, Tuple

import anyio
import anyio.abc

from .attempt import Attempt
from .journal import Journal
from .plan import Plan
from .report import AttemptRef
from .scratch import Scratch, ScratchError
from .work import Tools

__all__ = ["AGAIN", "Attempts"]

AGAIN = 30.0

_log = logging.getLogger("tesgate.agent")


class Attempts:
    """The living attempts by external name, and those that will never begin here."""

    def __init__(self, *, scratch: Scratch, tools: Tools, group: anyio.abc.TaskGroup) -> None:
        self._scratch, self._tools, self._group = scratch, tools, group
        self._known: Dict[str, Attempt] = {}
        self.agent = ""
        """Id of the agent, as registered."""
        self.refused: Set[Tuple[str, int]] = set()
        """Attempts that will never begin here, until the gateway says that it knows (`forget`). Not kept on disk: it
        says `stop` or `start` again to whoever does not have them."""

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._known.values()))

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def find(self, ref: AttemptRef) -> Optional[Attempt]:
        """Return the living attempt of that name."""
        return next((attempt for attempt in self._known.values() if attempt.ref == ref), None)

    def adopt(self) -> None:
        """Take up every attempt directory that is there."""
        if not os.path.exists(os.path.join(self._scratch.root, "contact")):
            self._scratch.note_contact()
        for name in self._scratch.names():
            # Only what is damaged is given up. A disk that is full or does not answer says nothing of the attempt,
            # which may be well: then the agent ends with all attempts as they are, and its next start tries again.
            try:
                plan, journal = self._scratch.load(name)
            except (FileNotFoundError, NotADirectoryError, ValueError) as exc:
                self._bury(name, exc)
                continue
            except OSError as exc:
                _log.error("the attempt directory %s cannot be read now, this agent ends: %s", name, exc)
                raise
            _log.info("going on", extra={"task": plan.task, "attempt": plan.attempt})
            try:
                # What the journal says is read here, so that one that makes no sense stops this attempt alone.
                self.live(plan, self._scratch.path(name), journal)
            except ValueError as exc:
                self._bury(name, exc)
            except OSError as exc:
                _log.error("the journal of %s cannot be written now, this agent ends: %s", name, exc)
                raise

    def _bury(self, name: str, fault: Exception) -> None:
        """A directory that cannot be read (a host that lost power, a failing disk): it must not begin again here.

        Should a container of it run all the same, it is an orphan and is removed as such.
        """
        _, _, ref = name.partition("-")
        task, _, attempt = ref.rpartition("-")
        task = task.rpartition("-")[2]
        try:
            if attempt.isdigit():
                self._scratch.entomb(task, int(attempt))
                self.refused.add((task, int(attempt)))
            self._scratch.remove(name)
        except (ScratchError, OSError) as exc:
            _log.error("the attempt directory %s cannot be removed: %s", name, exc)
        _log.error("the attempt directory %s is damaged, the attempt is given up: %s", name, fault)

    def live(self, plan: Plan, path: str, journal: Journal) -> None:
        attempt = self._attempt(plan, path, journal)
        self._group.start_soon(self._until_removed, attempt)

    def _attempt(self, plan: Plan, path: str, journal: Journal) -> Attempt:
        try:
            attempt = Attempt(
                plan=plan,
                path=path,
                journal=journal,
                scratch=self._scratch,
                tools=self._tools,
                agent=self.agent,
                log=_log,
            )
        except BaseException:
            journal.close()
            raise
        self._known[plan.external_name] = attempt
        return attempt

    async def _until_removed(self, attempt: Attempt) -> None:
        name = attempt.plan.external_name
        while True:
            try:
                await attempt.run()
                break
            except Exception:  # one attempt's fault must not end the others; it goes on from its journal
                _log.exception("attempt %s met a fault of the agent; it is taken up again", name)
            again = await self._again(attempt)
            if again is None:
                break
            attempt = again
        if self._known.get(name) is attempt:
            del self._known[name]

    async def _again(self, attempt: Attempt) -> Optional[Attempt]:
        """Take an attempt up again, later and from what lies on the disk; None: nothing is left of it."""
        name = attempt.plan.external_name
        while True:
            await anyio.sleep(AGAIN)
            try:
                plan, journal = self._scratch.load(name)
                return self._attempt(plan, attempt.path, journal)
            except (FileNotFoundError, ValueError) as exc:
                _log.error("attempt %s cannot be taken up again, nothing is left of it: %s", name, exc)
                return None
            except OSError as exc:  # a full disk, or one that does not answer: it stays in `have` meanwhile
                _log.error("attempt %s cannot be taken up again for now: %s", name, exc)
