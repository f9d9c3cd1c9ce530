"""What deployments set about containers, on a living agent: users of a range, limits that are off, kept attempts."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any, Dict

from tesgate.runner.plan import Input, Keep, Limits, Mount, Output, RunAs
from tests.runner.bench import Bench
from tests.runner.gateway_fake import Key, wait_for

BOTH = "n=0; while [ ! -e /work/go ]; do sleep 0.05; done; id -u > /work/who"


def _waiting(bench: Bench, name: str, **more: Any) -> Key:
    outputs = [Output(path="/work/who", url=(bench.root / name).as_uri())]
    return bench.gateway.assign(bench.plan(BOTH, outputs=outputs, **more))


def _begun(bench: Bench, key: Key) -> str:
    place = bench.scratch / "attempts" / ("tg-test-%s-%d" % key)
    wait_for(lambda: (place / "steps/0/started").exists() and (place / "steps/0/started").read_text(), "it to begin")
    return str(place)


def test_two_attempts_have_two_users_also_after_a_death(docker_bench: Bench) -> None:
    bench = docker_bench
    run_as = RunAs(policy="fixed", uid=61_000, gid=61_000, last_uid=61_001)
    bench.start()
    keys = [_waiting(bench, "who-%d" % number, run_as=run_as) for number in range(2)]
    places = [_begun(bench, key) for key in keys]
    # A third finds none free, says so, and is the gateway's to try again.
    third = bench.gateway.assign(bench.plan("true", run_as=run_as))
    said, body = bench.gateway.end_of(third)
    assert said == "failed"
    assert "Every user of the range 61000-61001 is taken" in json.dumps(body)
    bench.kill()
    bench.start()
    for place in places:
        with open(os.path.join(place, "rw/work/go"), "w"):
            pass
    for key in keys:
        assert bench.gateway.end_of(key)[0] == "finish"
    assert sorted(bench.output("who-%d" % number) for number in range(2)) == ["61000\n", "61001\n"]
    for key in [*keys, third]:
        bench.gateway.gone_from_have(key)
    wait_for(lambda: not os.listdir(bench.scratch / "users"), "the users to be given back")


def test_a_failed_attempt_is_kept_for_its_time_and_in_no_ones_way(docker_bench: Bench) -> None:
    bench = docker_bench
    keep = Keep(seconds=3600.0, most=1)
    bench.start()
    good = bench.gateway.assign(bench.plan("true", keep=keep))
    assert bench.gateway.end_of(good)[1]["state"] == "COMPLETE"
    bench.gateway.gone_from_have(good)
    first, last = (bench.gateway.assign(bench.plan("echo %d > trace; exit 3" % n, keep=keep)) for n in range(2))
    for key in (first, last):
        assert bench.gateway.end_of(key)[1]["state"] == "EXECUTOR_ERROR"
        bench.gateway.gone_from_have(key)
    kept = bench.scratch / "kept"
    wait_for(lambda: not bench.attempts() and kept.exists() and len(os.listdir(kept)) == 1, "one to be left")
    (name,) = os.listdir(kept)
    assert (kept / name / "rw/work/trace").read_text() in ("0\n", "1\n")
    # The plan held a token; the name of its containers is not one that an agent looks for.
    assert not (kept / name / "plan.json").exists()
    wait_for(lambda: bench.steps() == ["kept-%s-0" % name], "one container to be left")

    bench.terminate()
    about = json.loads((kept / name / "kept.json").read_text())
    about["until"] = about["at"]
    (kept / name / "kept.json").write_text(json.dumps(about))
    bench.start()
    wait_for(lambda: not bench.steps() and not os.listdir(kept), "what is past its time to be gone")
    after = bench.gateway.assign(bench.plan("true"))
    assert bench.gateway.end_of(after)[1]["state"] == "COMPLETE"


def test_limits_that_are_off_are_not_on_the_container(docker_bench: Bench, docker: Any) -> None:
    bench = docker_bench
    bench.start()
    limits = Limits(cpu_cores=0.5, ram_bytes=64 << 20, pids=99)
    key = _waiting(bench, "who", limits=limits, limits_off=["memory", "cpu"], home="/work", labels={"site": "x"})
    place = _begun(bench, key)
    (step,) = bench.steps()
    shown = subprocess.run(["docker", "inspect", step], capture_output=True, text=True, check=True).stdout
    found: Dict[str, Any] = json.loads(shown)[0]
    host, config = found["HostConfig"], found["Config"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (0, 0, 99)
    assert (config["Labels"]["site"], config["Labels"]["tesgate.task"]) == ("x", key[0])
    assert "HOME=/work" in config["Env"]
    with open(os.path.join(place, "rw/work/go"), "w"):
        pass
    assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE"
    bench.nothing_left(key)


def test_a_volume_is_a_root(docker_bench: Bench) -> None:
    bench = docker_bench
    name = "tesgate-test-%d" % os.getpid()
    subprocess.run(["docker", "volume", "create", name], capture_output=True, check=True)
    try:
        bench.options += ["--root", "volume=/volume", "--root-volume", "volume=%s" % name]
        shown = subprocess.run(["docker", "volume", "inspect", name], capture_output=True, text=True, check=True)
        place = json.loads(shown.stdout)[0]["Mountpoint"]
        with open(os.path.join(place, "in"), "w") as file:
            file.write("given")
        bench.start()
        plan = bench.plan(
            "cat in > out",
            inputs=[Input(path="/work/in", place="rw/work/in", url="file:///volume/in", writable=True)],
            outputs=[Output(path="/work/out", url="file:///volume/deep/out")],
            mounts=[Mount(source="rw/work", target="/work")],
        )
        key = bench.gateway.assign(plan)
        assert bench.gateway.end_of(key)[1]["state"] == "COMPLETE", bench.log()
        with open(os.path.join(place, "deep/out")) as file:
            assert file.read() == "given"
        bench.nothing_left(key)
        bench.terminate()
        bench.options += ["--root", "other=/other", "--root-volume", "other=no-such-volume"]
        assert bench.start().wait(20) == 3
        assert re.search("no-such-volume of the root other does not exist", bench.log())
    finally:
        subprocess.run(["docker", "volume", "rm", "-f", name], capture_output=True, check=False)
