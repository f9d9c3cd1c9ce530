"""From a stored task to the TES document of one view. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json, to_json

from tesgate.model.records import AttemptRecord, TaskRecord, View
from tesgate.services.dialects import OldDialect

__all__ = ["rfc3339", "task_json"]

_USAGE = ("max_rss_bytes", "cpu_seconds", "wall_seconds", "image_digest")


def rfc3339(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds and ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def task_json(task: TaskRecord, view: View, *, old: OldDialect | None = None) -> bytes:
    """Build the answer; nothing is in it that the client did not send, except what the specification adds.

    `old`: for a client of TES 1.0, in its words.
    """
    state = task.state if old is None else old.state(task.state)
    # Ids and states need no escaping: both are words of ours.
    head = f'{{"id":"{task.id}","state":"{state}"'
    if view == "MINIMAL":
        return f"{head}}}".encode()
    added: dict[str, Any] = {"logs": [_task_log(attempt, full=view == "FULL") for attempt in task.attempts]}
    if task.created_at is not None:
        added["creation_time"] = rfc3339(task.created_at)
    document = _document(task.document, view, old).strip()[1:-1].strip()
    return b"%b%b%b,%b" % (head.encode(), b"," if document else b"", document, to_json(added)[1:])


def _document(document: Mapping[str, Any] | str | None, view: View, old: OldDialect | None) -> bytes:
    """The document as JSON. A text goes through as it is, but for BASIC where it may hold contents of inputs."""
    if isinstance(document, str) and old is None and (view != "BASIC" or '"content"' not in document):
        return document.encode()
    values: dict[str, Any] = dict(from_json(document) if isinstance(document, str) else document or {})
    if old is not None:
        values = old.document(values)
    if view == "BASIC" and any("content" in item for item in values.get("inputs", ())):
        values["inputs"] = [
            {key: value for key, value in item.items() if key != "content"} for item in values["inputs"]
        ]
    return to_json(values)


def _task_log(attempt: AttemptRecord, *, full: bool) -> dict[str, Any]:
    # Clients cannot read an executor log without an exit code: only executors that have ended are shown.
    log: dict[str, Any] = {
        "logs": [_executor_log(item, full=full) for item in attempt.executors if item.get("exit_code") is not None],
        "outputs": [
            {"url": item["url"], "path": item["path"], "size_bytes": str(item["size_bytes"])}
            for item in attempt.outputs
        ],
    }
    _times(log, attempt.start_time, attempt.end_time)
    metadata = {**attempt.metadata, **_usage(attempt)}
    if metadata:
        log["metadata"] = {str(key): str(value) for key, value in metadata.items()}
    if full:
        log["system_logs"] = list(attempt.system_logs)
    return log


def _executor_log(item: Mapping[str, Any], *, full: bool) -> dict[str, Any]:
    log: dict[str, Any] = {"exit_code": item["exit_code"]}
    _times(log, item.get("start_time"), item.get("end_time"))
    if full:
        log["stdout"] = item.get("stdout") or ""
        log["stderr"] = item.get("stderr") or ""
    return log


def _times(log: dict[str, Any], start: datetime | str | None, end: datetime | str | None) -> None:
    for name, moment in (("start_time", start), ("end_time", end)):
        if moment:
            log[name] = rfc3339(moment) if isinstance(moment, datetime) else moment


def _usage(attempt: AttemptRecord) -> dict[str, str]:
    """What each executor used: the specification has no field for it, and metadata is the place for such words."""
    return {
        f"executor.{index}.{name}": str(item[name])
        for index, item in enumerate(attempt.executors)
        for name in _USAGE
        if item.get(name) is not None
    }
