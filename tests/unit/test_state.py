"""The transition table: what the specification and the protocol say about it."""

from __future__ import annotations

from tesgate.model.state import TERMINAL, TRANSITIONS, State, may_follow


def test_terminal_states_are_final() -> None:
    assert all(not TRANSITIONS[state] for state in TERMINAL)


def test_from_canceling_only_canceled_follows() -> None:
    assert TRANSITIONS[State.CANCELING] == {State.CANCELED}


def test_nothing_goes_back_to_the_queue_and_every_state_can_end() -> None:
    assert not any(may_follow(state, State.QUEUED) for state in State)
    assert not may_follow(State.RUNNING, State.INITIALIZING)
    for state in State:
        reached, edge = {state}, {state}
        while edge:
            edge = {after for before in edge for after in TRANSITIONS[before]} - reached
            reached |= edge
        assert reached & TERMINAL
