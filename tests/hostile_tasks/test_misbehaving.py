"""Executors that do not behave: they end, nothing of them lives on, and they spoil nobody's verdict but their own."""

from __future__ import annotations

import re

import psutil
import pytest

from tests.hostile_tasks.conftest import Site
from tests.hostile_tasks.words import codes, output, said, stdout
from tests.runner.gateway_fake import wait_for

FORGED = '{"wire":1,"exit_code":0,"signal":null,"error":%s}'


def _living(mark: str) -> list[int]:
    """Processes of the host with `mark` on their command line."""
    return [found.pid for found in psutil.process_iter(["cmdline"]) if mark in " ".join(found.info["cmdline"] or [])]


def test_a_forged_result_ends_the_executor_before_anything_is_stored(site: Site) -> None:
    """Nothing may change after a terminal state: not by a descriptor that a living command still holds either."""
    mark = "98761" if site.runtime == "docker" else "98762"
    script = f"""exec 3>> /work/out; echo before >&3
        printf '{FORGED % "null"}' > /.tesgate/control/r; mv /.tesgate/control/r /.tesgate/control/result
        (exec sleep {mark}) & while true; do echo after >&3; sleep 0.01; done"""
    body = site.run(script, "echo second; cat /work/out | wc -l", outputs=[output("/work/out", site.url("forged"))])
    stored = site.output("forged")
    assert body["state"] == "COMPLETE", said(body)
    assert int(stdout(body, 1).split()[1]) == len(stored.splitlines()), "the first executor ran on beside the second"
    assert not _living(mark)
    site.bench.gateway.gone_from_have(site.keys[-1])
    assert site.output("forged") == stored


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "0", '{"exit_code":1e999}', '{"exit_code":256}', '{"exit_code":true}', "[" * 60_000,
     FORGED % '"\\\\u0000\\\\ud800"', '{"exit_code":0,"end_ns":-1}', '{"exit_code":null}',
     '{"exit_code":%s}' % ("9" * 5000)],
)  # fmt: skip
def test_a_result_that_exec_cannot_have_written(sandbox: Site, content: str) -> None:
    """In particular no text of the task's choice gets into sentences that PostgreSQL would refuse to keep."""
    document = sandbox.document("")
    script = "cat /in/r > /.tesgate/control/r; mv /.tesgate/control/r /.tesgate/control/result; sleep 60"
    document["executors"][0]["command"] = ["/bin/sh", "-c", script]
    document["inputs"] = [{"content": content.replace("\\\\", "\\") or "\n", "path": "/in/r"}]
    body = sandbox.end(sandbox.submit(document))
    assert (body["state"], codes(body)) == ("EXECUTOR_ERROR", [125])
    assert "/.tesgate/control" in said(body)
    assert "\0" not in said(body)


def test_a_control_directory_full_of_traps(site: Site) -> None:
    """Directories, links and FIFOs where exec and agent write and read; a marker and a lock of the task's own."""
    secret = site.root.parent / "control-secret"
    secret.write_text("xyzzy")
    script = f"""cd /.tesgate/control; mkdir result stdout.tail .result.0; mkfifo stderr.tail
            ln -s {secret} .stdout.tail.1
        mkdir result/full; rm -f started stdout stderr; ln -s {secret} stdout; ln -s {secret} started; chmod 000 .
            echo x
        exit 7"""
    body = site.run(script)
    assert body["state"] == "EXECUTOR_ERROR", body
    assert codes(body)[0] in (7, 125)
    assert "xyzzy" not in str(body)
    assert secret.read_text() == "xyzzy"


def test_orphans_and_daemons_end_with_their_executor(site: Site) -> None:
    mark = "98763" if site.runtime == "docker" else "98764"
    script = f"""setsid sh -c 'trap "" TERM INT HUP; (trap "" TERM
            exec sleep {mark}) & exec sleep {mark}' > /dev/null 2>&1 &
        (sleep 0.2; while true; do echo late >> /work/out; sleep 0.01; done) &
        echo early > /work/out; sleep 0.5"""
    body = site.run(
        script,
        "cat /work/out | wc -l; sleep 0.3; cat /work/out | wc -l",
        outputs=[output("/work/out", site.url("orphan"))],
    )
    assert body["state"] == "COMPLETE", said(body)
    first, second = stdout(body, 1).split()
    assert first == second == str(len(site.output("orphan").splitlines()))
    wait_for(lambda: not _living(mark), "the daemons to end")


def test_processes_without_end_meet_their_limit(site: Site) -> None:
    """And the agent goes on, as does the next task."""
    script = "n=0; while [ $n -lt 200 ]; do sleep 30 & n=$((n+1)); done; echo all; exit 0"
    body = site.run(script, settings={"pids": 32})
    held = site.runtime == "docker" or not re.search(r"limits? .*not held", said(body))
    assert codes(body) != [0] or not held, (codes(body), said(body))
    assert site.run("true")["state"] == "COMPLETE"


def test_attacks_on_its_own_first_process_and_neighbours(site: Site) -> None:
    """Signals to process 1, its memory, its descriptors, ptrace, and everything that kill can reach."""
    script = """kill -9 1; kill -STOP 1; kill -SEGV 1
            cat /proc/1/environ /proc/1/mem /proc/1/fd/0 > /work/got 2>/dev/null
        wc -c < /work/got; exec 0<&- 2>&-; kill -9 -1; echo still; exit 3"""
    body = site.run(script)
    assert (body["state"], codes(body)) == ("EXECUTOR_ERROR", [3]), said(body)
    assert stdout(body).split() == ["0", "still"]


def test_privileges_are_not_to_be_had(site: Site) -> None:
    """Mounts, namespaces, devices, modules, settings of the host's kernel, set-id programs."""
    script = """cd /work; n=0
        try() { "$@" > /dev/null 2>&1 && echo "SUCCEEDED: $*"; }
        write() { test ! -e $2 || try sh -c "echo $1 > $2"; }
        try mount -t tmpfs none /mnt; try mount -o remount,rw /.tesgate/exec; try mount --bind / /mnt; try umount /proc
        try unshare -U true; try unshare -m true; try unshare -n true; try unshare -r id; try chroot / true
        try mknod disk b 254 0; try cat disk; try rm -f /.tesgate/exec; try rmdir /.tesgate/control
            try mv /work /elsewhere
        try cat /proc/kcore; try cat /proc/keys /proc/kmsg; try insmod x; try rm /in/file; try mv /in/file /in/other
        write x /proc/sys/kernel/core_pattern; write b /proc/sysrq-trigger; write 0 /proc/sys/vm/swappiness
            write x /in/file
        write x /.tesgate/exec; write max /sys/fs/cgroup/pids.max; write -1 /sys/fs/cgroup/pids/pids.max
        write 9999999999 /sys/fs/cgroup/memory/memory.limit_in_bytes; write max /sys/fs/cgroup/memory.max
        grep -E 'NoNewPrivs|CapEff' /proc/self/status"""
    body = site.run(script, volumes=["/work"], inputs=[{"content": "read only\n", "path": "/in/file"}])
    assert codes(body) == [0], said(body)
    lines = stdout(body).splitlines()
    bad = [line for line in lines if line.startswith("SUCCEEDED")]
    assert bad == []
    assert "NoNewPrivs:\t1" in lines
    (effective,) = [int(line.split()[1], 16) for line in lines if line.startswith("CapEff")]
    assert effective == (0 if site.runtime == "bubblewrap" else effective & 0xFF), hex(effective)


def test_a_log_without_end_is_capped_and_cheap(sandbox: Site) -> None:
    """100 MB and a terabyte of holes: the agent's memory stays, the workspace gets its share."""
    agent = psutil.Process(sandbox.bench.process.pid) if sandbox.bench.process else None
    assert agent is not None
    before = agent.memory_info().rss
    key = sandbox.submit(
        sandbox.document("head -c 100000000 /dev/zero >&2; truncate -s 1T /.tesgate/control/stdout; echo end"),
        log_bytes=1_000_000,
    )
    body = sandbox.end(key)
    assert body["state"] == "COMPLETE", said(body)
    assert body["snapshot"]["executors"][0]["stdout"].endswith("end\n")
    sandbox.bench.gateway.gone_from_have(key)
    assert len(sandbox.bench.gateway.log(key, 0, "stderr")) == 1_000_000
    assert len(sandbox.bench.gateway.log(key, 0, "stdout")) <= 1_000_000
    assert agent.memory_info().rss - before < 64 << 20


def test_a_task_that_wakes_the_agent_all_the_time(sandbox: Site) -> None:
    """Renames in the control directory are events for the agent: others must not wait for it."""
    key = sandbox.submit(
        sandbox.document(
            "cd /.tesgate/control; echo x > a; while test ! -e /work/go; do mv a b; mv b a; done", volumes=["/work"]
        )
    )
    wait_for(lambda: sandbox.bench.reports(key), "it to run")
    assert sandbox.run("true")["state"] == "COMPLETE"
    sandbox.bench.gateway.cancel(key)
    said_last, _ = sandbox.bench.gateway.end_of(key)
    assert said_last == "stopped"
