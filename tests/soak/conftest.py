"""Rounds of the soak: ROUNDS of them from SEED on; each scenario of a round draws its faults from the round's seed."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.faults.conftest import external

__all__ = ["external"]

HERE = Path(__file__).parent
FIRST = int(os.environ.get("SEED") or secrets.randbelow(10**6))
ROUNDS = int(os.environ.get("ROUNDS") or 1)

_failed: list[tuple[int, str]] = []
_selected: list[str] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(FIRST, FIRST + ROUNDS), ids=lambda seed: f"seed-{seed}", scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A round after the other; what is for one round only comes in the first."""
    if not all(item.path.is_relative_to(HERE) for item in items):
        return  # pytest asks us about everybody's tests
    items[:] = [
        item
        for item in items
        if not item.get_closest_marker("once") or item.callspec.params["seed"] == FIRST  # type: ignore[attr-defined]
    ]
    _selected.extend(item.nodeid for item in items)
    items.sort(key=lambda item: item.callspec.params["seed"])  # type: ignore[attr-defined]


@pytest.fixture
def rng(seed: int, request: pytest.FixtureRequest) -> random.Random:
    """Chance, repeatable: of this round and this scenario."""
    name = request.function.__name__
    print(f"\nseed {seed}: {name}", flush=True)  # noqa: T201
    return random.Random(f"{seed} {name}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        pair = (item.callspec.params["seed"], item.function.__name__)  # type: ignore[attr-defined]
        if pair not in _failed:
            _failed.append(pair)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _selected:
        return
    last = FIRST + ROUNDS - 1
    terminalreporter.section("soak")
    terminalreporter.line(f"seeds {FIRST} to {last}: {len(_failed)} failures")
    for seed, name in _failed:
        terminalreporter.line(f"  to repeat: make soak ROUNDS=1 SEED={seed} ARGS='-k {name}'")
