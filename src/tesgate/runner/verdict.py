"""From what is known about an executor's end to what follows from it: the protocol's table of verdicts. Pure."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import dataclass
from typing import Any, Optional

from .plan import Executor

__all__ = [
    "COMPLETE",
    "EXECUTOR_ERROR",
    "FAILED",
    "NEXT",
    "RESULT_BYTES",
    "SYSTEM_ERROR",
    "Ending",
    "Garbled",
    "Result",
    "Verdict",
    "judge",
    "parse_result",
]

NEXT = "next"
"""The next executor, at the end COMPLETE."""
EXECUTOR_ERROR = "EXECUTOR_ERROR"
SYSTEM_ERROR = "SYSTEM_ERROR"
COMPLETE = "COMPLETE"
FAILED = "failed"
"""The system's fault: a new attempt may follow."""

RESULT_BYTES = 64 * 1024
"""No honest result file is larger."""

_HUGE = 1 << 62
_ERRORS = ("exec", "stdin", "stdout", "stderr", "workdir", "fork", "bind")
"""What exec can say; anything else would go into sentences for people."""


class Garbled(ValueError):
    """A result file that exec cannot have written: the task wrote to its control directory."""


GARBLED = 125
"""Exit code of an executor that spoiled its own result: clients need one, and no command gave it."""


@dataclass(frozen=True)
class Result:
    """What exec wrote (see the contract of exec)."""

    exit_code: Optional[int] = None
    signal: Optional[int] = None
    timed_out: bool = False
    oom_killed: bool = False
    killed: bool = False
    """Exec found the marker of an earlier start that had ended without a result."""
    terminated: Optional[int] = None
    """The signal that somebody outside the container sent (engine or host shutting down), which exec passed on."""
    error: Optional[str] = None
    errno: int = 0
    start_ns: int = 0
    end_ns: int = 0
    user_us: int = 0
    system_us: int = 0
    max_rss_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0


@dataclass(frozen=True)
class Ending:
    """All evidence on the end of one executor."""

    result: Optional[Result] = None
    garbled: Optional[str] = None
    """What is wrong with the result file, where there is one that cannot be read."""
    engine_oom: bool = False
    """The engine says that the container ran out of memory."""
    overdue: bool = False
    """We stopped it ourselves, long after its time limit had passed without a result."""
    cause: str = "the container ended without a result"
    """Where there is no result: what the engine says of it, one clause."""


@dataclass(frozen=True)
class Verdict:
    """What follows: `kind` is NEXT, EXECUTOR_ERROR or FAILED; the sentence goes into system_logs (or is the cause)."""

    kind: str
    exit_code: Optional[int] = None
    sentence: Optional[str] = None


def parse_result(data: bytes) -> Result:
    """Read a result file. Raises `Garbled`; the task can write there, so nothing in it is taken on trust."""
    if len(data) > RESULT_BYTES:
        raise Garbled("it is larger than %d bytes" % RESULT_BYTES)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise Garbled("it is no JSON") from exc
    if not isinstance(value, dict):
        raise Garbled("it is no JSON object")
    error = value.get("error")
    if error is not None and error not in _ERRORS:
        raise Garbled("error is not what it can be")
    result = Result(
        exit_code=_whole(value, "exit_code", 0, 255),
        signal=_whole(value, "signal", 1, 127),
        timed_out=_flag(value, "timed_out"),
        oom_killed=_flag(value, "oom_killed"),
        killed=_flag(value, "killed"),
        terminated=_whole(value, "terminated", 1, 127),
        error=error,
        errno=_whole(value, "errno", 0, 4095) or 0,
        start_ns=_whole(value, "start_ns", 0, _HUGE) or 0,
        end_ns=_whole(value, "end_ns", 0, _HUGE) or 0,
        user_us=_whole(value, "user_us", 0, _HUGE) or 0,
        system_us=_whole(value, "system_us", 0, _HUGE) or 0,
        max_rss_bytes=_whole(value, "max_rss_bytes", 0, _HUGE) or 0,
        stdout_bytes=_whole(value, "stdout_bytes", 0, _HUGE) or 0,
        stderr_bytes=_whole(value, "stderr_bytes", 0, _HUGE) or 0,
    )
    if result.exit_code is None and result.signal is None and not result.killed and result.error is None:
        raise Garbled("it has neither exit code nor signal")
    return result


def _whole(value: Any, name: str, low: int, high: int) -> Optional[int]:
    number = value.get(name)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise Garbled("%s is not what it can be" % name)
    return number


def _flag(value: Any, name: str) -> bool:
    flag = value.get(name, False)
    if not isinstance(flag, bool):
        raise Garbled("%s is not what it can be" % name)
    return flag


def judge(
    index: int,
    executor: Executor,
    ending: Ending,
    *,
    ram_bytes: Optional[int] = None,
    task_limit: Optional[float] = None,
) -> Verdict:
    """Judge the end of executor `index`.

    `task_limit` is the whole task's limit in seconds, where that one was nearer than the executor's own; running into
    it ends the task whatever `ignore_error` says.
    """
    verdict = _judge(index, executor, ending, ram_bytes, task_limit)
    out_of_time = task_limit is not None and verdict.exit_code == 124 and _timed_out(ending)
    if verdict.kind == EXECUTOR_ERROR and executor.ignore_error and not out_of_time:
        return Verdict(NEXT, verdict.exit_code, verdict.sentence)
    return verdict


def _timed_out(ending: Ending) -> bool:
    return ending.overdue or (ending.result is not None and ending.result.timed_out)


def _judge(
    index: int, executor: Executor, ending: Ending, ram_bytes: Optional[int], task_limit: Optional[float]
) -> Verdict:
    result = ending.result
    if ending.garbled is not None:
        return Verdict(
            EXECUTOR_ERROR,
            GARBLED,
            "executor %d wrote into its control directory /.tesgate/control: its result file cannot be read (%s)"
            % (index, ending.garbled),
        )
    if result is None or result.killed:
        return _without_result(index, executor, ending, ram_bytes, task_limit)
    if result.timed_out:
        return _too_long(index, executor, task_limit)
    if result.error is not None:
        return _not_begun(index, executor, result)
    if result.exit_code == 0 and result.signal is None:
        return Verdict(NEXT, 0)
    if result.terminated is not None and not ending.overdue:
        # A host that shuts down in good order terminates its containers: that is no verdict on the command.
        return Verdict(FAILED, None, "executor %d was ended from outside by %s" % (index, _signal(result.terminated)))
    # With exit ≠ 0 the engine's word counts only where it can be about the command: a signal 9, or a shell's 137.
    killed = result.signal == signal.SIGKILL or result.exit_code == 128 + signal.SIGKILL
    if result.oom_killed or (ending.engine_oom and killed):
        return _out_of_memory(index, ram_bytes)
    if result.signal is not None:
        return Verdict(
            EXECUTOR_ERROR, 128 + result.signal, "executor %d was ended by %s" % (index, _signal(result.signal))
        )
    return Verdict(EXECUTOR_ERROR, result.exit_code, "executor %d exited with %d" % (index, result.exit_code or 0))


def _without_result(
    index: int, executor: Executor, ending: Ending, ram_bytes: Optional[int], task_limit: Optional[float]
) -> Verdict:
    if ending.engine_oom or (ending.result is not None and ending.result.oom_killed):
        return _out_of_memory(index, ram_bytes)
    if ending.overdue:
        return _too_long(index, executor, task_limit)
    return Verdict(FAILED, None, "executor %d has no result: %s" % (index, ending.cause))


def _out_of_memory(index: int, ram_bytes: Optional[int]) -> Verdict:
    if ram_bytes is None:
        text = "executor %d was killed because the host ran out of memory; set resources.ram_gb" % index
    else:
        limit = ("%.1f" if ram_bytes >= 100_000_000 else "%.3f") % (ram_bytes / 1e9)
        text = "executor %d was killed because it used more memory than its limit of %s GB; raise resources.ram_gb"
        text = text % (index, limit)
    return Verdict(EXECUTOR_ERROR, 137, text)


def _too_long(index: int, executor: Executor, task_limit: Optional[float]) -> Verdict:
    if task_limit is not None:
        return Verdict(
            EXECUTOR_ERROR,
            124,
            "executor %d was stopped because the task ran longer than its limit of %g s" % (index, task_limit),
        )
    limit = "" if executor.timeout is None else " of %g s" % executor.timeout
    return Verdict(
        EXECUTOR_ERROR, 124, "executor %d was stopped because it ran longer than its limit%s" % (index, limit)
    )


def _not_begun(index: int, executor: Executor, result: Result) -> Verdict:
    command = executor.command[0] if executor.command else ""
    reason = os.strerror(result.errno) if result.errno else "unknown error"
    if result.error == "fork":
        return Verdict(
            FAILED, None, "executor %d could not be started: the host refused a process (%s)" % (index, reason)
        )
    if result.error == "bind" and result.errno == errno.EACCES:
        return Verdict(
            FAILED,
            None,
            "executor %d was not started: its user may not look at what is mounted from a file root, so that this "
            "could not be checked; mount it where a user of the image %s gets to" % (index, executor.image),
        )
    if result.error == "bind":
        return Verdict(
            FAILED,
            None,
            "executor %d was not started: what its container has of a file root is not what was to be mounted, since "
            "something was replaced in this moment (%s)" % (index, reason),
        )
    if result.error == "exec":
        if result.exit_code == 127 or result.errno in (errno.ENOENT, errno.ENOTDIR):
            return Verdict(
                EXECUTOR_ERROR,
                127,
                "executor %d: the command `%s` was not found in the image %s" % (index, command, executor.image),
            )
        return Verdict(
            EXECUTOR_ERROR,
            126,
            "executor %d: the command `%s` of the image %s cannot be executed (%s)"
            % (index, command, executor.image, reason),
        )
    paths = {"stdin": executor.stdin, "stdout": executor.stdout, "stderr": executor.stderr, "workdir": executor.workdir}
    code = result.exit_code if result.exit_code else 126
    return Verdict(
        EXECUTOR_ERROR,
        code,
        "executor %d was not started: its %s %s cannot be used (%s)"
        % (index, result.error, paths.get(result.error or "") or "", reason),
    )


def _signal(number: int) -> str:
    try:
        return "signal %d (%s)" % (number, signal.Signals(number).name)
    except ValueError:
        return "signal %d" % number
