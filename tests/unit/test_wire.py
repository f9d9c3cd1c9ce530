"""Messages between gateway and runner: what is written is what is read, and what does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest

from tesgate.runner.plan import Executor, Input, Mount, Plan
from tesgate.runner.report import ExecutorReport, OutputFile, PollAnswer, Report, Snapshot, StopOrder
from tesgate.runner.wire import WireError, decode, encode

PLAN = Plan(
    task="t",
    attempt=1,
    external_name="tg-d-t-1",
    executors=[Executor(image="busybox", command=["true"], env={"A": "b"}, timeout=2.0)],
    token="secret",
    deployment="d",
    mounts=[Mount(source="rw/work", target="/work")],
    inputs=[Input(path="/work/in", place="rw/work/in", content="", writable=True)],
)
REPORT = Report(
    version=3,
    instance="i",
    snapshot=Snapshot(start_time="now", executors=[ExecutorReport(start_time="now", exit_code=0, cpu_seconds=0.5)]),
    outputs=[OutputFile("file:///x", "/x", 0)],
)


@pytest.mark.parametrize("value", [PLAN, REPORT, PollAnswer(start=[PLAN], stop=[StopOrder("t", 1, 10.0)])])
def test_what_is_written_is_read(value: Any) -> None:
    written = encode(value)
    assert decode(type(value), written) == value
    assert decode(type(value), {**written, "of a later version": [1]}) == value


def test_what_is_none_is_left_out_and_whole_numbers_are_spans_too() -> None:
    written = encode(PLAN)
    assert "timeout" not in written
    written["executors"][0]["timeout"] = 2
    read = decode(Plan, written)
    assert read == PLAN
    assert type(read.executors[0].timeout) is float


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "report must be an object"),
        ({"version": 1}, "report.instance is missing"),
        ({"version": True, "instance": "i"}, "report.version must be of type int"),
        ({"version": 1, "instance": None}, "report.instance is missing"),
        ({"version": 1, "instance": "i", "snapshot": 4}, "report.snapshot must be an object"),
        (
            {"version": 1, "instance": "i", "snapshot": {"start_time": "x", "metadata": {"a": 4}}},
            "report.snapshot.metadata.a must be of type str",
        ),
        (
            {"version": 1, "instance": "i", "snapshot": {"start_time": "x", "executors": [{"start_time": "x"}, {}]}},
            "report.snapshot.executors[1].start_time is missing",
        ),
        (
            {"version": 1, "instance": "i", "snapshot": {"start_time": "x", "executors": {}}},
            "report.snapshot.executors must be a list",
        ),
    ],
)
def test_what_does_not_fit_is_named(value: Any, said: str) -> None:
    with pytest.raises(WireError) as raised:
        decode(Report, value, "report")
    assert str(raised.value) == said
