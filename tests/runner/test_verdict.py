"""The protocol's table of verdicts, row by row, and result files that nobody should trust."""

from __future__ import annotations

import errno
import json
from typing import Any, Optional

import pytest

from tesgate.runner.plan import Executor
from tesgate.runner.verdict import (
    EXECUTOR_ERROR,
    FAILED,
    NEXT,
    Ending,
    Garbled,
    Result,
    Verdict,
    judge,
    parse_result,
)

PLAIN = Executor(image="img", command=["foo", "x"], stdin="/data/in", workdir="/w", timeout=60.0)
IGNORING = Executor(image="img", command=["foo"], ignore_error=True)
OOM = "executor 0 was killed because it used more memory than its limit of 1.0 GB; raise resources.ram_gb"

ROWS = [
    ("exit 0", Ending(Result(exit_code=0)), NEXT, 0, None),
    ("exit 0 although a child ran out of memory", Ending(Result(exit_code=0, oom_killed=True)), NEXT, 0, None),
    ("exit 3", Ending(Result(exit_code=3)), EXECUTOR_ERROR, 3, "executor 0 exited with 3"),
    ("exit 255", Ending(Result(exit_code=255)), EXECUTOR_ERROR, 255, "executor 0 exited with 255"),
    ("a signal", Ending(Result(signal=11)), EXECUTOR_ERROR, 139, "executor 0 was ended by signal 11 (SIGSEGV)"),
    ("signal 9 without evidence", Ending(Result(signal=9)), EXECUTOR_ERROR, 137, "ended by signal 9 (SIGKILL)"),
    ("exec saw the kernel's oom kill", Ending(Result(signal=9, oom_killed=True)), EXECUTOR_ERROR, 137, OOM),
    ("the engine says so", Ending(Result(signal=9), engine_oom=True), EXECUTOR_ERROR, 137, OOM),
    ("a shell whose child was killed", Ending(Result(exit_code=137), engine_oom=True), EXECUTOR_ERROR, 137, OOM),
    (
        "another exit of a container that had an oom",
        Ending(Result(exit_code=2), engine_oom=True),
        EXECUTOR_ERROR,
        2,
        "",
    ),
    ("oom took exec itself", Ending(engine_oom=True), EXECUTOR_ERROR, 137, OOM),
    (
        "oom took exec, found at the second start",
        Ending(Result(killed=True), engine_oom=True),
        EXECUTOR_ERROR,
        137,
        OOM,
    ),
    ("time limit", Ending(Result(signal=15, timed_out=True)), EXECUTOR_ERROR, 124, "longer than its limit of 60 s"),
    (
        "time limit, polite exit",
        Ending(Result(exit_code=0, timed_out=True)),
        EXECUTOR_ERROR,
        124,
        "longer than its limit",
    ),
    ("time limit that we enforced", Ending(overdue=True), EXECUTOR_ERROR, 124, "longer than its limit of 60 s"),
    (
        "command missing",
        Ending(Result(exit_code=127, error="exec", errno=errno.ENOENT)),
        EXECUTOR_ERROR,
        127,
        "the command `foo` was not found in the image img",
    ),
    (
        "command not executable",
        Ending(Result(exit_code=126, error="exec", errno=errno.EACCES)),
        EXECUTOR_ERROR,
        126,
        "the command `foo` of the image img cannot be executed (Permission denied)",
    ),
    ("a command's own 127", Ending(Result(exit_code=127)), EXECUTOR_ERROR, 127, "executor 0 exited with 127"),
    (
        "stdin missing",
        Ending(Result(exit_code=125, error="stdin", errno=errno.ENOENT)),
        EXECUTOR_ERROR,
        125,
        "its stdin /data/in cannot be used (No such file or directory)",
    ),
    ("no process to be had", Ending(Result(error="fork", errno=errno.EAGAIN)), FAILED, None, "refused a process"),
    (
        "something else is mounted",
        Ending(Result(error="bind", errno=errno.ESTALE)),
        FAILED,
        None,
        "was replaced in this moment",
    ),
    (
        "what is mounted cannot be looked at",
        Ending(Result(error="bind", errno=errno.EACCES)),
        FAILED,
        None,
        "its user may not look at what is mounted",
    ),
    (
        "no result",
        Ending(cause="its container is gone"),
        FAILED,
        None,
        "executor 0 has no result: its container is gone",
    ),
    ("marker without result", Ending(Result(killed=True)), FAILED, None, "executor 0 has no result"),
    ("host that shuts down", Ending(Result(signal=15, terminated=15)), FAILED, None, "ended from outside by signal 15"),
    ("garbled", Ending(garbled="it is no JSON"), EXECUTOR_ERROR, 125, "wrote into its control directory"),
]


@pytest.mark.parametrize(
    ("ending", "kind", "code", "sentence"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_rows(ending: Ending, kind: str, code: Optional[int], sentence: Optional[str]) -> None:
    verdict = judge(0, PLAIN, ending, ram_bytes=1_000_000_000)
    assert (verdict.kind, verdict.exit_code) == (kind, code)
    if sentence is None:
        assert verdict.sentence is None
    else:
        assert sentence in (verdict.sentence or "")


@pytest.mark.parametrize(
    ("ending", "kind", "code", "sentence"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_ignore_error_turns_executor_errors_and_nothing_else(
    ending: Ending, kind: str, code: Optional[int], sentence: Optional[str]
) -> None:
    verdict = judge(0, IGNORING, ending, ram_bytes=1_000_000_000)
    assert verdict.kind == (FAILED if kind == FAILED else NEXT)
    assert verdict.exit_code == code


def test_the_tasks_own_limit_ends_it_whatever_is_ignored() -> None:
    verdict = judge(1, IGNORING, Ending(Result(signal=15, timed_out=True)), task_limit=90.0)
    assert verdict == Verdict(
        EXECUTOR_ERROR, 124, "executor 1 was stopped because the task ran longer than its limit of 90 s"
    )


def test_out_of_memory_without_a_limit_blames_the_host() -> None:
    assert "the host ran out of memory" in (judge(0, PLAIN, Ending(engine_oom=True)).sentence or "")


def test_a_whole_result_file() -> None:
    text = (
        '{"wire":1,"exit_code":null,"signal":9,"timed_out":false,"oom_killed":true,"killed":false,"error":null,"errno":0,'
        '"start_ns":1,"end_ns":2,"user_us":3,"system_us":4,"max_rss_bytes":5,"stdout_bytes":6,"stderr_bytes":7,"new":[]}'
    )
    assert parse_result(text.encode()) == Result(
        signal=9,
        oom_killed=True,
        start_ns=1,
        end_ns=2,
        user_us=3,
        system_us=4,
        max_rss_bytes=5,
        stdout_bytes=6,
        stderr_bytes=7,
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        1,
        {},
        {"exit_code": "0"},
        {"exit_code": True},
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": 0.0},
        {"signal": 0},
        {"signal": 9999},
        {"exit_code": 0, "oom_killed": 1},
        {"exit_code": 0, "max_rss_bytes": -5},
        {"exit_code": 0, "end_ns": 10**30},
        {"exit_code": 0, "error": 5},
    ],
)
def test_garbled_results(value: Any) -> None:
    with pytest.raises(Garbled):
        parse_result(json.dumps(value).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"exit_code":0}' + b" " * 70_000])
def test_garbled_bytes(data: bytes) -> None:
    with pytest.raises(Garbled):
        parse_result(data)
