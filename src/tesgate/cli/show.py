"""Shows tasks to people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tesgate.cli.watch import STYLES, describe

__all__ = ["age", "show_list", "show_task"]


def age(then: str | None, now: datetime | None = None) -> str:
    """How long ago an RFC 3339 time was, in one unit."""
    if not then:
        return ""
    try:
        moment = datetime.fromisoformat(then)
    except ValueError:
        return then
    seconds = ((now or datetime.now(UTC)) - moment.replace(tzinfo=moment.tzinfo or UTC)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"


def show_list(tasks: list[dict[str, Any]], console: Console | None = None) -> None:
    """One line for each task."""
    console = console or Console()
    if not console.is_terminal:
        for task in tasks:
            fields = (task.get("id"), task.get("state"), task.get("creation_time"), task.get("name"))
            print(*("" if field is None else field for field in fields), sep="\t", file=console.file)
        return
    if not tasks:
        console.print("No tasks.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("task", "state", "created", "name", ""):
        table.add_column(heading, no_wrap=heading in ("task", "state", "created"))
    for task in tasks:
        state = str(task.get("state"))
        table.add_row(
            str(task.get("id")),
            Text(state, STYLES.get(state, "")),
            age(task.get("creation_time")),
            Text(str(task.get("name") or "")),
            Text(describe(task), "dim"),
        )
    console.print(table)


def show_task(task: dict[str, Any], console: Console | None = None) -> None:
    """All that matters of one task."""
    console = console or Console()

    def line(label: str, value: object, style: str = "") -> None:
        if value not in (None, "", [], {}):
            console.print(Text(f"{label:<10}", "dim") + Text(str(value), style), soft_wrap=True)

    state = str(task.get("state"))
    line("task", task.get("id"))
    line("name", task.get("name"))
    line("state", f"{state}  {describe(task)}".rstrip(), STYLES.get(state, ""))
    line("created", task.get("creation_time"))
    line("about", task.get("description"))
    line("tags", ", ".join(f"{key}={value}" for key, value in (task.get("tags") or {}).items()))
    line("resources", ", ".join(f"{key}={value}" for key, value in (task.get("resources") or {}).items()))
    for item in task.get("inputs") or []:
        line("input", f"{item.get('path')}  <-  {item.get('url') or 'inline content'}")
    for item in task.get("outputs") or []:
        line("output", f"{item.get('path')}  ->  {item.get('url')}")
    for number, attempt in enumerate(task.get("logs") or [], start=1):
        console.print()
        line("attempt", f"{number}  {attempt.get('start_time') or 'not started'} .. {attempt.get('end_time') or ''}")
        for index, log in enumerate(attempt.get("logs") or []):
            commands = task.get("executors") or []
            words = " ".join(map(str, commands[index].get("command") or [])) if index < len(commands) else ""
            code = log.get("exit_code")
            line(f"exit {code}", words if len(words) < 200 else words[:200] + "…", "" if code == 0 else "red")
            for stream in ("stdout", "stderr"):
                for text in (log.get(stream) or "").splitlines()[-10:]:
                    line(f"  {stream}", text)
        for item in attempt.get("outputs") or []:
            line("stored", f"{item.get('url')}  ({item.get('size_bytes')} bytes)")
        for text in attempt.get("system_logs") or []:
            line("system", str(text).rstrip())
