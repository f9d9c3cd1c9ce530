"""How tasks look to clients of TES 1.0: states and fields of 1.1 are folded into those that they know. Pure.

Only answers are folded. A request may hold every field of 1.1, and it is honoured, whatever the path it came by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tesgate.model.state import State

__all__ = ["FOLDED", "NEW_FIELDS", "OldDialect"]

FOLDED: Mapping[str, str] = {
    # It may still go on one day.
    "PAUSED": "QUEUED",
    # The command may still run, and what ended it is told by the CANCELED that follows. Not CANCELED itself: a client
    # that saw an end would go on while outputs of the task can still be stored.
    "CANCELING": "RUNNING",
    # The end of a task whose host was taken away, for good: the fault of the system. Between two attempts tesgate shows
    # what was seen before, never this.
    "PREEMPTED": "SYSTEM_ERROR",
}
"""States of TES 1.1, and what each is shown as. What is not here is shown as it is."""

NEW_FIELDS: Mapping[str, frozenset[str]] = {
    "inputs": frozenset({"streamable"}),
    "outputs": frozenset({"path_prefix"}),
    "executors": frozenset({"ignore_error"}),
    "resources": frozenset({"backend_parameters", "backend_parameters_strict"}),
}
"""What TES 1.1 added, by the part of the task that it is in. Models of 1.0 refuse a task that has one of them."""


@dataclass(frozen=True, slots=True)
class OldDialect:
    """TES 1.0."""

    queued_as_initializing: bool = False
    """For clients that take QUEUED for a failure."""

    def state(self, state: str) -> str:
        """What a state is shown as."""
        shown = FOLDED.get(state, state)
        return "INITIALIZING" if shown == "QUEUED" and self.queued_as_initializing else shown

    def behind(self, shown: str) -> tuple[str, ...]:
        """States of tasks that are shown as this one; none for a state that this dialect does not show."""
        return tuple(state.value for state in State if self.state(state) == shown)

    def document(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A task's document as the models of 1.0 have it. `values` stays as it is."""
        shown = dict(values)
        for part, new in NEW_FIELDS.items():
            found = values.get(part)
            if isinstance(found, list):
                shown[part] = [_without(item, new) for item in found]
            elif found is not None:
                shown[part] = _without(found, new)
        cores = shown.get("resources", {}).get("cpu_cores")
        if cores is not None:
            # An integer there. The task needs at least the fraction, so no less is shown.
            shown["resources"] = {**shown["resources"], "cpu_cores": math.ceil(cores)}
        return shown


def _without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
