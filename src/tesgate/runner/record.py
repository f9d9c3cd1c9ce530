"""What an attempt knows of itself: its journal, and the snapshot of it that the gateway is told."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Set

from . import clock, wire
from .journal import Entry, Journal
from .plan import Plan
from .report import ExecutorReport, OutputFile, Snapshot
from .verdict import Result

__all__ = ["Final", "Record", "rfc3339"]

_LATEST = 4_000_000_000.0


MOST_NOTES = 1000
"""Lines of system_logs: they are sent with every report, and kept in one row."""
_LONGEST_NOTE = 8192


def _line(text: str) -> str:
    """Without what neither JSON's readers nor PostgreSQL take (NUL, half surrogates), and not without end."""
    clean = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return clean if len(clean) <= _LONGEST_NOTE else clean[:_LONGEST_NOTE] + "…"


def rfc3339(seconds: float) -> str:
    """Format a time of the wall clock in UTC; nonsense (a task may have written it) becomes now."""
    if not 0 < seconds < _LATEST:
        seconds = time.time()
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Final:
    """The attempt's last word: ``finish`` with a state, or ``failed`` with a cause."""

    def __init__(
        self,
        message: str,
        *,
        state: Optional[str] = None,
        cause: Optional[str] = None,
        outputs: Optional[List[OutputFile]] = None,
        published: bool = False,
    ) -> None:
        self.message, self.state, self.cause = message, state, cause
        self.outputs, self.published = outputs or [], published


class Record:
    """Writes each fact to the journal, then shows it in the snapshot; made anew from the journal it is the same."""

    def __init__(self, *, plan: Plan, journal: Journal, metadata: Dict[str, str]) -> None:
        self.plan, self.journal = plan, journal
        begun = journal.find("begun")
        self.begun_at = float(begun["at"]) if begun is not None else time.time()
        self.snapshot = Snapshot(start_time=rfc3339(self.begun_at), metadata={**plan.metadata, **metadata})
        self._noted: Set[str] = set()
        try:
            for entry in journal.entries:
                self._replay(entry)
        except (KeyError, TypeError, OverflowError) as exc:
            raise ValueError("the journal holds an entry that cannot be one (%r)" % exc) from exc

    def _replay(self, entry: Entry) -> None:
        what = entry["what"]
        if what == "note":
            self._show_note(str(entry["text"]))
        elif what == "starting":
            self._show_start(int(entry["executor"]), float(entry["at"]), entry.get("digest"))
        elif what == "ended":
            report = wire.decode(ExecutorReport, entry["report"], "journal")
            self._show_end(int(entry["executor"]), report)
        elif what == "outcome":
            self.snapshot.step = "stage-out"
        elif what == "final":
            self.snapshot.step = "done"

    # -- facts -------------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Add a line to system_logs, once; cleaned and shortened, since tasks and servers choose words in it."""
        text = _line(text)
        if len(self._noted) == MOST_NOTES:
            text = "There is more to say than %d lines; the rest is left out." % MOST_NOTES
        if text and text not in self._noted and len(self._noted) <= MOST_NOTES:
            self.journal.append("note", text=text)
            self._show_note(text)

    def notes(self, texts: List[str]) -> None:
        """Add several lines."""
        for text in texts:
            self.note(text)

    def left(self) -> Optional[float]:
        """Return the seconds that the whole task still has, or None where it has no limit."""
        if self.plan.timeout is None:
            return None
        begun = self.journal.find("begun")
        return self.plan.timeout - (0.0 if begun is None else clock.since(begun))

    def started(self, index: int) -> None:
        """Show that executor `index` runs (its start is in the journal already)."""
        entry = self.journal.find("starting", executor=index)
        at, digest = (time.time(), None) if entry is None else (float(entry["at"]), entry.get("digest"))
        self._show_start(index, at, digest)

    def tail(self, index: int, stream: str, text: str) -> None:
        """Show the newest end of a running executor's stream."""
        if index < len(self.snapshot.executors):
            setattr(self.snapshot.executors[index], stream, text)

    def ended(
        self, index: int, kind: str, exit_code: Optional[int], result: Optional[Result], tails: Dict[str, str]
    ) -> None:
        """Journal and show the end of executor `index`."""
        report = self.snapshot.executors[index]
        report.exit_code = exit_code
        report.stdout, report.stderr = tails.get("stdout", ""), tails.get("stderr", "")
        report.end_time = rfc3339(time.time())
        if result is not None:
            if result.start_ns:
                report.start_time = rfc3339(result.start_ns / 1e9)
            if result.end_ns:
                report.end_time = rfc3339(result.end_ns / 1e9)
                report.wall_seconds = max(0.0, (result.end_ns - result.start_ns) / 1e9)
            report.cpu_seconds = (result.user_us + result.system_us) / 1e6
            report.max_rss_bytes = result.max_rss_bytes
        try:
            self.journal.append("ended", executor=index, kind=kind, report=wire.encode(report))
        except OSError as exc:
            _expect_full(exc)
            short = dataclasses.replace(report, stdout="", stderr="")
            self.journal.append("ended", executor=index, kind=kind, report=wire.encode(short))
        self._show_end(index, report)

    def never_begun(self, index: int, exit_code: int) -> None:
        """Show an executor whose time was up before it began: clients look for its exit code."""
        if self.journal.find("ended", executor=index) is None:
            self._show_start(index, time.time(), None)
            self.ended(index, "never-begun", exit_code, None, {})

    def outcome(self, state: str) -> None:
        """Journal what the executors amount to; stage-out follows."""
        self.journal.append("outcome", state=state)
        self.snapshot.step = "stage-out"

    def leased(self) -> None:
        """Journal, once, that outputs may become visible from now on."""
        if not self.was_leased:
            self.journal.append("leased")

    @property
    def was_leased(self) -> bool:
        """Whether this attempt ever held the publish lease."""
        return self.journal.find("leased") is not None

    def published(self, outputs: List[OutputFile]) -> None:
        """Journal what has been made visible; without the list, where the disk has no room for it."""
        try:
            self.journal.append("published", outputs=wire.encode(outputs))
        except OSError as exc:
            _expect_full(exc)
            self.journal.append("published", outputs=[])
            with contextlib.suppress(OSError):
                self.note("The disk of the agent is full: logs[].outputs may lack the list of what was stored.")

    def final(self, final: Final) -> Final:
        """Journal the last word, before it is said (`failed` also has to be on the disk before that)."""
        word: Dict[str, Any] = {"message": final.message, "state": final.state, "cause": final.cause}
        word["published"] = final.published
        try:
            self.journal.append("final", **word, outputs=wire.encode(final.outputs))
        except OSError as exc:
            _expect_full(exc)
            self.journal.append("final", **word, outputs=[])
        self.snapshot.step = "done"
        return final

    def find_final(self) -> Optional[Final]:
        """Return the last word if the journal has it."""
        entry = self.journal.find("final")
        if entry is None:
            return None
        return Final(
            entry["message"],
            state=entry.get("state"),
            cause=entry.get("cause"),
            published=bool(entry.get("published")),
            outputs=_outputs(entry),
        )

    def find_published(self) -> Optional[List[OutputFile]]:
        """Return what has been made visible, if stage-out is done."""
        entry = self.journal.find("published")
        return None if entry is None else _outputs(entry)

    # -- the snapshot ------------------------------------------------------------------------------------------

    def _show_note(self, text: str) -> None:
        self._noted.add(text)
        self.snapshot.system_logs.append(text)

    def _show_start(self, index: int, at: float, digest: Optional[str]) -> None:
        self.snapshot.step, self.snapshot.executor = "executor", index
        while len(self.snapshot.executors) <= index:
            self.snapshot.executors.append(ExecutorReport(start_time=rfc3339(at), image_digest=digest))
        if digest:
            self.snapshot.metadata["image_digest.%d" % index] = digest

    def _show_end(self, index: int, report: ExecutorReport) -> None:
        if index < len(self.snapshot.executors):
            self.snapshot.executors[index] = report
        for name in ("max_rss_bytes", "cpu_seconds", "wall_seconds"):
            value: Any = getattr(report, name)
            if value is not None:
                text = "%.3f" % value if isinstance(value, float) else str(value)
                self.snapshot.metadata["executor.%d.%s" % (index, name)] = text


def _expect_full(exc: OSError) -> None:
    """Raise what is not a full disk: there a shorter entry may still have room in what the journal has set aside."""
    if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise exc


def _outputs(entry: Entry) -> List[OutputFile]:
    return [wire.decode(OutputFile, item, "journal") for item in entry.get("outputs") or []]
