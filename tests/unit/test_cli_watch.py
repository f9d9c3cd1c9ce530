"""Following tasks with a clock of our own: who is asked when, what is said, and when it gives up."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tesgate.cli.client import Unreachable
from tesgate.cli.failure import Failure
from tesgate.cli.watch import Watched, describe, follow, table_of


class Script:
    """Answers from a list for each task; an exception in it is raised."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.now = 0.0
        self.pauses: list[float] = []

    def get(self, task_id: str, view: str = "MINIMAL") -> dict[str, Any]:
        left = self.answers[task_id]
        item = left.pop(0) if len(left) > 1 and view == "BASIC" else left[0]
        if isinstance(item, Exception):
            raise item
        return {"id": task_id, "state": item, "executors": [{}, {}], "name": "n"}

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def run(script: Script, *ids: str, terminal: bool = False, **more: Any) -> tuple[list[str], str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    tasks = follow(script, ids, console=console, clock=lambda: script.now, sleep=script.sleep, **more)
    return [task["state"] for task in tasks], out.getvalue()


def test_each_change_is_one_line() -> None:
    script = Script(a=["QUEUED", "RUNNING", "RUNNING", "COMPLETE"], b=["RUNNING"] * 3 + ["CANCELED"])
    states, said = run(script, "a", "b")
    assert states == ["COMPLETE", "CANCELED"]
    assert said.splitlines() == [
        "a  n  QUEUED  waiting",
        "b  n  RUNNING  executor 1 of 2",
        "a  n  RUNNING  executor 1 of 2",
        "a  n  COMPLETE  done",
        "b  n  CANCELED",
    ]


def test_pauses_grow_while_nothing_changes_and_not_beyond_two_seconds() -> None:
    script = Script(a=["RUNNING"] * 30 + ["COMPLETE"])
    run(script, "a")
    assert script.pauses[0] == pytest.approx(0.1)
    assert script.pauses == sorted(script.pauses)
    assert script.pauses[-1] == 2.0


def test_timeout() -> None:
    script = Script(a=["RUNNING"])
    with pytest.raises(Failure) as caught:
        run(script, "a", timeout=5.0)
    assert caught.value.code == 124
    assert script.now == pytest.approx(5.0)


def test_a_server_that_is_away_is_waited_for_but_not_for_ever() -> None:
    away = Unreachable("away")
    assert run(Script(a=["RUNNING", *[away] * 20, "COMPLETE"]), "a")[0] == ["COMPLETE"]
    script = Script(a=[away])
    with pytest.raises(Unreachable):
        run(script, "a")
    assert 60 < script.now < 65


def test_a_terminal_gets_a_table() -> None:
    _, said = run(Script(a=["RUNNING", "COMPLETE"]), "a", terminal=True)
    assert "task" in said
    assert "✓" in said


def test_table_shows_names_as_they_are() -> None:
    out = io.StringIO()
    task = {"state": "SYSTEM_ERROR", "name": "[red]n[/x]", "logs": [{"system_logs": ["[oops] no input"]}]}
    Console(file=out, width=120).print(table_of([Watched("a", task, 1.0, 3.5)], 9.0))
    assert "[red]n[/x]" in out.getvalue()
    assert "[oops] no input" in out.getvalue()
    assert "2.5 s" in out.getvalue()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"state": "RUNNING", "executors": [{}, {}], "logs": [{"logs": [{}]}]}, "executor 2 of 2"),
        ({"state": "RUNNING", "executors": [{}], "logs": [{"logs": [{}]}]}, "storing outputs"),
        ({"state": "RUNNING", "executors": [{}], "logs": [{}, {"logs": []}]}, "attempt 2, executor 1 of 1"),
        ({"state": "COMPLETE", "logs": [{"outputs": [{}]}]}, "1 output stored"),
        ({"state": "COMPLETE"}, "done"),
        (
            {"state": "EXECUTOR_ERROR", "executors": [{}], "logs": [{"logs": [{"exit_code": 3}]}]},
            "executor 1 of 1 ended with exit code 3",
        ),
        ({"state": "SYSTEM_ERROR", "logs": [{}]}, "see `tesgate task get`"),
        ({"state": "SOMETHING_NEW"}, ""),
    ],
)
def test_describe(task: dict[str, Any], words: str) -> None:
    assert describe(task) == words
