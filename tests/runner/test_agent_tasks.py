"""What becomes of tasks on a living agent: verdicts, logs, outputs, limits; everything real but the gateway."""

from __future__ import annotations

import subprocess
from typing import Any, Dict, List

from tesgate.runner.plan import Collect, Executor, Input, Limits, Output
from tests.runner.bench import Bench
from tests.runner.gateway_fake import Key, wait_for


def _end(bench: Bench, key: Key, message: str = "finish") -> Dict[str, Any]:
    said, body = bench.gateway.end_of(key)
    assert said == message, (body, bench.log())
    bench.nothing_left(key)
    return body


def _executor(bench: Bench, *command: str, **more: Any) -> Executor:
    return Executor(image=bench.image, command=list(command), **more)


def _codes(body: Dict[str, Any]) -> List[Any]:
    return [executor.get("exit_code") for executor in body["snapshot"]["executors"]]


def test_a_small_task_needs_few_messages(bench: Bench) -> None:
    """One report that it began, one last word; no publish without outputs, no log request for an empty stream."""
    bench.start()
    key = bench.gateway.assign(bench.plan("true"))
    body = _end(bench, key)
    assert body["state"] == "COMPLETE"
    assert not body["published"]
    # The report is not waited for, so that either may arrive first.
    assert sorted(name for name, _, _ in bench.gateway.messages) in (["finish", "report"], ["finish"])
    assert bench.gateway.log_requests == 0
    snapshot = body["snapshot"]
    assert snapshot["step"] == "done"
    assert snapshot["metadata"]["agent"] == "agent-1"
    assert snapshot["metadata"]["runtime"] == "bubblewrap"
    assert float(snapshot["metadata"]["executor.0.wall_seconds"]) >= 0
    assert all(isinstance(value, str) for value in snapshot["metadata"].values())
    executor = snapshot["executors"][0]
    assert snapshot["start_time"] <= executor["start_time"] <= executor["end_time"]


def test_failure_stops_later_executors_and_outputs_are_stored_all_the_same(bench: Bench) -> None:
    bench.start()
    outputs = [Output(path="/work/out.txt", url=(bench.root / "out.txt").as_uri())]
    key = bench.gateway.assign(bench.plan("echo kept > out.txt; echo no >&2; exit 3", "echo never", outputs=outputs))
    body = _end(bench, key)
    assert body["state"] == "EXECUTOR_ERROR"
    assert _codes(body) == [3]
    assert body["snapshot"]["executors"][0]["stderr"] == "no\n"
    assert "executor 0 exited with 3" in body["snapshot"]["system_logs"]
    assert bench.output("out.txt") == "kept\n"
    assert [output["path"] for output in body["outputs"]] == ["/work/out.txt"]


def test_ignore_error_goes_on(bench: Bench) -> None:
    bench.start()
    plan = bench.plan("exit 4", "echo second")
    plan.executors[0].ignore_error = True
    body = _end(bench, bench.gateway.assign(plan))
    assert body["state"] == "COMPLETE"
    assert _codes(body) == [4, 0]


def test_a_missing_command_is_named(bench: Bench) -> None:
    bench.start()
    body = _end(bench, bench.gateway.assign(bench.plan(executors=[_executor(bench, "no-such-command", "x")])))
    assert (body["state"], _codes(body)) == ("EXECUTOR_ERROR", [127])
    assert any("`no-such-command` was not found in the image" in line for line in body["snapshot"]["system_logs"])


def test_time_limits(bench: Bench) -> None:
    """The executor's own, and the whole task's, which no ignore_error talks away."""
    bench.start()
    own = _executor(bench, "/bin/sleep", "60", timeout=0.5)
    first = bench.gateway.assign(bench.plan(executors=[own], grace=0.5))
    whole = _executor(bench, "/bin/sleep", "60", ignore_error=True, timeout=50.0)
    second = bench.gateway.assign(bench.plan(executors=[whole, _executor(bench, "/bin/true")], timeout=1.0, grace=0.5))
    body = bench.gateway.end_of(first)[1]
    assert (body["state"], _codes(body)) == ("EXECUTOR_ERROR", [124])
    assert any("ran longer than its limit of 0.5 s" in line for line in body["snapshot"]["system_logs"])
    body = bench.gateway.end_of(second)[1]
    assert (body["state"], _codes(body)) == ("EXECUTOR_ERROR", [124])
    assert any("the task ran longer than its limit of 1 s" in line for line in body["snapshot"]["system_logs"])


def test_a_task_whose_time_is_up_before_its_executor_begins_has_an_exit_code(bench: Bench) -> None:
    """Clients read logs[0].logs[0].exit_code of every EXECUTOR_ERROR."""
    bench.start()
    key = bench.gateway.assign(bench.plan("true", timeout=0.001))
    body = _end(bench, key)
    assert (body["state"], _codes(body)) == ("EXECUTOR_ERROR", [124])


def test_missing_input_is_a_system_error(bench: Bench) -> None:
    bench.start()
    inputs = [Input(path="/work/x", place="rw/work/x", url=(bench.root / "missing").as_uri())]
    body = _end(bench, bench.gateway.assign(bench.plan("true", inputs=inputs)))
    assert body["state"] == "SYSTEM_ERROR"
    assert body["snapshot"]["executors"] == []
    assert any("missing" in line for line in body["snapshot"]["system_logs"])


def test_an_output_that_can_never_be_stored_is_refused_before_anything_runs(bench: Bench) -> None:
    bench.start()
    outputs = [Output(path="/work/x", url="file:///elsewhere/x")]
    body = _end(bench, bench.gateway.assign(bench.plan("true", outputs=outputs)))
    assert body["state"] == "SYSTEM_ERROR"
    assert body["snapshot"]["executors"] == []


def test_a_declared_output_that_is_missing_is_a_line(bench: Bench) -> None:
    bench.start()
    outputs = [Output(path="/work/never", url=(bench.root / "never").as_uri())]
    body = _end(bench, bench.gateway.assign(bench.plan("true", outputs=outputs)))
    assert body["state"] == "COMPLETE"
    assert any("/work/never" in line for line in body["snapshot"]["system_logs"])


def test_logs_arrive_while_it_runs_and_are_whole_at_the_end(bench: Bench) -> None:
    bench.start()
    script = (
        "echo early; while ! test -e go; do sleep 0.1; done; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo late"
    )
    plan = bench.plan(script)
    key = bench.gateway.assign(plan)
    wait_for(lambda: bench.gateway.log(key, 0, "stdout") == b"early\n", "the first line")
    wait_for(lambda: any("early" in r["snapshot"]["executors"][0]["stdout"] for r in bench.reports(key)), "a live tail")
    (bench.scratch / "attempts" / plan.external_name / "rw" / "work" / "go").touch()
    body = _end(bench, key)
    stored = bench.gateway.log(key, 0, "stdout")
    assert stored == b"early\n" + b"x" * 3_000_000 + b"\nlate\n"
    assert body["snapshot"]["executors"][0]["stdout"].endswith("x\nlate\n")
    assert len(body["snapshot"]["executors"][0]["stdout"]) == plan.tail_bytes


def test_logs_are_capped_and_tails_hold_no_nul(bench: Bench) -> None:
    bench.start()
    key = bench.gateway.assign(bench.plan("printf 'a\\0b\\377'; head -c 5000 /dev/zero >&2", log_bytes=1000))
    body = _end(bench, key)
    assert body["snapshot"]["executors"][0]["stdout"] == "a\ufffdb\ufffd"
    assert bench.gateway.log(key, 0, "stdout") == b"a\0b\xff"
    assert bench.gateway.log(key, 0, "stderr") == b"\0" * 1000


def test_stdout_to_a_file_of_the_task_is_followed_too(bench: Bench) -> None:
    bench.start()
    plan = bench.plan(executors=[_executor(bench, "/bin/echo", "there", stdout="/work/deep/out")])
    plan.directories = ["rw/work/deep"]
    key = bench.gateway.assign(plan)
    body = _end(bench, key)
    assert body["snapshot"]["executors"][0]["stdout"] == "there\n"
    assert bench.gateway.log(key, 0, "stdout") == b"there\n"


def test_a_task_that_writes_its_own_result(bench: Bench) -> None:
    """It is its own doing: an executor error with a sentence, and no harm to anybody else."""
    bench.start()
    script = "echo '{broken' > /.tesgate/control/r && mv /.tesgate/control/r /.tesgate/control/result; sleep 5"
    body = _end(bench, bench.gateway.assign(bench.plan(script)))
    assert body["state"] == "EXECUTOR_ERROR"
    assert any("/.tesgate/control" in line for line in body["snapshot"]["system_logs"])


def test_links_in_the_control_directory_lead_nowhere(bench: Bench) -> None:
    """Result and tails are never read through a link that the task put there."""
    secret = bench.directory / "secret"
    secret.write_text('{"exit_code": 0, "secret": "xyzzy"}')
    bench.start()
    script = "cd /.tesgate/control && ln -s %s stdout.tail; ln -s %s result; sleep 5" % (secret, secret)
    body = _end(bench, bench.gateway.assign(bench.plan(script)))
    assert body["state"] == "EXECUTOR_ERROR"
    assert "xyzzy" not in str(body)


# -- on a container engine -------------------------------------------------------------------------------------


def test_docker_out_of_memory(docker_bench: Bench) -> None:
    docker_bench.start()
    hog = _executor(docker_bench, "/bin/sh", "-c", "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo ${#x}")
    key = docker_bench.gateway.assign(docker_bench.plan(executors=[hog], limits=Limits(ram_bytes=32_000_000)))
    body = _end(docker_bench, key)
    assert (body["state"], _codes(body)) == ("EXECUTOR_ERROR", [137])
    sentences = body["snapshot"]["system_logs"]
    assert any("more memory than its limit of 0.032 GB" in line for line in sentences), sentences


def test_docker_missing_image_is_a_system_error(docker_bench: Bench) -> None:
    docker_bench.start()
    plan = docker_bench.plan("true", pull_policy="never")
    plan.executors[0].image = "tesgate-test/there-is-none:latest"
    body = _end(docker_bench, docker_bench.gateway.assign(plan))
    assert body["state"] == "SYSTEM_ERROR"
    assert any("there-is-none" in line for line in body["snapshot"]["system_logs"])


def test_docker_container_that_somebody_removes_is_the_systems_fault(docker_bench: Bench) -> None:
    docker_bench.start()
    plan = docker_bench.plan("echo up; sleep 60")
    key = docker_bench.gateway.assign(plan)
    wait_for(lambda: docker_bench.gateway.log(key, 0, "stdout"), "the executor to run")
    subprocess.run(["docker", "rm", "-f", plan.external_name + "-0"], check=True, capture_output=True)
    body = _end(docker_bench, key, "failed")
    assert "executor 0 has no result" in body["cause"]


def test_docker_removed_while_the_agent_is_away_is_not_started_again(docker_bench: Bench) -> None:
    docker_bench.start()
    plan = docker_bench.plan("echo up; sleep 60")
    key = docker_bench.gateway.assign(plan)
    wait_for(lambda: docker_bench.gateway.log(key, 0, "stdout"), "the executor to run")
    docker_bench.kill()
    subprocess.run(["docker", "rm", "-f", plan.external_name + "-0"], check=True, capture_output=True)
    docker_bench.start()
    _end(docker_bench, key, "failed")
    assert docker_bench.gateway.log(key, 0, "stdout") == b"up\n"


def test_docker_collects_from_the_images_own_directories(docker_bench: Bench) -> None:
    """What an executor leaves there reaches the next one, and the outputs."""
    docker_bench.start()
    outputs = [Output(path="/etc/made.txt", url=(docker_bench.root / "made.txt").as_uri())]
    plan = docker_bench.plan(
        "echo one >> /etc/made.txt",
        "echo two >> /etc/made.txt",
        outputs=outputs,
        collect=[Collect(path="/etc/made.txt")],
    )
    body = _end(docker_bench, docker_bench.gateway.assign(plan))
    assert body["state"] == "COMPLETE", body
    assert docker_bench.output("made.txt") == "one\ntwo\n"


def test_docker_orphans_are_removed_at_the_start(docker_bench: Bench) -> None:
    """A container of this scratch without an attempt goes; one of another scratch stays."""
    label = "tesgate.scratch=%s" % docker_bench.scratch
    subprocess.run(
        ["docker", "create", "--name", "tg-test-orphan-1-0", "--label", label, docker_bench.image, "true"],
        check=True,
        capture_output=True,
    )
    other = ["docker", "create", "--name", "tg-test-other-1-0", "--label", "tesgate.scratch=/else", docker_bench.image]
    subprocess.run([*other, "true"], check=True, capture_output=True)
    try:
        docker_bench.start()
        wait_for(lambda: not docker_bench.steps(), "the orphan to go")
        found = subprocess.run(["docker", "inspect", "tg-test-other-1-0"], check=False, capture_output=True)
        assert found.returncode == 0
    finally:
        subprocess.run(
            ["docker", "rm", "-f", "tg-test-orphan-1-0", "tg-test-other-1-0"], capture_output=True, check=False
        )
