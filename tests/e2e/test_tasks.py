"""What a task may ask for, end to end on both runtimes: gateway, agent, engine and database are real processes."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import psutil
import pytest

from tests.beds.images import BUSYBOX, engine_call
from tests.e2e.conftest import Web
from tests.e2e.harness import Gateway, sh, wait_for

pytestmark = pytest.mark.timeout(240)


def logs(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The executors' logs of the last attempt."""
    executors: list[dict[str, Any]] = task["logs"][-1]["logs"]
    return executors


def said(task: dict[str, Any]) -> str:
    """All system logs."""
    return "\n".join(line for attempt in task["logs"] for line in attempt["system_logs"])


def output(path: str, url: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "url": url, "type": "FILE", **more}


# -- files in and out ------------------------------------------------------------------------------------------


def test_two_executors_share_a_volume(gateway: Gateway) -> None:
    task = gateway.run(
        sh("echo from the first > /shared/x"),
        sh("cat /shared/x > /out/y; ls /shared"),
        volumes=["/shared"],
        outputs=[output("/out/y", gateway.url("volume.txt"))],
    )
    assert task["state"] == "COMPLETE"
    assert [log["exit_code"] for log in logs(task)] == [0, 0]
    assert logs(task)[1]["stdout"] == "x\n"
    assert gateway.read("volume.txt") == "from the first\n"
    (stored,) = task["logs"][0]["outputs"]
    assert stored == {"url": gateway.url("volume.txt"), "path": "/out/y", "size_bytes": "15"}


def test_directories_and_wildcards(gateway: Gateway) -> None:
    task = gateway.run(
        sh("cd /work; mkdir -p d/sub; echo a > d/a; echo b > d/sub/b; touch p1.txt p2.txt q"),
        outputs=[
            output("/work/d", gateway.url("dirout/"), type="DIRECTORY"),
            output("/work/p?.txt", gateway.url("globbed"), path_prefix="/work"),
        ],
    )
    assert task["state"] == "COMPLETE", said(task)
    assert gateway.read("dirout/a") + gateway.read("dirout/sub/b") == "a\nb\n"
    assert sorted(path.name for path in (gateway.files / "globbed").iterdir()) == ["p1.txt", "p2.txt"]
    assert {found["path"] for found in task["logs"][0]["outputs"]} == {
        "/work/d/a",
        "/work/d/sub/b",
        "/work/p1.txt",
        "/work/p2.txt",
    }


def test_cwl_tes_file_inside_directory(gateway: Gateway) -> None:
    """Every task of cwl-tes: a fresh top-level directory that is workdir, HOME and DIRECTORY, with a FILE inside."""
    task = gateway.run(
        {
            "image": BUSYBOX,
            "command": ["md5sum", "/var/lib/cwl/in.txt"],
            "workdir": "/uQMmjL",
            "stdout": "/uQMmjL/md5",
            "env": {"HOME": "/uQMmjL"},
        },
        inputs=[{"url": gateway.write("cwl.txt", "hello\n"), "path": "/var/lib/cwl/in.txt", "type": "FILE"}],
        outputs=[
            output("/uQMmjL", gateway.url("tmpx") + "/", type="DIRECTORY"),
            output("/uQMmjL/md5", gateway.url("tmpx/md5")),
        ],
    )
    assert task["state"] == "COMPLETE", said(task)
    assert gateway.read("tmpx/md5").startswith("b1946ac92492d2347c6235b4d2611184")


def test_nextflow_request(gateway: Gateway) -> None:
    """The recorded request of nf-ga4gh 1.4: plain paths, no types, an optional output, a directory, scripts outside."""
    work, project = "nf/work/ab/12", "nf/project"
    gateway.write(f"{work}/.command.sh", "not read here")
    made = "touch part_1.txt part_2.txt; mkdir d_b; echo x > d_b/x; echo out > .command.out; echo 0 > .exitcode"
    gateway.write(f"{work}/.command.run", f"sh {gateway.path(project)}/bin/hello.sh > b.n; cat b.txt; {made}")
    gateway.write(f"{project}/bin/hello.sh", "echo hello")
    gateway.write(f"{project}/data/b.txt", "data\n")
    here = gateway.path
    body = {
        "name": "COUNT (b)",
        "inputs": [
            {"url": here(f"{work}/.command.sh"), "path": "/work/.command.sh", "type": "FILE"},
            {"url": here(f"{work}/.command.run"), "path": "/work/.command.run", "type": "FILE"},
            {"url": here(f"{project}/bin/hello.sh"), "path": here(f"{project}/bin/hello.sh"), "type": "FILE"},
            {"url": here(f"{project}/data/b.txt"), "path": "/work/b.txt", "type": "FILE"},
        ],
        "outputs": [
            {"url": here(f"{work}/.command.out"), "path": "/work/.command.out"},
            {"url": here(f"{work}/.command.err"), "path": "/work/.command.err"},
            {"url": here(f"{work}/.command.log"), "path": "/work/.command.log"},
            {"url": here(f"{work}/.exitcode"), "path": "/work/.exitcode"},
            {"url": here(f"{work}/b.n"), "path": "/work/b.n", "type": "FILE"},
            {"url": here(work), "path": "/work/part_*.txt", "path_prefix": "/work", "type": "FILE"},
            {"url": here(f"{work}/d_b"), "path": "/work/d_b", "type": "FILE"},
            {"url": here(f"{work}/absent.txt"), "path": "/work/absent.txt", "type": "FILE"},
        ],
        "resources": {"cpu_cores": 1, "ram_gb": 0.25, "disk_gb": 1.0, "backend_parameters_strict": False},
        "executors": [
            {
                "image": BUSYBOX,
                "command": ["sh", "-c", "sh /work/.command.run 2>&1 | tee /work/.command.log"],
                "workdir": "/work",
            }
        ],
        "tags": {"project": "p", "run": "r"},
    }
    answer = gateway.client.post(f"http://127.0.0.1:{gateway.port}/v1/tasks", json=body)
    task = gateway.wait(answer.json()["id"])
    assert task["state"] == "COMPLETE", said(task)
    assert gateway.read(f"{work}/.command.log") == "data\n"
    assert gateway.read(f"{work}/.exitcode") == "0\n"
    assert gateway.read(f"{work}/b.n") == "hello\n"
    assert gateway.read(f"{work}/d_b/x") == "x\n"
    assert {"part_1.txt", "part_2.txt"} <= set(os.listdir(gateway.path(work)))
    assert "absent.txt" in said(task) and ".command.err" in said(task)


def test_snakemake_shape(gateway: Gateway) -> None:
    task = gateway.run(
        {"image": BUSYBOX, "command": ["sh", "/tmp/run_snakemake.sh"], "workdir": "/tmp"},
        inputs=[{"path": "/tmp/run_snakemake.sh", "content": "mkdir /tmp/conda && cd /tmp && pwd && touch conda/x"}],
        outputs=[],
    )
    assert (task["state"], logs(task)[0]["stdout"]) == ("COMPLETE", "/tmp\n")


def test_pulsar_shape(gateway: Gateway) -> None:
    """Three executors around a staging volume, the tool waits for a file that the first one makes; nulls everywhere."""
    nothing = dict.fromkeys(["id", "state", "inputs", "outputs", "logs", "tags", "creation_time"])
    wait = "while [ ! -e /pulsar_staging/1/in/x ]; do sleep 0.1; done"
    task = gateway.run(
        sh("mkdir -p /pulsar_staging/1/in; echo data > /pulsar_staging/1/in/x", workdir="/", env=None, stdin=None),
        sh(f"{wait}; cp /pulsar_staging/1/in/x /pulsar_staging/1/out", workdir="/", stdout=None, stderr=None),
        sh("cat /pulsar_staging/1/out", workdir="/"),
        name="pulsar-1",
        volumes=["/pulsar_staging/"],
        resources={"cpu_cores": None, "ram_gb": None, "backend_parameters": None, "backend_parameters_strict": False},
        **nothing,
    )
    assert (task["state"], logs(task)[2]["stdout"]) == ("COMPLETE", "data\n")


def test_standard_streams_are_files(gateway: Gateway) -> None:
    task = gateway.run(
        sh("cat; echo wrong >&2", stdin="/in/data", stdout="/o/out", stderr="/o/err"),
        inputs=[{"path": "/in/data", "content": "through\n"}],
        outputs=[output("/o/out", gateway.url("streams/out")), output("/o/err", gateway.url("streams/err"))],
    )
    assert task["state"] == "COMPLETE", said(task)
    assert (gateway.read("streams/out"), gateway.read("streams/err")) == ("through\n", "wrong\n")
    assert (logs(task)[0]["stdout"], logs(task)[0]["stderr"]) == ("through\n", "wrong\n")


def test_odd_names(gateway: Gateway) -> None:
    name = "a b/ü'\"$(x)%41;[1]#?.txt"
    task = gateway.run(
        {"image": BUSYBOX, "command": ["cp", f"/in/{name}", f"/out dir/{name}.copy"], "workdir": "/out dir/a b"},
        inputs=[{"url": gateway.write(name, "odd\n"), "path": f"/in/{name}", "type": "FILE"}],
        outputs=[{"path": "/out dir/a b", "url": gateway.path("plain path/x y"), "type": "DIRECTORY"}],
    )
    assert task["state"] == "COMPLETE", (said(task), logs(task))
    assert gateway.read("plain path/x y/" + name.split("/")[1] + ".copy") == "odd\n"


def test_places_of_a_task(gateway: Gateway) -> None:
    """/tmp is private and writable, HOME is writable, inputs are read-only, the work directory is the one asked for."""
    gateway.run(sh("echo trace > /tmp/trace"))
    task = gateway.run(
        sh(
            'echo x > /tmp/x && ls /tmp && echo y > "$HOME/y" && (echo z >> /data/in) 2>/dev/null || echo refused; pwd',
            workdir="/made/here",
        ),
        inputs=[{"url": gateway.write("kept.txt", "kept\n"), "path": "/data/in", "type": "FILE"}],
    )
    assert (task["state"], logs(task)[0]["stdout"]) == ("COMPLETE", "x\nrefused\n/made/here\n")
    assert gateway.read("kept.txt") == "kept\n"


def test_many_small_outputs(gateway: Gateway) -> None:
    task = gateway.run(
        sh("mkdir /many; for i in $(seq 300); do echo $i > /many/f$i; done"),
        outputs=[output("/many", gateway.url("many"), type="DIRECTORY")],
    )
    assert task["state"] == "COMPLETE"
    assert len(task["logs"][0]["outputs"]) == len(os.listdir(gateway.files / "many")) == 300
    assert gateway.read("many/f300") == "300\n"


def test_input_over_http(gateway: Gateway, web: Web) -> None:
    web.bodies["/data"] = os.urandom(100_000) * 10
    task = gateway.run(
        sh("wc -c < /in/data"),
        inputs=[{"url": web.url("/data"), "path": "/in/data", "type": "FILE"}],
        outputs=[output("/in/data", gateway.url("copy"))],
    )
    assert (task["state"], logs(task)[0]["stdout"].strip()) == ("COMPLETE", "1000000")
    assert (gateway.files / "copy").read_bytes() == web.bodies["/data"]


# -- what the system refuses -----------------------------------------------------------------------------------


def refused(gateway: Gateway, **task: Any) -> str:
    """The system logs of a task that must end in SYSTEM_ERROR without running anything, in one attempt."""
    ended = gateway.run(sh("echo never"), **task)
    assert ended["state"] == "SYSTEM_ERROR", ended
    assert len(ended["logs"]) == 1 and not ended["logs"][0]["logs"], ended
    return said(ended)


def test_private_address_is_refused(gateway: Gateway, strange_web: Web) -> None:
    strange_web.bodies["/data"] = b"secret"
    words = refused(gateway, inputs=[{"url": strange_web.url("/data"), "path": "/in/data", "type": "FILE"}])
    assert "127.0.0.1" in words and "allowed" in words


def test_missing_input(gateway: Gateway) -> None:
    words = refused(gateway, inputs=[{"url": gateway.path("not there"), "path": "/in", "type": "FILE"}])
    assert "not there" in words and "does not exist" in words


def test_missing_input_over_http(gateway: Gateway, web: Web) -> None:
    words = refused(gateway, inputs=[{"url": web.url("/absent"), "path": "/in", "type": "FILE"}])
    assert "404" in words


def test_file_outside_of_the_roots(gateway: Gateway) -> None:
    words = refused(gateway, inputs=[{"url": "file:///etc/passwd", "path": "/in", "type": "FILE"}])
    assert "/etc/passwd" in words and "root" in words
    sibling = str(gateway.files) + "-sibling/x"
    assert "root" in refused(gateway, outputs=[output("/out", sibling)])
    assert "root" in refused(
        gateway, inputs=[{"url": gateway.url("../data/secret.key"), "path": "/in", "type": "FILE"}]
    )


def test_link_out_of_the_root(gateway: Gateway) -> None:
    (gateway.files / "link").symlink_to("/etc")
    assert refused(gateway, inputs=[{"url": gateway.url("link/passwd"), "path": "/in", "type": "FILE"}])


def test_s3_is_said_to_be_missing(gateway: Gateway) -> None:
    words = refused(gateway, inputs=[{"url": "s3://bucket/key", "path": "/in", "type": "FILE"}])
    assert "s3://" in words
    assert "s3://" in refused(gateway, outputs=[output("/out", "s3://bucket/key")])


def test_missing_image(gateway: Gateway) -> None:
    task = gateway.run({"image": "tesgate-test/absent:1", "command": ["true"]})
    if gateway.runtime == "bubblewrap":
        assert task["state"] == "COMPLETE" and "image" in said(task)
    else:
        assert (task["state"], task["logs"][-1]["logs"]) == ("SYSTEM_ERROR", [])
        assert "tesgate-test/absent:1" in said(task)


# -- how executors end -----------------------------------------------------------------------------------------


def test_exit_code(gateway: Gateway) -> None:
    task = gateway.run(sh("echo before; exit 3"), sh("echo never"))
    assert (task["state"], [log["exit_code"] for log in logs(task)]) == ("EXECUTOR_ERROR", [3])
    assert logs(task)[0]["stdout"] == "before\n" and "exited with 3" in said(task)


def test_killed_by_a_signal(gateway: Gateway) -> None:
    task = gateway.run(sh("kill -SEGV $$"))
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 139)


def test_ignore_error(gateway: Gateway) -> None:
    task = gateway.run(sh("exit 5", ignore_error=True), sh("echo on"))
    assert (task["state"], [log["exit_code"] for log in logs(task)]) == ("COMPLETE", [5, 0])


def test_command_missing(gateway: Gateway) -> None:
    task = gateway.run({"image": BUSYBOX, "command": ["no-such-command"]})
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 127)
    assert "no-such-command" in said(task)


def test_command_not_executable(gateway: Gateway) -> None:
    task = gateway.run({"image": BUSYBOX, "command": ["/in/data"]}, inputs=[{"path": "/in/data", "content": "x"}])
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 126), logs(task)


def test_out_of_memory(gateway: Gateway) -> None:
    # Asked first: where nothing holds the limit, the command would take all the memory of the machine.
    before = said(gateway.run(sh("true"), resources={"ram_gb": 0.05}))
    if "are not held" in before and "memory" in before:
        pytest.skip("bubblewrap holds no memory limit here: " + before)
    task = gateway.run(sh("x=0123456789; while true; do x=$x$x; done"), resources={"ram_gb": 0.05})
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 137), (said(task), logs(task))
    assert "more memory than its limit" in said(task)


def test_missing_output_is_noted(gateway: Gateway) -> None:
    task = gateway.run(
        sh("true"),
        outputs=[
            output("/o/absent", gateway.url("absent")),
            output("/o/*.none", gateway.url("none"), path_prefix="/o"),
        ],
    )
    assert task["state"] == "COMPLETE"
    assert "/o/absent" in said(task) and not (gateway.files / "absent").exists()


def test_outputs_after_executor_error(gateway: Gateway) -> None:
    """Also where one of them cannot be stored: the command's error stays the verdict."""
    gateway.write("in the way", "a file")
    task = gateway.run(
        sh("echo kept > /o/x; exit 1"),
        outputs=[output("/o/x", gateway.url("failed/x"))],
    )
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 1)
    assert gateway.read("failed/x") == "kept\n"
    task = gateway.run(sh("echo lost > /o/x; exit 1"), outputs=[output("/o/x", gateway.url("in the way/x"))])
    assert (task["state"], logs(task)[0]["exit_code"]) == ("EXECUTOR_ERROR", 1)
    assert "leads through a file" in said(task)


# -- cancel ----------------------------------------------------------------------------------------------------


def test_cancel_while_running(gateway: Gateway) -> None:
    task_id = gateway.submit(
        {
            "executors": [sh("echo begun; trap '' TERM; while true; do sleep 0.2; done"), sh("echo never")],
            "outputs": [output("/o", gateway.url("cancelled"))],
        }
    )
    wait_for("the command to begin", lambda: gateway.log(task_id).text == "begun\n")
    gateway.cancel(task_id)
    task = gateway.wait(task_id, "CANCELED", seconds=15)
    gateway.cancel(task_id)
    assert gateway.state(task_id) == "CANCELED"
    assert len(task["logs"]) == 1 and len(task["logs"][0]["logs"]) <= 1
    assert not (gateway.files / "cancelled").exists()
    gateway.assert_nothing_left()


def test_cancel_while_queued(gateway: Gateway) -> None:
    """All room is taken: the task waits, says why, and is CANCELED at once."""
    big = gateway.submit({"executors": [sh("sleep 60")], "resources": {"cpu_cores": 16}})
    gateway.wait(big, "RUNNING")
    second = gateway.submit({"executors": [sh("true")], "resources": {"cpu_cores": 16}})
    wait_for("the reason", lambda: "busy" in said(gateway.get(second)))
    assert gateway.state(second) == "QUEUED"
    gateway.cancel(second)
    task = gateway.get(second)
    assert task["state"] == "CANCELED" and len(task["logs"]) == 1
    gateway.cancel(big)
    gateway.wait(big, "CANCELED")


def test_cancel_right_after_post(gateway: Gateway) -> None:
    ids = []
    for pause in (0, 0, 0.02, 0.05, 0.1, 0.2):
        ids.append(gateway.submit({"executors": [sh("sleep 60")]}))
        time.sleep(pause)  # any moment is a good one
        gateway.cancel(ids[-1])
    for task_id in ids:
        task = gateway.wait(task_id, "CANCELED", seconds=20)
        assert len(task["logs"]) == 1
    gateway.assert_nothing_left()


# -- logs ------------------------------------------------------------------------------------------------------


def test_logs_while_it_runs_and_by_range(gateway: Gateway) -> None:
    task_id = gateway.submit({"executors": [sh("echo first line; echo to stderr >&2; sleep 3; echo last line")]})
    wait_for("the first line", lambda: gateway.log(task_id).text == "first line\n")
    assert gateway.state(task_id) == "RUNNING"
    assert gateway.get(task_id)["logs"][0]["logs"] == []  # executors stand there when they have ended
    gateway.wait(task_id, "COMPLETE")
    wait_for("the whole log", lambda: gateway.log(task_id).text == "first line\nlast line\n")
    assert gateway.log(task_id, "stderr").text == "to stderr\n"
    part = gateway.log(task_id, range="bytes=6-9")
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "line", "bytes 6-9/21")
    assert gateway.log(task_id, range="bytes=-5").text == "line\n"
    assert gateway.log(task_id, range="bytes=21-").status_code == 416
    assert gateway.log(task_id, executor=1).status_code == 404


def test_a_long_log(gateway: Gateway) -> None:
    """50 MB: whole over the extension route, its tail in the task."""
    task = gateway.run(
        sh("yes 0123456789abcdef0123456789abcdef0123456789abcdef | head -c 50000000; echo; echo the end")
    )
    assert task["state"] == "COMPLETE"
    tail = logs(task)[0]["stdout"]
    assert tail.endswith("\nthe end\n") and len(tail) <= 10_240
    wait_for(
        "the whole log",
        lambda: gateway.log(task["id"], range="bytes=-8").headers.get("content-range", "").endswith("/50000009"),
    )
    with gateway.client.stream("GET", f"/tasks/{task['id']}/logs/1/0/stdout") as whole:
        assert sum(len(piece) for piece in whole.iter_bytes(1 << 20)) == 50_000_009


# -- the system's own faults -----------------------------------------------------------------------------------


def test_a_container_taken_away_is_a_further_attempt(gateway: Gateway) -> None:
    """docker rm -f, or kill -9 of the sandbox, under a running task: the system's fault, and visible in logs[]."""
    (gateway.files / "again").mkdir()
    task_id = gateway.submit(
        {
            "executors": [sh("echo begun; [ -e /in/second ] || sleep 60")],
            "inputs": [{"url": gateway.path("again"), "path": "/in", "type": "DIRECTORY"}],
        }
    )
    wait_for("the command to begin", lambda: gateway.log(task_id).text == "begun\n")
    gateway.write("again/second", "")
    if gateway.runtime == "docker":
        (name,) = [name for name in gateway.containers() if task_id in name]
        assert engine_call(gateway.socket, "DELETE", f"/containers/{name}?force=1")[0] == 204
    else:
        (outer,) = [psutil.Process(int(name)) for name in gateway.containers() if name.isdigit()]
        for process in [*outer.children(recursive=True), outer]:
            with contextlib.suppress(psutil.NoSuchProcess):  # it went with another
                process.kill()
    task = gateway.wait(task_id)
    assert task["state"] == "COMPLETE", task
    assert len(task["logs"]) == 2
    assert "no result" in " ".join(task["logs"][0]["system_logs"])
    assert task["logs"][1]["logs"][0]["stdout"] == "begun\n"


def test_metadata_of_an_executor(gateway: Gateway) -> None:
    task = gateway.run(sh("x=$(head -c 20000000 /dev/zero | tr '\\0' a); sleep 0.3"))
    metadata = task["logs"][0]["metadata"]
    assert int(metadata["executor.0.max_rss_bytes"]) > 1_000_000
    assert float(metadata["executor.0.wall_seconds"]) >= 0.3
    assert all(isinstance(value, str) for value in metadata.values())
