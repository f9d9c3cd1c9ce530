"""How long tasks wait and what attempts spend their time on, for the histograms.

Nothing is asked and nothing is stored for it: a task's id says when it was submitted, and its attempt's last report
when staging and executors began and ended (by the agent's clock: spans across machines are as good as their clocks).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise

from tesgate.metrics import Metrics
from tesgate.model.ids import created_at
from tesgate.runner.report import Report
from tesgate.store.attempts import Assigned

__all__ = ["Timing"]

KEPT = 20_000
"""Attempts whose assignment is remembered; with several replicas another one may hear of their end."""


PHASES = ("handover", "staging_in", "running", "staging_out")
"""From the assignment to the agent's begin, to the first executor's start, to the last one's end, to the finish."""


class Timing:
    """Observes spans in seconds."""

    def __init__(self, *, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        self._assigned: OrderedDict[tuple[str, int], float] = OrderedDict()

    def assigned(self, given: Sequence[Assigned]) -> None:
        """The dispatcher gave these to agents."""
        now = self._clock()
        for item in given:
            self._assigned[item.task_id, item.number] = now
            if item.number == 1 and (submitted := created_at(item.task_id)) is not None:
                self._metrics.queue_seconds.observe(max(0.0, now - submitted))
        while len(self._assigned) > KEPT:
            self._assigned.popitem(last=False)

    def finished(self, task_id: str, number: int, report: Report) -> None:
        """The attempt ended its task."""
        now, snapshot = self._clock(), report.snapshot
        submitted = created_at(task_id)
        if submitted is not None:
            self._metrics.task_seconds.labels(report.state or "").observe(max(0.0, now - submitted))
        begun = _moment(snapshot.start_time)
        first = _moment(snapshot.executors[0].start_time) if snapshot.executors else None
        last = _moment(snapshot.executors[-1].end_time) if snapshot.executors else None
        if number == 1 and first is not None and submitted is not None:
            self._metrics.start_seconds.observe(max(0.0, first - submitted))
        moments = [self._assigned.pop((task_id, number), None), begun, first, last, now]
        for phase, (start, end) in zip(PHASES, pairwise(moments), strict=True):
            if start is not None and end is not None:
                self._metrics.phase_seconds.labels(phase).observe(max(0.0, end - start))

    def closed(self, task_id: str, number: int) -> None:
        """The attempt ended in another way."""
        self._assigned.pop((task_id, number), None)


def _moment(text: str | None) -> float | None:
    try:
        return None if text is None else datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
