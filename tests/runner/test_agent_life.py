"""An agent's life: sessions, lock, stop, leases, gateways that go away, an orderly end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List, Optional

import anyio
import pytest

from tesgate.runner.plan import Output
from tesgate.runner.settings import AgentSettings
from tesgate.runner.start import run_agent
from tests.runner.bench import Bench
from tests.runner.gateway_fake import Key, wait_for


def _began(bench: Bench, key: Key) -> None:
    wait_for(lambda: bench.reports(key), "the report that it began")


def test_facts_that_are_registered(bare_bench: Bench) -> None:
    bare_bench.start(None, "--cpus", "3", "--ram-gb", "2", "--disk-gb", "5", "--pool", "p", "--label", "a=b")
    facts = wait_for(lambda: bare_bench.gateway.registrations, "a registration")[0]
    assert facts["capacity"] == {"cpu_cores": 3.0, "ram_bytes": 2_000_000_000, "disk_bytes": 5_000_000_000, "gpus": 0}
    assert facts["runtimes"] == []
    assert (facts["pool"], facts["labels"]) == ("p", {"a": "b"})
    assert facts["roots"] == [{"name": "data", "path": str(bare_bench.root), "writable": True, "mode": "copy"}]
    assert facts["instance"] == (bare_bench.scratch / "instance").read_text().strip()


def test_the_instance_survives_the_process_not_the_disk(bare_bench: Bench) -> None:
    bare_bench.start()
    wait_for(lambda: bare_bench.gateway.registrations, "a registration")
    bare_bench.kill()
    bare_bench.start()
    wait_for(lambda: len(bare_bench.gateway.registrations) == 2, "another one")
    bare_bench.kill()
    (bare_bench.scratch / "instance").unlink()
    bare_bench.start()
    wait_for(lambda: len(bare_bench.gateway.registrations) == 3, "a third one")
    first, second, third = (facts["instance"] for facts in bare_bench.gateway.registrations)
    assert first == second != third


def test_a_second_agent_on_the_same_scratch_ends_with_a_sentence(bare_bench: Bench) -> None:
    first = bare_bench.start()
    wait_for(lambda: bare_bench.gateway.registrations, "a registration")
    second = bare_bench.start()
    assert second.wait(15) == 4
    assert "another agent already works in" in bare_bench.log()
    assert first.poll() is None
    bare_bench.process = first


def test_an_old_session_registers_anew_while_it_holds_the_lock(bare_bench: Bench) -> None:
    bare_bench.gateway.max_wait = 0.2
    process = bare_bench.start()
    wait_for(lambda: bare_bench.gateway.polls, "a poll")
    bare_bench.gateway.refuse["poll"] = [410]
    wait_for(lambda: len(bare_bench.gateway.registrations) == 2, "a new session")
    assert process.poll() is None
    os.rename(bare_bench.scratch / "lock", bare_bench.scratch / "lock.old")
    bare_bench.gateway.refuse["poll"] = [410]
    assert process.wait(15) == 5


def test_a_closed_instance_begins_anew_with_nothing(bench: Bench) -> None:
    """The gateway declared this agent lost for good: what runs is removed, and another instance registers."""
    bench.gateway.max_wait = 0.2
    bench.start()
    key = bench.gateway.assign(bench.plan("sleep 60"))
    _began(bench, key)
    bench.gateway.close_attempt(key)
    bench.gateway.refuse["register"] = [410]
    bench.gateway.refuse["poll"] = [410]
    wait_for(lambda: len(bench.gateway.registrations) == 2, "another registration")
    assert bench.gateway.registrations[0]["instance"] != bench.gateway.registrations[1]["instance"]
    wait_for(lambda: not bench.attempts() and not bench.steps(), "everything to go")


def test_the_token_is_read_again_when_it_is_not_taken(bare_bench: Bench) -> None:
    bare_bench.gateway.token = "tga_other"
    bare_bench.start()
    wait_for(lambda: "does not take the agent's token" in bare_bench.log(), "a complaint")
    bare_bench.token_file.write_text("tga_other\n")
    wait_for(lambda: bare_bench.gateway.polls, "a poll with the new token")
    bare_bench.gateway.token = "tga_third"
    bare_bench.token_file.write_text("tga_third\n")
    before = len(bare_bench.gateway.polls)
    bare_bench.gateway.stop()
    bare_bench.gateway.start()
    wait_for(lambda: len(bare_bench.gateway.polls) > before, "a poll with the third token")
    assert "tga_" not in bare_bench.log()


# -- stop ------------------------------------------------------------------------------------------------------


def test_cancel_while_it_runs(bench: Bench) -> None:
    bench.start()
    outputs = [Output(path="/work/out", url=(bench.root / "out").as_uri())]
    script = "trap 'echo told >&2; exit 9' TERM; echo up; touch out; while :; do sleep 0.1; done"
    key = bench.gateway.assign(bench.plan(script, "echo never", outputs=outputs))
    wait_for(lambda: bench.gateway.log(key, 0, "stdout"), "the executor to run")
    bench.gateway.cancel(key)
    message, body = bench.gateway.end_of(key)
    assert message == "stopped"
    assert [executor["exit_code"] for executor in body["snapshot"]["executors"]] == [9]
    bench.nothing_left(key)
    assert bench.gateway.log(key, 0, "stderr").endswith(b"told\n")
    assert os.listdir(bench.root) == []
    assert len(bench.gateway.polls) < 40, "the agent polls at full speed while it stops"


def test_cancel_of_an_attempt_that_never_came_leaves_a_tombstone(bare_bench: Bench) -> None:
    """The gateway learns that it will never begin, and then the tombstone goes too."""
    bare_bench.gateway.max_wait = 0.2
    plan = bare_bench.plan("true")
    key = (plan.task, plan.attempt)
    bare_bench.gateway.cancel(key)
    bare_bench.start()
    assert bare_bench.gateway.end_of(key)[0] == "tombstone"
    wait_for(lambda: os.listdir(bare_bench.scratch / "tombstones") == [], "the tombstone to go")


def test_a_start_that_comes_late_finds_it_stopped(bare_bench: Bench) -> None:
    bare_bench.gateway.max_wait = 0.2
    plan = bare_bench.plan("true")
    (bare_bench.scratch / "tombstones").mkdir(parents=True)
    (bare_bench.scratch / "tombstones" / ("%s-%d" % (plan.task, plan.attempt))).touch()
    bare_bench.start()
    key = bare_bench.gateway.assign(plan)
    assert bare_bench.gateway.end_of(key)[0] == "tombstone"
    assert key not in bare_bench.gateway.acknowledged
    assert bare_bench.attempts() == []


def test_cancel_between_the_outputs_and_their_publication(bench: Bench) -> None:
    """What lies under temporary names goes; nothing becomes visible."""
    bench.start()
    bench.gateway.other_lease_until = time.monotonic() + 3600
    key = bench.gateway.assign(bench.counted(1))
    wait_for(lambda: bench.gateway.of(key, "publish"), "the wish for a lease")
    assert [name for name in os.listdir(bench.root) if name.startswith(".tesgate")]
    bench.gateway.cancel(key)
    assert bench.gateway.end_of(key)[0] == "stopped"
    bench.nothing_left(key)
    assert os.listdir(bench.root) == []


def test_cancel_that_meets_the_last_word(bench: Bench) -> None:
    """`finish` is answered with stop: the task was cancelled first, and `stopped` follows."""
    bench.start()
    bench.gateway.refuse["finish"] = [503] * 1000
    key = bench.gateway.assign(bench.plan("true"))
    wait_for(lambda: bench.gateway.of(key, "finish"), "the last word")
    bench.gateway.cancel(key)
    bench.gateway.refuse["finish"] = []
    assert bench.gateway.end_of(key)[0] == "stopped"
    bench.nothing_left(key)


def test_410_removes_everything_quietly(bench: Bench) -> None:
    bench.start()
    key = bench.gateway.assign(bench.counted(1, held=[0]))
    _began(bench, key)
    bench.gateway.close_attempt(key)
    wait_for(lambda: not bench.attempts() and not bench.steps(), "everything to go")
    assert (bench.scratch / "tombstones" / ("%s-%d" % key)).exists()
    assert key not in bench.gateway.ended
    assert os.listdir(bench.root) == []


# -- leases and lost answers -----------------------------------------------------------------------------------


def test_outputs_wait_for_another_attempts_lease(bench: Bench) -> None:
    bench.start()
    bench.gateway.other_lease_until = time.monotonic() + 3600.0
    key = bench.gateway.assign(bench.counted(1))
    wait_for(lambda: len(bench.gateway.of(key, "publish")) >= 2, "the lease to be asked for again")
    assert not (bench.root / "count.txt").exists()
    bench.gateway.other_lease_until = 0.0
    assert bench.gateway.end_of(key)[1]["published"]
    bench.nothing_left(key)


def test_a_lease_that_is_too_short_publishes_nothing(bench: Bench) -> None:
    """The runner stops two seconds before the end of a lease; with a longer one it goes on."""
    bench.start()
    bench.gateway.lease_seconds = 1.5
    key = bench.gateway.assign(bench.counted(1))
    wait_for(lambda: len(bench.gateway.of(key, "publish")) >= 3, "the lease to be asked for again")
    assert not (bench.root / "count.txt").exists()
    bench.gateway.lease_seconds = 30.0
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    assert bench.output("count.txt") == "run-0\n"


def test_a_lease_that_has_run_out_before_the_last_word_is_asked_for_again(bench: Bench) -> None:
    bench.start()
    bench.gateway.refuse["finish"] = [503] * 1000
    key = bench.gateway.assign(bench.counted(1))
    wait_for(lambda: bench.gateway.of(key, "finish"), "the last word")
    with bench.gateway.lock:
        bench.gateway.leases.clear()
        bench.gateway.refuse["finish"] = []
    assert bench.gateway.end_of(key)[1]["published"]
    assert len(bench.gateway.of(key, "publish")) >= 2
    bench.nothing_left(key)


def test_lost_answers(bench: Bench) -> None:
    """Each message is taken, its answer lost: all are repeated, with rising versions, and nothing happens twice."""
    bench.gateway.refuse = {name: [599] for name in ("report", "publish", "finish", "log")}
    bench.gateway.refuse["log"] = [503]
    bench.start()
    key = bench.gateway.assign(bench.counted(2))
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    bench.nothing_left(key)
    wait_for(lambda: bench.gateway.log(key, 1, "stdout"), "the logs")
    versions = [body["version"] for _, whose, body in bench.gateway.messages if whose == key]
    assert len(set(versions)) == len(versions)


def test_logs_are_in_before_it_is_forgotten(bench: Bench) -> None:
    bench.start()
    bench.gateway.refuse["log"] = [503] * 1000
    key = bench.gateway.assign(bench.plan("echo precious"))
    bench.gateway.end_of(key)
    wait_for(lambda: key in bench.gateway.forgotten, "the wish to forget")
    wait_for(lambda: len(bench.gateway.refuse["log"]) < 998, "the log to be tried again")
    assert bench.attempts()
    bench.gateway.refuse["log"] = []
    bench.nothing_left(key)
    assert bench.gateway.log(key, 0, "stdout") == b"precious\n"


# -- the gateway goes away -------------------------------------------------------------------------------------


def test_the_gateway_goes_away_and_comes_back(bench: Bench) -> None:
    """Attempts go on meanwhile, up to what needs the gateway."""
    bench.start()
    plan = bench.counted(2)
    plan.executors[0].command[2] += "; while ! test -e go; do sleep 0.05; done"
    key = bench.gateway.assign(plan)
    _began(bench, key)
    bench.gateway.stop()
    directory = bench.scratch / "attempts" / plan.external_name
    (directory / "rw" / "work" / "go").touch()

    def journalled(what: str) -> bool:
        return any(json.loads(line)["what"] == what for line in (directory / "journal").read_text().splitlines())

    wait_for(lambda: journalled("temporaries"), "the outputs to be prepared")
    assert not (bench.root / "count.txt").exists()
    bench.gateway.start()
    back = time.monotonic()
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    assert time.monotonic() - back < 20, "pauses are of at most five seconds"
    assert bench.output("count.txt") == "run-0\nrun-1\n"
    bench.nothing_left(key)


def test_an_idle_agent_whose_gateway_does_not_know_it_ends(bare_bench: Bench) -> None:
    """Another gateway may have its old one's port by now; to ask that for ever helps nobody."""
    bare_bench.gateway.token = "tga_of-somebody-else"
    process = bare_bench.start(None, "--idle-exit", "1")
    assert process.wait(30) == 0


def test_an_idle_agent_without_a_gateway_ends(bench: Bench) -> None:
    process = bench.start(None, "--idle-exit", "1")
    bench.gateway.forgets = False
    key = bench.gateway.assign(bench.plan("sleep 3"))
    _began(bench, key)
    bench.gateway.stop()
    journal = bench.scratch / "attempts" / bench.gateway.plans[key].external_name / "journal"
    wait_for(lambda: '"final"' in journal.read_text(), "the executor to end")
    assert process.poll() is None, "an attempt has its last word to say: the agent must stay for it"
    bench.gateway.start()
    bench.gateway.end_of(key)
    bench.gateway.stop()
    assert process.wait(30) == 0


def test_sigterm_ends_quickly_and_the_executor_goes_on(bench: Bench) -> None:
    bench.start()
    plan = bench.counted(1)
    plan.executors[0].command[2] += "; while ! test -e go; do sleep 0.05; done"
    key = bench.gateway.assign(plan)
    _began(bench, key)
    assert bench.terminate() == 0, "it waits for no executor"
    (bench.scratch / "attempts" / plan.external_name / "rw" / "work" / "go").touch()
    result = bench.scratch / "attempts" / plan.external_name / "steps" / "0" / "result"
    wait_for(result.exists, "the executor to end without an agent")
    bench.start()
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    assert bench.output("count.txt") == "run-0\n"
    bench.nothing_left(key)


def test_damaged_directories_are_removed_at_the_start(bare_bench: Bench) -> None:
    attempts = bare_bench.scratch / "attempts"
    for name in ("tg-test-torn-1", ".new-tg-test-half-1-abcd", ".gone-tg-test-late-1-abcd"):
        (attempts / name).mkdir(parents=True)
        (attempts / name / "plan.json").write_text("{")
    bare_bench.start()
    wait_for(lambda: bare_bench.gateway.polls, "a poll")
    assert bare_bench.attempts() == []
    assert bare_bench.gateway.polls[0]["have"] == []


def test_an_agent_without_a_runtime_says_so(bare_bench: Bench) -> None:
    plan = bare_bench.plan("true")
    bare_bench.start()
    key = bare_bench.gateway.assign(plan)
    wait_for(lambda: bare_bench.attempts(), "the attempt to begin")
    bare_bench.gateway.cancel(key)
    assert bare_bench.gateway.end_of(key)[0] == "stopped"
    bare_bench.nothing_left(key)


def test_logs_of_the_agent_are_json_without_secrets(bench: Bench) -> None:
    bench.start()
    plan = bench.plan("echo x")
    key = bench.gateway.assign(plan)
    bench.gateway.end_of(key)
    bench.nothing_left(key)
    lines = [json.loads(line) for line in bench.log().splitlines()]
    assert any(line.get("task") == plan.task and line.get("attempt") == 1 for line in lines)
    assert plan.token not in bench.log()
    assert "tga_" not in bench.log()


@pytest.mark.parametrize("stopping", [False, True])
def test_after_too_long_without_a_gateway_everything_is_removed(bench: Bench, stopping: bool) -> None:
    """Seven days in life; then an agent with nothing left to do ends. An attempt that waits to say `stopped` too."""
    settings = AgentSettings(
        url=bench.gateway.url,
        token_file=str(bench.token_file),
        scratch=str(bench.scratch),
        runtime="bubblewrap",
        abandon_after=2.0,
        idle_exit=1.0,
    )
    codes: List[int] = []
    thread = threading.Thread(target=lambda: codes.append(anyio.run(run_agent, settings)))
    thread.start()
    key = bench.gateway.assign(bench.plan("sleep 600"))
    _began(bench, key)
    if stopping:
        bench.gateway.refuse["stopped"] = [503] * 1000
        bench.gateway.cancel(key)
        wait_for(lambda: bench.gateway.of(key, "stopped"), "the attempt to be stopped")
    bench.gateway.stop()
    thread.join(30)
    assert codes == [0]
    assert bench.attempts() == []
    assert bench.steps() == []


# -- the engine goes away --------------------------------------------------------------------------------------


class _Door:
    """A socket in front of the engine's own that can be shut."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path, self._engine = path, engine
        self._pairs: List[socket.socket] = []
        self._listener: Optional[socket.socket] = None
        self.open()

    def open(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def shut(self) -> None:
        self.path.unlink()
        assert self._listener is not None
        for sock in [self._listener, *self._pairs]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._pairs.clear()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.socket(socket.AF_UNIX)
                there.connect(self._engine)
                self._pairs += [here, there]
                threading.Thread(target=self._both, args=(here, there), daemon=True).start()

    def _both(self, here: socket.socket, there: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(there, here), daemon=True)
        with here, there:
            back.start()
            self._pump(here, there)
            back.join()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def door(docker_bench: Bench, docker: Any, tmp_path: Path) -> Iterator[_Door]:
    made = _Door(tmp_path / "door.sock", docker.socket)
    docker_bench.options = ["--docker-socket", str(made.path)]
    yield made
    if made.path.exists():
        made.shut()


def test_an_executor_that_outlives_its_engines_absence_counts(docker_bench: Bench, door: _Door) -> None:
    """The result file is the end of the step, whoever is away; what needs the engine waits for it."""
    docker_bench.start()
    plan = docker_bench.counted(2)
    plan.executors[0].command[2] += "; while ! test -e go; do sleep 0.05; done"
    key = docker_bench.gateway.assign(plan)
    _began(docker_bench, key)
    door.shut()
    time.sleep(0.5)
    (docker_bench.scratch / "attempts" / plan.external_name / "rw" / "work" / "go").touch()
    wait_for(lambda: "cannot" in docker_bench.log(), "the agent to miss its engine")
    assert key not in docker_bench.gateway.ended
    door.open()
    assert docker_bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    assert docker_bench.output("count.txt") == "run-0\nrun-1\n"
    docker_bench.nothing_left(key)


def test_an_executor_that_dies_with_its_engine_is_the_systems_fault(docker_bench: Bench, door: _Door) -> None:
    docker_bench.start()
    plan = docker_bench.plan("echo up; sleep 60")
    key = docker_bench.gateway.assign(plan)
    wait_for(lambda: docker_bench.gateway.log(key, 0, "stdout"), "the executor to run")
    door.shut()
    subprocess.run(["docker", "kill", plan.external_name + "-0"], check=True, capture_output=True)
    message, body = docker_bench.gateway.end_of(key)
    assert message == "failed"
    assert "ended while the engine could not be reached" in body["cause"]
    door.open()
    docker_bench.nothing_left(key)


# -- the oldest Python -----------------------------------------------------------------------------------------


def test_on_the_oldest_python(tmp_path: Path, bubblewrap: Any, python39: Any) -> None:
    """A kill in the middle included; where that Python lives in a root of its own, without executors."""
    bench = Bench(tmp_path, "bubblewrap" if python39.root is None else "none")
    bench.python = python39.command("-W", "error", writable=[tmp_path])
    bench.python_path = []
    try:
        if python39.root is not None:
            bench.start()
            key = bench.gateway.assign(bench.plan("true"))
            wait_for(lambda: bench.attempts(), "the attempt to begin")
            bench.gateway.cancel(key)
            assert bench.gateway.end_of(key)[0] == "stopped"
        else:
            bench.start("before-publish")
            key = bench.gateway.assign(bench.counted(2))
            bench.wait_killed()
            bench.start()
            assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
            assert bench.output("count.txt") == "run-0\nrun-1\n"
        bench.nothing_left(key)
    finally:
        bench.close()


def test_a_forget_that_overtakes_the_answer_to_the_last_word_breaks_nothing_off(bench: Bench) -> None:
    """The poll is answered first: the last word was heard all the same, and the attempt ends as any other."""
    bench.gateway.hold_finish = True
    bench.start()
    key = bench.gateway.assign(bench.counted(1))
    assert bench.gateway.end_of(key)[0] == "finish"
    bench.nothing_left(key)
    assert len(bench.gateway.of(key, "finish")) == 1
    assert "never heard" not in bench.log()
    assert "never answered" not in bench.log()


def test_an_attempt_that_cannot_be_read_now_is_not_given_up(bare_bench: Bench) -> None:
    plan = bare_bench.scratch / "attempts" / "tg-test-well-1" / "plan.json"
    plan.mkdir(parents=True)  # reading it fails with an OSError, as on a disk that does not answer
    bare_bench.start()
    assert bare_bench.process is not None
    assert bare_bench.process.wait(30) != 0
    assert "cannot be read now" in bare_bench.log()
    assert plan.exists()
    assert not bare_bench.gateway.polls
