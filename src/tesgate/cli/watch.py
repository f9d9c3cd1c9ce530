"""Follows tasks until they end: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tesgate.cli.client import TERMINAL, Unreachable
from tesgate.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["STYLES", "Tasks", "Watched", "describe", "follow", "table_of"]

STYLES = {
    "COMPLETE": "bold green",
    "EXECUTOR_ERROR": "bold red",
    "SYSTEM_ERROR": "bold red",
    "CANCELED": "yellow",
    "CANCELING": "yellow",
    "RUNNING": "cyan",
    "INITIALIZING": "blue",
}
_PATIENCE = 60.0
"""Seconds for which an unreachable server is waited for while tasks are followed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0


class Tasks(Protocol):
    """What is asked of the server."""

    def get(self, task_id: str, view: str = ...) -> dict[str, Any]:
        """Read one task. Raises `Unreachable` for faults that pass, `Failure` for others."""


@dataclass
class Watched:
    """One task, as last seen."""

    id: str
    task: dict[str, Any]
    began: float
    ended: float | None = None

    @property
    def state(self) -> str:
        """As the server says it; UNKNOWN before it was asked."""
        return str(self.task.get("state") or "UNKNOWN")

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state in TERMINAL


def describe(task: dict[str, Any]) -> str:
    """Where a task stands, in a few words."""
    logs = task.get("logs") or []
    last = logs[-1] if logs else {}
    ended = last.get("logs") or []
    of = len(task.get("executors") or [])
    state = task.get("state")
    retry = f"attempt {len(logs)}, " if len(logs) > 1 else ""
    if state == "COMPLETE":
        outputs = len(last.get("outputs") or [])
        return retry + (f"{outputs} output{'s' * (outputs != 1)} stored" if outputs else "done")
    if state == "EXECUTOR_ERROR" and ended:
        return f"{retry}executor {len(ended)} of {of} ended with exit code {ended[-1].get('exit_code')}"
    if state == "SYSTEM_ERROR":
        said = last.get("system_logs") or []
        return retry + (str(said[-1]).strip() if said else "see `tesgate task get`")
    if state == "RUNNING" and of:
        return f"{retry}executor {min(len(ended) + 1, of)} of {of}" if len(ended) < of else f"{retry}storing outputs"
    return {"QUEUED": "waiting", "INITIALIZING": retry + "staging inputs"}.get(str(state), retry.rstrip(", "))


def table_of(watched: Iterable[Watched], now: float) -> Table:
    """The table of all that is followed."""
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("", "task", "name", "state"):
        table.add_column(heading, no_wrap=heading != "name")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("")
    marks = {"COMPLETE": Text("✓", "bold green"), "CANCELED": Text("■", "yellow")}
    for item in watched:
        table.add_row(
            marks.get(item.state, Text("✗", "bold red")) if item.done else Spinner("dots", style="cyan"),
            Text(item.id),
            Text(str(item.task.get("name") or "")),
            Text(item.state, STYLES.get(item.state, "")),
            f"{(item.ended or now) - item.began:.1f} s",
            Text(describe(item.task), "dim"),
        )
    return table


def follow(
    client: Tasks,
    ids: Sequence[str],
    *,
    console: Console,
    timeout: float | None = None,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[dict[str, Any]]:
    """Poll until all tasks have ended; answer them (FULL view) in the order of `ids`.

    Raises `Failure` with code 124 after `timeout` seconds, and what the client raises; a server that is away is
    waited for.
    """
    start = clock()
    watched = {task_id: Watched(task_id, {"id": task_id}, start) for task_id in dict.fromkeys(ids)}
    pause = _FIRST_PAUSE
    away_since: float | None = None
    with ExitStack() as stack:
        live = None
        if not quiet and console.is_terminal:
            from rich.live import Live

            live = Live(
                get_renderable=lambda: table_of(watched.values(), clock()), console=console, refresh_per_second=10
            )
            stack.enter_context(live)
        while True:
            changed = False
            try:
                for item in watched.values():
                    if not item.done and _look(client, item, clock):
                        changed = True
                        if live is None and not quiet:
                            _say(console, item)
                away_since = None
            except Unreachable:
                away_since = clock() if away_since is None else away_since
                if clock() - away_since > _PATIENCE:
                    raise
            if all(item.done for item in watched.values()):
                break
            left = None if timeout is None else start + timeout - clock()
            if left is not None and left <= 0:
                open_ids = [item.id for item in watched.values() if not item.done]
                raise Failure(
                    f"After {timeout:g} s {len(open_ids)} of {len(watched)} tasks had not ended, first {open_ids[0]};"
                    " they go on: wait again, or `tesgate task cancel` them.",
                    Exit.TIMEOUT,
                )
            pause = _FIRST_PAUSE if changed else min(pause * 1.3, _LONGEST_PAUSE)
            sleep(pause if left is None else min(pause, left))
    return [client.get(task_id, "FULL") for task_id in ids]


def _look(client: Tasks, item: Watched, clock: Callable[[], float]) -> bool:
    """Read the task again; whether it stands elsewhere than before."""
    before = (item.state, describe(item.task))
    item.task = client.get(item.id, "BASIC")
    if item.done:
        item.ended = clock()
        if item.state == "SYSTEM_ERROR":  # the reason is in the system's logs, which only FULL has
            item.task = client.get(item.id, "FULL")
    return (item.state, describe(item.task)) != before


def _say(console: Console, item: Watched) -> None:
    words = (item.id, str(item.task.get("name") or ""), item.state, describe(item.task))
    console.print("  ".join(word for word in words if word), markup=False, highlight=False, soft_wrap=True)
