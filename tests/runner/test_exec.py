"""tesgate-exec as real processes: what it promises about results, signals, orphans, full disks and hostile tasks."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from tesgate.runner import exec as exec_program
from tests.beds import is_required

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="tesgate-exec runs on Linux"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).resolve().parents[2]
IS_ROOT = os.geteuid() == 0
NOBODY = 65534
KEYS = {
    "wire", "exit_code", "signal", "terminated", "timed_out", "oom_killed", "killed", "error", "errno", "start_ns",
    "end_ns", "user_us", "system_us", "max_rss_bytes", "stdout_bytes", "stderr_bytes",
}  # fmt: skip


def cannot(reason: str) -> NoReturn:
    """A machine that cannot do what a test needs: a skip, and where everything is required a failure."""
    if is_required("all"):
        pytest.fail(reason)
    pytest.skip(reason)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait for `condition`; the deadline only bounds a failure."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether `pid` runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


class Step:
    """One control directory, and ways to start exec on it."""

    def __init__(self, program: Path, home: Path) -> None:
        self.program = str(program)
        self.home = home
        self.control = home / "control"
        self.control.mkdir()
        self.control.chmod(0o777)

    def argv(self, *command: str, options: tuple[str, ...] = ()) -> list[str]:
        return [self.program, "run", "--control", str(self.control), *options, "--", *command]

    def run(
        self, *command: str, options: tuple[str, ...] = (), prefix: tuple[str, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[bytes]:
        line = [*prefix, *self.argv(*command, options=options)]
        return subprocess.run(line, capture_output=True, timeout=120, check=False, **more)

    def start(
        self, *command: str, options: tuple[str, ...] = (), prefix: tuple[str, ...] = (), **more: Any
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, *self.argv(*command, options=options)], **more)

    def result(self) -> dict[str, Any]:
        value = json.loads((self.control / "result").read_bytes())
        assert set(value) == KEYS
        return dict(value)

    def read(self, name: str) -> bytes:
        return (self.control / name).read_bytes()

    def wait_for(self, name: str) -> None:
        path = self.home / name
        until(lambda: path.exists() and path.read_text().endswith("\n"), name)


@pytest.fixture(scope="session")
def program() -> Path:
    hatch_build = load(ROOT / "hatch_build.py")
    machine = hatch_build.native_machine()
    target = ROOT / hatch_build.FOLDER / "bin" / f"tesgate-exec-{machine}"
    path: Path = hatch_build.compile_exec(machine, target)
    return path


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that other users reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="tesgate-exec-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def step(program: Path, home: Path) -> Step:
    public = home / "tesgate-exec"  # the checkout may lie where other users cannot reach it
    shutil.copy(program, public)
    return Step(public, home)


def test_writes_the_result_streams_and_tails(step: Step) -> None:
    before = time.time_ns()
    done = step.run("sh", "-c", "echo out; echo err >&2; exit 3", options=("--tail", "2"))
    assert done.returncode == 3
    result = step.result()
    assert (result["wire"], result["exit_code"], result["signal"], result["error"]) == (1, 3, None, None)
    assert (result["timed_out"], result["oom_killed"], result["killed"]) == (False, False, False)
    assert (result["stdout_bytes"], result["stderr_bytes"]) == (4, 4)
    assert before <= result["start_ns"] <= result["end_ns"] <= time.time_ns()
    assert result["max_rss_bytes"] > 0
    assert (step.read("stdout"), step.read("stderr")) == (b"out\n", b"err\n")
    assert (step.read("stdout.tail"), step.read("stderr.tail")) == (b"t\n", b"r\n")
    pid, start = step.read("started").split()
    assert (int(pid) > 0, int(start)) == (True, result["start_ns"])
    names = {path.name for path in step.control.iterdir()}
    assert names == {"started", "result", "stdout", "stderr", "stdout.tail", "stderr.tail"}
    assert {path.stat().st_mode & 0o777 for path in step.control.iterdir()} == {0o644}


def test_counts_the_usage_of_everything_that_it_reaped(step: Step) -> None:
    burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    step.run("sh", "-c", f"({burn})")
    result = step.result()
    assert 1000 < result["user_us"] + result["system_us"] < 60_000_000


def test_is_readable_whatever_the_umask(step: Step) -> None:
    subprocess.run(["sh", "-c", 'umask 077; exec "$@"', "sh", *step.argv("true")], check=True)
    assert {path.stat().st_mode & 0o777 for path in step.control.iterdir()} == {0o644}


def test_usage_and_version(step: Step) -> None:
    assert subprocess.run([step.program, "version"], capture_output=True, check=True).stdout.startswith(
        b"tesgate-exec "
    )
    for line in (
        ["run"],
        ["run", "--control", "x"],
        ["run", "--control", "x", "--tail", "-1", "--", "true"],
        [],
        ["own", "x", "1", "."],
    ):
        assert subprocess.run([step.program, *line], capture_output=True, check=False).returncode == 64, line
    missing = [step.program, "run", "--control", str(step.home / "nowhere"), "--", "true"]
    assert subprocess.run(missing, capture_output=True, check=False).returncode == 74


# --- the command ------------------------------------------------------------------------------------------------


def test_death_by_signal(step: Step) -> None:
    assert step.run("sh", "-c", "kill -SEGV $$").returncode == 128 + signal.SIGSEGV
    result = step.result()
    assert (result["exit_code"], result["signal"]) == (None, signal.SIGSEGV)


@pytest.mark.parametrize(
    ("command", "code", "number"),
    [
        ("no-such-command-anywhere", 127, errno.ENOENT),
        ("/no/such/command", 127, errno.ENOENT),
        ("", 127, errno.ENOENT),
        ("{home}/plain", 126, errno.EACCES),
        ("{home}/format", 126, errno.ENOEXEC),
        ("{home}/interpreter", 127, errno.ENOENT),
        ("{home}", 126, errno.EACCES),
        ("plain", 126, errno.EACCES),
    ],
)
def test_command_that_cannot_be_executed(step: Step, command: str, code: int, number: int) -> None:
    (step.home / "plain").write_text("#!/bin/sh\n")
    for name, text in (("format", "no shebang\n"), ("interpreter", "#!/no/such/interpreter\n")):
        (step.home / name).write_text(text)
        (step.home / name).chmod(0o755)
    path = f"/nowhere:{step.home}:/usr/bin:/bin"
    assert step.run(command.format(home=step.home), env={"PATH": path}).returncode == code
    result = step.result()
    assert (result["exit_code"], result["signal"], result["error"], result["errno"]) == (code, None, "exec", number)


def test_looks_the_command_up_in_the_environment_s_path(step: Step) -> None:
    first, second = step.home / "first", step.home / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "greet").write_text(f'#!/bin/sh\necho {folder.name} "$@"\n')
    (second / "greet").chmod(0o755)  # the first may not be executed: the search goes on, as a shell's does
    assert step.run("greet", "a b", env={"PATH": f"{first}:{second}"}).returncode == 0
    assert step.read("stdout") == b"second a b\n"


def test_default_path_where_the_environment_has_none(step: Step) -> None:
    assert step.run("true", env={}).returncode == 0


def test_the_command_starts_clean(step: Step) -> None:
    """No descriptor of ours or of our parent's, no blocked or ignored signal, a session of its own."""
    reading, writing = os.pipe()
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        script = "ls /proc/self/fd; grep -E 'SigBlk|SigIgn' /proc/self/status; echo $$ $(cut -d' ' -f5,6 /proc/$$/stat)"
        step.run("sh", "-c", script, pass_fds=(reading, writing), restore_signals=False)
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(reading)
        os.close(writing)
    lines = step.read("stdout").decode().splitlines()
    assert lines[:4] == ["0", "1", "2", "3"]  # 3 is what ls lists with
    assert [line.split() for line in lines[4:6]] == [["SigBlk:", "0" * 16], ["SigIgn:", "0" * 16]]
    pid, group, session = lines[6].split()
    assert pid == group == session


def test_started_with_closed_standard_streams(step: Step) -> None:
    script = 'exec "$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *step.argv("sh", "-c", "cat; echo out; echo err >&2")], check=False
    )
    assert done.returncode == 0
    assert (step.read("stdout"), step.read("stderr")) == (b"out\n", b"err\n")


# --- streams and directories ------------------------------------------------------------------------------------


def test_redirects_to_paths(step: Step) -> None:
    (step.home / "in").write_bytes(b"hello")
    (step.home / "out").write_bytes(b"something longer from before")
    options = ("--stdin", f"{step.home}/in", "--stdout", f"{step.home}/out", "--stderr", f"{step.home}/err")
    step.run("sh", "-c", "cat; echo no >&2", options=options)
    assert (step.home / "out").read_bytes() == step.read("stdout.tail") == b"hello"
    assert (step.home / "err").read_bytes() == step.read("stderr.tail") == b"no\n"
    assert not (step.control / "stdout").exists()
    assert step.result()["stdout_bytes"] == 5


def test_stdout_and_stderr_may_be_one_file(step: Step) -> None:
    (step.home / "folder").mkdir()
    both = ("--stdout", f"{step.home}/log", "--stderr", f"{step.home}/folder/../log")
    step.run("sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; done", options=both)
    assert (step.home / "log").read_text().split() == ["o1", "e1", "o2", "e2", "o3", "e3"]


@pytest.mark.parametrize(
    ("option", "path", "number"),
    [
        ("stdin", "missing", errno.ENOENT),
        ("stdout", "missing/out", errno.ENOENT),
        ("stderr", "", errno.EISDIR),
        ("stdout", "fifo", errno.ENXIO),  # nobody reads it: an error, not a hang
        ("workdir", "file/below", errno.ENOTDIR),
        ("workdir", "file", errno.ENOTDIR),
    ],
)
def test_what_cannot_be_opened_is_named(step: Step, option: str, path: str, number: int) -> None:
    (step.home / "file").write_bytes(b"")
    os.mkfifo(step.home / "fifo")
    done = step.run("touch", f"{step.home}/ran", options=(f"--{option}", f"{step.home}/{path}"))
    assert done.returncode == 125
    result = step.result()
    assert (result["error"], result["errno"], result["exit_code"]) == (option, number, None)
    assert not (step.home / "ran").exists()
    assert step.read("stdout.tail") == b""


def test_unwritable_stdout(step: Step) -> None:
    target = step.home / "closed"
    target.mkdir(mode=0o555)
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if IS_ROOT else ()
    assert step.run("true", options=("--stdout", f"{target}/out"), prefix=prefix).returncode == 125
    assert (step.result()["error"], step.result()["errno"]) == ("stdout", errno.EACCES)


def test_makes_the_workdir_with_its_parents(step: Step) -> None:
    folder = step.home / "a" / "b" / "c"
    assert step.run("pwd", options=("--workdir", str(folder), "--stdout", f"{folder}/out")).returncode == 0
    assert (folder / "out").read_text().strip() == str(folder)


def test_tails_survive_the_task_s_unlink(step: Step) -> None:
    path = step.home / "out"
    options = ("--stdout", str(path), "--tail", "6")
    assert step.run("sh", "-c", f"echo precious; rm {path} {step.control}/stderr", options=options).returncode == 0
    assert step.read("stdout.tail") == b"cious\n"
    assert step.result()["stdout_bytes"] == 9
    assert not path.exists()


def test_reopened_stderr_leaves_no_hole(step: Step) -> None:
    step.run("sh", "-c", "echo first >&2; echo second >> /dev/stderr; echo third >&2")
    assert step.read("stderr") == b"first\nsecond\nthird\n"


def test_copies_a_bounded_part_of_stdout(step: Step) -> None:
    done = step.run("sh", "-c", "echo 0123456789; echo abc", options=("--copy-stdout", "13"))
    assert done.stdout == b"0123456789\nab"
    assert step.read("stdout") == b"0123456789\nabc\n"


def test_copies_while_the_command_runs(step: Step) -> None:
    script = f"echo live; while [ ! -e {step.home}/go ]; do sleep 0.05; done"
    with step.start("sh", "-c", script, options=("--copy-stdout", "100"), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"live\n"
        (step.home / "go").touch()
        assert process.wait(20) == 0


def test_a_reader_that_does_not_read_holds_nothing_up(step: Step) -> None:
    with step.start(
        "head", "-c", "1000000", "/dev/zero", options=("--copy-stdout", "1000000"), stdout=subprocess.PIPE
    ) as process:
        assert process.wait(30) == 0
    assert step.result()["stdout_bytes"] == 1_000_000


@pytest.mark.slow
def test_huge_stdout_at_flat_memory(step: Step) -> None:
    free = shutil.disk_usage(step.home).free
    size = (10 if free > 30 << 30 else 2) << 30
    if free < 2 * size:
        pytest.skip(f"needs {2 * size >> 30} GiB of free disk")
    script = f"head -c {size} /dev/zero; echo end"
    with step.start("sh", "-c", script) as process:
        peak, path = 0, Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, StopIteration):
                peak = max(
                    peak, next(int(line.split()[1]) for line in path.read_text().splitlines() if "VmHWM" in line)
                )
            time.sleep(0.05)
    assert process.returncode == 0
    assert step.result()["stdout_bytes"] == size + 4
    assert step.read("stdout.tail").endswith(b"\0end\n")
    assert 0 < peak < 4096, "kB of exec's own memory"


# --- signals and time -------------------------------------------------------------------------------------------


def trap(step: Step, *names: str) -> str:
    """A script that notes each of the signals in stdout and ends after one of them but USR1."""
    traps = "".join(f"trap 'echo {name}{'' if name == 'USR1' else '; exit 7'}' {name}; " for name in names)
    return f"{traps} echo ready > {step.home}/ready; while :; do sleep 0.02; done"


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT"])
def test_forwards_signals(step: Step, name: str) -> None:
    process = step.start("sh", "-c", trap(step, "USR1", name))
    step.wait_for("ready")
    process.send_signal(signal.SIGUSR1)
    until(lambda: step.read("stdout") == b"USR1\n", "USR1")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(20) == 7
    assert step.read("stdout").decode().split() == ["USR1", name]
    assert step.result()["exit_code"] == 7
    ended = getattr(signal, f"SIG{name}") if name in ("TERM", "INT") else None
    assert step.result()["terminated"] == ended


def test_kills_after_the_grace(step: Step) -> None:
    process = step.start(
        "sh",
        "-c",
        f"trap '' TERM; echo r > {step.home}/ready; while :; do sleep 0.02; done",
        options=("--grace-ms", "300"),
    )
    step.wait_for("ready")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGKILL
    assert 0.25 < time.monotonic() - began < 10
    assert (step.result()["signal"], step.result()["timed_out"]) == (signal.SIGKILL, False)


def test_time_limit(step: Step) -> None:
    assert step.run("sleep", "1000", options=("--timeout-ms", "200")).returncode == 128 + signal.SIGTERM
    result = step.result()
    assert (result["timed_out"], result["signal"]) == (True, signal.SIGTERM)
    assert result["end_ns"] - result["start_ns"] >= 200_000_000


def test_time_limit_ignored_by_the_command(step: Step) -> None:
    options = ("--timeout-ms", "150", "--grace-ms", "150")
    step.run("sh", "-c", "trap '' TERM; while :; do sleep 0.02; done", options=options)
    assert (step.result()["timed_out"], step.result()["signal"]) == (True, signal.SIGKILL)


def test_command_that_ends_politely_after_the_limit_is_timed_out_too(step: Step) -> None:
    step.run("sh", "-c", trap(step, "TERM"), options=("--timeout-ms", "400"))
    assert (step.result()["timed_out"], step.result()["exit_code"]) == (True, 7)


# --- what is left behind ----------------------------------------------------------------------------------------

ORPHANS = """
(trap '' TERM HUP; exec setsid sh -c '
    trap "" TERM HUP
    echo $$ >> {pids}
    (setsid sh -c "echo \\$\\$ >> {pids}; exec sleep 1000" &)
    sleep 1000
') &
(setsid sh -c 'echo $$ >> {pids}; exec sleep 1000' &) &
while [ $(wc -l < {pids}) -lt 3 ]; do sleep 0.01; done
echo left
exit 5
"""


def orphans(step: Step) -> str:
    (step.home / "pids").touch()
    (step.home / "pids").chmod(0o666)
    return ORPHANS.format(pids=step.home / "pids")


def test_kills_orphans_in_sessions_of_their_own(step: Step) -> None:
    process = step.start("sh", "-c", orphans(step))
    until((step.control / "result").exists, "the result")
    pids = {int(pid) for pid in (step.home / "pids").read_text().split()}
    assert len(pids) == 3
    assert not any(alive(pid) for pid in pids), "alive after the result was there"
    assert process.wait(20) == 5
    assert step.read("stdout") == b"left\n"


def test_kills_many_generations(step: Step) -> None:
    script = step.home / "deep.sh"
    script.write_text(
        f'#!/bin/sh\n[ $1 -gt 0 ] && setsid "$0" $(($1 - 1)) &\necho $$ >> {step.home}/pids\nexec sleep 1000\n'
    )
    script.chmod(0o755)
    (step.home / "pids").touch()
    wait = f"{script} 30 & while [ $(wc -l < {step.home}/pids) -lt 31 ]; do sleep 0.01; done"
    assert step.run("sh", "-c", wait).returncode == 0
    assert not any(alive(int(pid)) for pid in (step.home / "pids").read_text().split())


def test_reaps_orphans_while_the_command_runs(step: Step) -> None:
    until_go = f"while [ ! -e {step.home}/go ]; do sleep 0.02; done"
    script = f"(sh -c 'echo $$ > {step.home}/orphan' &); echo r > {step.home}/ready; {until_go}"
    process = step.start("sh", "-c", script)
    step.wait_for("ready")
    step.wait_for("orphan")
    orphan = (step.home / "orphan").read_text().strip()
    until(lambda: not Path("/proc", orphan).exists(), "the zombie's end")
    (step.home / "go").touch()
    assert process.wait(20) == 0


def namespace(*, proc: bool = True) -> tuple[str, ...]:
    """Start of a command line that becomes PID 1 of a new PID namespace."""
    user = () if IS_ROOT else ("--user", "--map-root-user")
    line = ("unshare", *user, "--pid", "--fork", "--kill-child", *(("--mount-proc",) if proc else ()))
    if shutil.which("unshare") is None or subprocess.run([*line, "true"], capture_output=True, check=False).returncode:
        cannot("cannot make PID namespaces here: unshare --pid fails")
    return line


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: children.read_text().split(), "the first process of the namespace")
    return int(children.read_text().split()[0])


def test_as_pid_1_kills_all_of_its_namespace(step: Step) -> None:
    assert step.run("sh", "-c", f"{orphans(step)}", prefix=namespace()).returncode == 5
    assert step.read("started").split()[0] == b"1"
    result = step.result()
    assert result["exit_code"] == 5
    assert result["end_ns"] - result["start_ns"] < 20_000_000_000


def test_as_pid_1_cannot_be_killed_by_the_task(step: Step) -> None:
    # USR1 and HUP are forwarded back to the group, which ignores them here.
    script = "trap '' USR1 HUP; for s in KILL STOP SEGV ALRM PIPE ABRT USR1 HUP; do kill -$s 1; done; echo survived"
    step.run("sh", "-c", script, prefix=namespace())
    assert step.read("stdout").endswith(b"survived\n")
    assert step.result()["exit_code"] == 0


def test_as_pid_1_with_another_namespace_s_proc(step: Step) -> None:
    assert step.run("sh", "-c", "setsid sleep 1000 & exit 4", prefix=namespace(proc=False)).returncode == 4


def test_not_pid_1_with_another_namespace_s_proc(step: Step) -> None:
    """Numbers of a foreign /proc mean other processes: they must not be used."""
    # Exec is 2 and the bystander 3 in there; outside, where kernel threads are seen, 3 is a child of 2.
    inner = f'"$@" & e=$!; sleep 1000 & b=$!; touch {step.home}/go; wait $e; c=$?; kill -0 $b && echo lives; exit $c'
    script = f"while [ ! -e {step.home}/go ]; do sleep 0.02; done; setsid sleep 1000 & exit 4"
    done = step.run("sh", "-c", script, prefix=(*namespace(proc=False), "sh", "-c", inner, "sh"))
    assert done.returncode == 4
    assert b"lives" in done.stdout
    assert step.read("started").split()[0] == b"2"
    assert step.result()["exit_code"] == 4


def test_as_pid_1_of_bubblewrap(step: Step, bubblewrap: object) -> None:
    del bubblewrap  # the bed: it works here
    prefix = (
        "bwrap",
        "--bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--unshare-pid",
        "--as-pid-1",
        "--die-with-parent",
    )
    process = step.start("sh", "-c", trap(step, "TERM"), prefix=prefix, options=("--grace-ms", "5000"))
    step.wait_for("ready")
    os.kill(child_of(process.pid), signal.SIGTERM)
    assert process.wait(20) == 7
    assert step.read("started").split()[0] == b"1"
    assert step.result()["exit_code"] == 7


def test_the_engine_s_sigterm_reaches_pid_1(step: Step) -> None:
    process = step.start("sh", "-c", trap(step, "TERM"), prefix=namespace())
    step.wait_for("ready")
    os.kill(child_of(process.pid), signal.SIGTERM)
    assert process.wait(20) == 7
    assert step.result()["terminated"] == signal.SIGTERM


def test_a_task_cannot_claim_that_it_was_ended_from_outside(step: Step) -> None:
    process = step.start("sh", "-c", "kill -TERM 1; exit 3", prefix=namespace())
    process.wait(20)
    assert step.result()["terminated"] is None
    assert step.result()["exit_code"] == 3 or step.result()["signal"] == signal.SIGTERM


# --- starts, and starts again -----------------------------------------------------------------------------------


def test_second_start_while_the_first_lives(step: Step) -> None:
    process = step.start("sh", "-c", trap(step, "TERM"))
    step.wait_for("ready")
    before = {path.name: path.stat().st_mtime_ns for path in step.control.iterdir()}
    assert step.run("touch", f"{step.home}/again").returncode == 75
    assert {path.name: path.stat().st_mtime_ns for path in step.control.iterdir()} == before
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 7
    assert not (step.home / "again").exists()


@pytest.mark.parametrize("redirected", [False, True])
def test_start_after_a_kill(step: Step, redirected: bool) -> None:
    options = ("--stdout", f"{step.home}/out") if redirected else ()
    process = step.start("sh", "-c", f"echo partial; echo $$ > {step.home}/pid; exec sleep 1000", options=options)
    step.wait_for("pid")
    process.kill()
    process.wait(20)
    child = int((step.home / "pid").read_text())
    until(lambda: not alive(child), "the command's death, which follows exec's")
    assert not (step.control / "result").exists()
    start_ns = int(step.read("started").split()[1])
    assert step.run("touch", f"{step.home}/again", options=options).returncode == 0
    result = step.result()
    assert (result["killed"], result["exit_code"], result["signal"], result["error"]) == (True, None, None, None)
    assert result["start_ns"] == start_ns < result["end_ns"]
    assert step.read("stdout.tail") == b"partial\n"
    assert result["stdout_bytes"] == 8
    assert not (step.home / "again").exists()
    leftovers = [path.name for path in step.control.iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_start_where_a_result_is(step: Step) -> None:
    assert step.run("sh", "-c", "exit 3").returncode == 3
    before = step.read("result")
    assert step.run("touch", f"{step.home}/again").returncode == 0
    assert step.read("result") == before
    assert not (step.home / "again").exists()


def test_many_starts_at_once_run_the_command_once(step: Step) -> None:
    script = f"echo x >> {step.home}/ran; while [ ! -e {step.home}/go ]; do sleep 0.02; done"
    processes = [step.start("sh", "-c", script) for _ in range(8)]
    until(lambda: sum(process.poll() is not None for process in processes) == 7, "seven refusals")
    assert sorted(process.returncode or 0 for process in processes)[1:] == [75] * 7
    (step.home / "go").touch()
    for process in processes:
        process.wait(20)
    assert (step.home / "ran").read_text() == "x\n"


# --- the disk is full -------------------------------------------------------------------------------------------


def on_small_disk(step: Step, script: str) -> subprocess.CompletedProcess[bytes]:
    """Run `script` where $disk is a tmpfs of 256 kB with a control directory, and $out outlives it."""
    user = () if IS_ROOT else ("--user", "--map-root-user")
    prefix = ("unshare", *user, "--mount", "--propagation", "private")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        cannot("cannot mount a small disk here: unshare --mount fails")
    disk, out = step.home / "disk", step.home / "out"
    disk.mkdir()
    out.mkdir()
    head = f"set -e; disk={disk} out={out} exec={step.program}; export disk out\n"
    mount = "mount -t tmpfs -o size=256k tmpfs $disk; mkdir $disk/control\n"
    return subprocess.run([*prefix, "sh", "-c", head + mount + script], capture_output=True, timeout=60, check=False)


def test_the_task_fills_the_disk(step: Step) -> None:
    script = """
        code=0
        $exec run --control $disk/control -- sh -c '
            echo begin; echo early >&2
            head -c 1000000 /dev/zero > $disk/big
            head -c 1000000 /dev/zero
            echo more >> $disk/big && exit 1
            df $disk > $out/df
            exit 6
        ' || code=$?
        cp $disk/control/* $out
        exit $code
    """
    done = on_small_disk(step, script)
    assert done.returncode == 6, done.stderr
    assert "100%" in (step.home / "out" / "df").read_text()
    result = json.loads((step.home / "out" / "result").read_bytes())
    assert (result["exit_code"], result["killed"]) == (6, False)
    assert b"No space left on device" in (step.home / "out" / "stderr.tail").read_bytes()
    assert (step.home / "out" / "stdout.tail").stat().st_size > 0


def test_the_disk_is_full_before_the_start(step: Step) -> None:
    script = """
        touch $disk/control/started
        head -c 1000000 /dev/zero > $disk/big 2>/dev/null || :
        code=0; $exec run --control $disk/control -- touch $out/ran || code=$?
        ls -A $disk/control; test ! -e $out/ran; test $code = 74
        rm $disk/big
        $exec run --control $disk/control -- touch $out/ran
        cp $disk/control/result $out
    """
    done = on_small_disk(step, script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [b"started"], "nothing of the refused start is left"
    assert b"No space left" in done.stderr
    assert json.loads((step.home / "out" / "result").read_bytes())["exit_code"] == 0
    assert (step.home / "out" / "ran").exists()


def test_killed_on_a_full_disk_and_started_again(step: Step) -> None:
    script = """
        $exec run --control $disk/control -- \\
            sh -c 'head -c 1000000 /dev/zero > $disk/big; echo > $disk/filled; exec sleep 1000' 2>/dev/null &
        while [ ! -e $disk/filled ]; do sleep 0.02; done
        kill -9 $!; wait $! || :
        $exec run --control $disk/control -- touch $out/again
        cp $disk/control/result $out
    """
    done = on_small_disk(step, script)
    assert done.returncode == 0, done.stderr
    assert json.loads((step.home / "out" / "result").read_bytes())["killed"] is True
    assert not (step.home / "out" / "again").exists()


# --- hostile tasks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["result", "stdout", "stderr", "stdout.tail", "stderr.tail", ".result.0", ".stdout.tail.0"]
)
def test_links_planted_before_the_start_are_not_followed(step: Step, name: str) -> None:
    victim = step.home / "victim"
    victim.write_text("precious")
    (step.control / name).symlink_to(victim)
    assert step.run("sh", "-c", "echo text; echo text >&2").returncode == 0
    assert victim.read_text() == "precious"
    assert step.result()["exit_code"] == 0
    assert (
        step.read("stdout") == step.read("stdout.tail") == step.read("stderr") == step.read("stderr.tail") == b"text\n"
    )
    assert not any(path.is_symlink() for path in step.control.iterdir())


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo"])
def test_a_planted_marker_never_leads_to_a_second_run(step: Step, kind: str) -> None:
    marker, victim = step.control / "started", step.home / "victim"
    if kind == "symlink":
        victim.write_text("precious")
    if kind in ("symlink", "dangling"):
        marker.symlink_to(victim)
    elif kind == "directory":
        marker.mkdir()
    else:
        os.mkfifo(marker)
    assert step.run("touch", f"{step.home}/ran").returncode == 0
    assert step.result()["killed"] is True
    assert not (step.home / "ran").exists()
    assert (victim.read_text() == "precious") if kind == "symlink" else not victim.exists()


NAMES = "result stdout.tail stderr.tail .result.0 .stdout.tail.0 .stderr.tail.0"
PLANTS = {
    "links": f"rm -f .*.0; for f in {NAMES}; do ln -s {{victim}} $f; done",
    "directories": f"rm -f .*.0; for f in {NAMES}; do mkdir $f; touch $f/x; done",
    "hard links": "ln .result.0 {home}/mine; ln .stdout.tail.0 {home}/mine2; echo '{{}}' > {home}/mine",
    "forged result": "echo '{{\"exit_code\":0}}' > result; cp result .result.0",
    "nothing left": "rm -rf .??* *",
    "closed": "chmod 000 .",
}


@pytest.mark.parametrize("plant", list(PLANTS))
def test_a_task_that_tampers_with_its_control_directory(step: Step, plant: str) -> None:
    victim = step.home / "victim"
    victim.write_text("precious")
    script = f"echo text; cd {step.control}; " + PLANTS[plant].format(victim=victim, home=step.home) + "; exit 9"
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if IS_ROOT else ()  # for whom permissions count
    assert step.run("sh", "-c", script, prefix=bare).returncode == 9
    assert victim.read_text() == "precious"
    path = step.control / "result"
    assert stat.S_ISREG(path.lstat().st_mode)
    assert path.stat().st_nlink == 1
    assert step.result()["exit_code"] == 9
    assert step.read("stdout.tail").startswith(b"text\n")


def test_the_control_directory_itself_may_not_be_a_link(step: Step) -> None:
    (step.home / "link").symlink_to(step.control)
    line = [step.program, "run", "--control", str(step.home / "link"), "--", "true"]
    assert subprocess.run(line, capture_output=True, check=False).returncode == 74


def test_the_task_cannot_look_into_exec(step: Step) -> None:
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups") if IS_ROOT else ()
    done = step.run(
        "sh",
        "-c",
        "ls -l /proc/self/fd >/dev/null && ! ls -l /proc/$PPID/fd/ && ! cat /proc/$PPID/environ",
        prefix=prefix,
    )
    assert done.returncode == 0, step.read("stderr")
    assert step.read("stderr").count(b"ermission denied") >= 2


@pytest.mark.skipif(not IS_ROOT, reason="only root can be another user, or root without capabilities")
@pytest.mark.parametrize("who", ["another user", "root without capabilities"])
def test_any_user(step: Step, who: str) -> None:
    os.chown(step.control, 12345, 12345)
    line = ("--reuid=54321", "--regid=54321", "--clear-groups") if who == "another user" else ()
    prefix = ("setpriv", *line, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    assert step.run("sh", "-c", orphans(step) + "# " + who, prefix=prefix).returncode == 5
    assert not any(alive(int(pid)) for pid in (step.home / "pids").read_text().split())
    assert step.result()["exit_code"] == 5
    assert step.read("stdout.tail") == b"left\n"


# --- out of memory ----------------------------------------------------------------------------------------------


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory cgroup (version 1 or 2) with 48 MiB, below the group of this process."""
    own = {
        parts[1]: parts[2]
        for parts in (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    }
    if "memory" in own:
        base, limit = Path("/sys/fs/cgroup/memory" + own["memory"]), "memory.limit_in_bytes"
    else:
        base, limit = Path("/sys/fs/cgroup" + own.get("", "")), "memory.max"
    group = base / f"tesgate-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / limit).write_text(str(48 << 20))
    except OSError as exc:
        with contextlib.suppress(OSError):
            group.rmdir()
        cannot(f"cannot make a memory cgroup here: {exc}")
    for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        with contextlib.suppress(OSError):
            (group / swap).write_text(str(48 << 20) if "memsw" in swap else "0")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text().strip(), "the end of the group's processes")
    group.rmdir()


def test_out_of_memory_is_told(step: Step, memory_group: Path) -> None:
    enter = ("sh", "-c", f'echo $$ > {memory_group}/cgroup.procs; exec "$@"', "sh")
    hungry = "bytearray(400 << 20)"
    assert step.run(sys.executable, "-c", hungry, prefix=enter).returncode == 128 + signal.SIGKILL
    result = step.result()
    assert (result["oom_killed"], result["signal"], result["killed"]) == (True, signal.SIGKILL, False)


def test_a_kill_within_a_memory_group_is_not_out_of_memory(step: Step, memory_group: Path) -> None:
    enter = ("sh", "-c", f'echo $$ > {memory_group}/cgroup.procs; exec "$@"', "sh")
    step.run("sh", "-c", "kill -9 $$", prefix=enter)
    assert (step.result()["oom_killed"], step.result()["signal"]) == (False, signal.SIGKILL)


# --- own --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")
@pytest.mark.parametrize("capabilities", ["all", "chown"])
def test_own(step: Step, capabilities: str) -> None:
    tree, outside = step.home / "tree", step.home / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("")
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("")
    (tree / "a" / "b" / "closed").mkdir()
    (tree / "a" / "b" / "closed" / "file").write_text("")
    (tree / "a" / "b" / "closed").chmod(0)
    (tree / "link").symlink_to(outside)
    (tree / "a" / "link").symlink_to(outside / "file")
    os.mkfifo(tree / "fifo")
    deep = os.open(tree, os.O_RDONLY)
    for _ in range(3000):  # deeper than a path and than the open files
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    prefix: tuple[str, ...] = ("prlimit", "--nofile=32")
    if capabilities == "chown":
        prefix = (*prefix, "setpriv", "--bounding-set=-all,+chown", "--inh-caps=-all")
    line = [*prefix, step.program, "own", "12345", "54321", str(tree), str(step.home / "gone"), str(outside / "file2")]
    (step.home / "single").write_text("")
    done = subprocess.run([*line, str(step.home / "single")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    deepest = os.fstat(deep)
    os.close(deep)
    assert (deepest.st_uid, deepest.st_gid) == (12345, 54321)
    names = ["", "a", "a/file", "a/b", "a/b/closed", "a/b/closed/file", "link", "a/link", "fifo"]
    owners = {name: (tree / name).lstat().st_uid for name in names}
    assert owners == dict.fromkeys(names, 12345)
    assert (step.home / "single").stat().st_gid == 54321
    assert {path.lstat().st_uid for path in (outside, outside / "file", outside / "folder")} == {0}
    subprocess.run(["rm", "-rf", str(tree)], check=True)  # Python's own removal recurses


def test_a_mount_of_something_else_is_not_entered(step: Step) -> None:
    (step.home / "there").mkdir()
    info = (step.home / "there").stat()
    for number, spec in (
        (errno.ESTALE, f"{info.st_dev}:{info.st_ino + 1}"),
        (errno.ESTALE, f"{info.st_dev + 1}:{info.st_ino}"),
    ):
        good = ("--bound", f"{info.st_dev}:{info.st_ino}:{step.home}/there")
        done = step.run("touch", f"{step.home}/began", options=(*good, "--bound", f"{spec}:{step.home}/there"))
        assert done.returncode == 125
        result = step.result()
        assert (result["error"], result["errno"], result["exit_code"]) == ("bind", number, None)
        assert not (step.home / "began").exists()
        shutil.rmtree(step.control)
        step.control.mkdir()
    assert step.run("touch", f"{step.home}/began", options=good).returncode == 0
    assert (step.home / "began").exists()


def test_a_mount_that_cannot_be_looked_at_is_not_entered(step: Step) -> None:
    """The directory above it may be the task's user's own, who would open it later."""
    inner = step.home / "closed/there"
    inner.mkdir(parents=True)
    info = inner.stat()
    (step.home / "closed").chmod(0)
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if IS_ROOT else ()  # for whom permissions count
    done = step.run(
        "touch", f"{step.home}/began", options=("--bound", f"{info.st_dev}:{info.st_ino}:{inner}"), prefix=bare
    )
    (step.home / "closed").chmod(0o755)
    assert done.returncode == 125
    assert (step.result()["error"], step.result()["errno"]) == ("bind", errno.EACCES)
    assert not (step.home / "began").exists()


def test_a_binary_of_other_sources_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    data = exec_program.content()
    old = data.replace(b" protocol %d\0" % exec_program.PROTOCOL, b" protocol 1\0")
    assert old != data
    for other in (old, b"\x7fELF"):
        monkeypatch.setattr("pkgutil.get_data", lambda *_, other=other: other)
        with pytest.raises(exec_program.ExecMissing, match="other sources"):
            exec_program.binary()
