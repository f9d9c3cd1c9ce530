"""What may follow what: the states that clients see and the phases that the loops go by."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["TERMINAL", "TRANSITIONS", "Phase", "State", "may_follow"]


class State(StrEnum):
    """TES 1.1 ``tesState``, without those that tesgate never shows (UNKNOWN, PAUSED, PREEMPTED)."""

    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    CANCELING = "CANCELING"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELED = "CANCELED"


class Phase(StrEnum):
    """Where the loops have a task: nobody's, given to somebody, acknowledged by them, over."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    STARTED = "started"
    ENDED = "ended"


TERMINAL = frozenset({State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR, State.CANCELED})

_ENDS = frozenset({State.COMPLETE, State.EXECUTOR_ERROR, State.SYSTEM_ERROR})

TRANSITIONS: dict[State, frozenset[State]] = {
    # A task that no backend can take ends without having been INITIALIZING.
    State.QUEUED: frozenset({State.INITIALIZING, State.CANCELING, State.CANCELED, State.SYSTEM_ERROR}),
    # INITIALIZING -> COMPLETE: a short task can be over before anybody reported its start.
    State.INITIALIZING: frozenset({State.RUNNING, State.CANCELING, State.CANCELED}) | _ENDS,
    # RUNNING -> CANCELED: cancelled while it waits for a further attempt.
    State.RUNNING: frozenset({State.CANCELING, State.CANCELED}) | _ENDS,
    State.CANCELING: frozenset({State.CANCELED}),
    **{state: frozenset() for state in TERMINAL},
}
"""The one transition table. The store's statements keep to it; tests drive them against it."""


def may_follow(before: State, after: State) -> bool:
    """Whether a task that clients saw in `before` may next be seen in `after` (staying the same is no transition)."""
    return after in TRANSITIONS[before]
