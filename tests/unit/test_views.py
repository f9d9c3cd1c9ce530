"""Views: what each of them shows."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from tesgate.model.records import AttemptRecord, TaskRecord, View
from tesgate.services.tasks import decode_page_token, encode_page_token
from tesgate.services.views import rfc3339, task_json

DOCUMENT = {
    "name": "n",
    "executors": [{"image": "a", "command": ["b"]}],
    "inputs": [{"path": "/in/a", "content": "x", "type": "FILE"}],
}


def record(**fields) -> TaskRecord:
    attempt = AttemptRecord(
        number=1,
        start_time="2026-10-02T10:00:00Z",
        executors=[
            {
                "start_time": "2026-10-02T10:00:01Z",
                "end_time": "2026-10-02T10:00:02Z",
                "exit_code": 0,
                "stdout": "out",
                "stderr": "err",
                "max_rss_bytes": 4096,
            },
            {"start_time": "2026-10-02T10:00:03Z", "stdout": "running", "stderr": ""},
        ],
        system_logs=["said"],
        outputs=[{"url": "u", "path": "/p", "size_bytes": 2**40}],
        metadata={"host": "h"},
    )
    created = datetime(2026, 10, 2, 9, 0, 0, 123456, tzinfo=UTC)
    return TaskRecord("id", "RUNNING", DOCUMENT, created, fields.get("attempts", [attempt]))


def shown_as(task: TaskRecord, view: View) -> Any:
    """The answer; a document that comes as stored text gives the same as one of values."""
    shown = json.loads(task_json(task, view))
    text = json.dumps(task.document, ensure_ascii=False, indent=1)
    assert json.loads(task_json(replace(task, document=text), view)) == shown
    return shown


def test_minimal() -> None:
    assert shown_as(record(), "MINIMAL") == {"id": "id", "state": "RUNNING"}


def test_full() -> None:
    assert shown_as(record(), "FULL") == {
        "id": "id",
        "state": "RUNNING",
        **DOCUMENT,
        "creation_time": "2026-10-02T09:00:00.123Z",
        "logs": [
            {
                "start_time": "2026-10-02T10:00:00Z",
                "logs": [
                    {
                        "start_time": "2026-10-02T10:00:01Z",
                        "end_time": "2026-10-02T10:00:02Z",
                        "exit_code": 0,
                        "stdout": "out",
                        "stderr": "err",
                    }
                ],
                "outputs": [{"url": "u", "path": "/p", "size_bytes": "1099511627776"}],
                "metadata": {"host": "h", "executor.0.max_rss_bytes": "4096"},
                "system_logs": ["said"],
            }
        ],
    }


def test_basic_leaves_out_four_fields_and_nothing_else() -> None:
    full, basic = shown_as(record(), "FULL"), shown_as(record(), "BASIC")
    del full["logs"][0]["system_logs"], full["logs"][0]["logs"][0]["stdout"], full["logs"][0]["logs"][0]["stderr"]
    full["inputs"] = [{"path": "/in/a", "type": "FILE"}]
    assert basic == full
    assert DOCUMENT["inputs"] == [{"path": "/in/a", "content": "x", "type": "FILE"}], "the stored one is untouched"


def test_an_attempt_that_never_started_has_its_lists_and_no_times() -> None:
    shown = shown_as(record(attempts=[AttemptRecord(number=1)]), "FULL")
    assert shown["logs"] == [{"logs": [], "outputs": [], "system_logs": []}]


def test_times_are_utc_with_z() -> None:
    moment = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert rfc3339(moment) == "2025-12-31T23:00:00.000Z"


def test_page_tokens() -> None:
    id = "01h00000000000000000000000"
    token = encode_page_token(id)
    assert id not in token
    assert decode_page_token(token) == id
    assert encode_page_token(id) == token, "nothing of this process is in it"
