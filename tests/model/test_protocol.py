"""The protocol is safe and never stuck, and every variant and every guard taken away is found."""

from __future__ import annotations

import functools
import inspect

import pytest

from tests.model.protocol import Protocol, Scope, State
from tests.model.search import SCOPES, VARIANTS, Result, explore

PARTS = {"write", "close", "may_end", "give_up", "current", "refuse", "agent", "host", "process", "runner"}
PARTS |= {"newest", "given_up", "acknowledge", "answer", "register", "ran", "says", "steps"}

walk: functools.partial[Result] = functools.partial(functools.cache(lambda scope: explore(Protocol(scope))))


@pytest.mark.parametrize(
    "scope", [pytest.param(s, marks=[pytest.mark.slow] * (s == Scope()), id=str(s)) for s in SCOPES]
)
def test_protocol_is_safe_and_never_stuck(scope: Scope) -> None:
    assert not walk(scope).violation, f"\n{walk(scope)}"
    assert walk(scope).states > SCOPES[scope]


def test_everything_happens() -> None:
    rows = {row for row, _ in inspect.getmembers(Protocol, inspect.isfunction) if row[0] != "_"} - PARTS
    assert rows - walk(Scope(executors=2, faults=1)).rows == {"kill_in_start", "kill_owner", "adopt"}


@pytest.mark.slow
def test_the_one_request_under_way_may_land_after_the_end() -> None:
    assert {"kill_owner", "adopt", "stored after the end"} <= walk(Scope()).rows


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_is_found(variant: str) -> None:
    only, scope = VARIANTS[variant]
    found = explore(Protocol(scope, variant), only)
    assert found.violation.startswith(only), f"{variant} breaks nothing:\n{found}"
    assert len(found.trace) > 2


def test_without_faults_the_first_attempt_is_the_last() -> None:
    class Once(Protocol):
        def give_up(self, s: State, n: int, how: str) -> State:
            raise AssertionError(f"attempt {n} came to nothing: {how}")

    assert not explore(Once(Scope(executors=2, faults=0, cancel=False))).violation
