"""What every runtime must do, on the real thing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path

import anyio
import pytest

from tesgate.runner.exec import binary
from tesgate.runner.plan import Limits
from tesgate.runner.runtime.base import CONTROL_TARGET, EXEC_TARGET, Bind, StepRefused, StepSpec
from tests.backends.runtime.conftest import House, next_name, until


async def test_probe_tells_what_is_there(house: House) -> None:
    facts = await house.runtime.probe()
    assert facts.name == ("bubblewrap" if house.kind == "bubblewrap" else "docker")
    assert facts.version
    assert facts.cpu_cores
    assert facts.ram_bytes
    assert facts.notes
    assert all(note.endswith(".") for note in facts.notes)


async def test_runs_argv_and_tells_the_exit_code(house: House) -> None:
    status = await house.run(house.spec("echo hello > /work/out; exit 7"))
    assert (status.found, status.running, status.started) == (True, False, True)
    assert status.exit_code == 7
    assert not status.oom_killed
    assert house.out() == "hello\n"


async def test_is_started_once_however_often_it_is_asked(house: House) -> None:
    spec = house.spec("echo x >> /work/out; while [ ! -e /work/go ]; do sleep 0.05; done")
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(house.runtime.start, spec)
    again = house.another()
    await again.start(spec)
    assert (await again.inspect(spec.name)).running
    (house.attempt / "rw/work/go").touch()
    assert (await house.end(spec.name)).exit_code == 0
    await house.runtime.start(spec)
    await again.start(spec)
    status = await again.inspect(spec.name)
    assert (status.running, status.exit_code) == (False, 0)
    assert house.out() == "x\n"
    await again.aclose()


async def test_what_is_not_there_is_said_and_is_no_error(house: House) -> None:
    name = house.prefix + "nothing"
    status = await house.runtime.inspect(name)
    assert (status.found, status.running, status.started) == (False, False, False)
    await house.runtime.stop(name, 1.0)
    await house.runtime.remove(name)
    await house.runtime.remove(name)
    assert await house.runtime.names(house.prefix) == []


async def test_stop_is_polite_first(house: House) -> None:
    spec = house.spec("trap 'echo bye > /work/out; exit 5' TERM; touch /work/ready; while :; do sleep 0.05; done")
    await house.runtime.start(spec)
    await house.appears("ready")
    with anyio.fail_after(60):
        await house.runtime.stop(spec.name, 600.0)
    status = await house.runtime.inspect(spec.name)
    assert (status.running, status.exit_code) == (False, 5)
    assert house.out() == "bye\n"
    await house.runtime.stop(spec.name, 1.0)


async def test_stop_kills_what_does_not_listen_and_all_its_children(house: House) -> None:
    script = "trap '' TERM; (while :; do date +%s%N > /work/beat; sleep 0.05; done) & touch /work/ready; wait"
    spec = house.spec(script)
    await house.runtime.start(spec)
    await house.appears("ready")
    await house.appears("beat")
    await house.runtime.stop(spec.name, 0.0)
    status = await house.runtime.inspect(spec.name)
    assert (status.running, status.exit_code) == (False, 137)
    last = house.out("beat")
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        assert house.out("beat") == last
        await anyio.sleep(0.05)


async def test_remove_kills_and_leaves_nothing(house: House) -> None:
    spec = house.spec("touch /work/ready; while :; do sleep 1; done", limits=Limits(ram_bytes=64 << 20))
    await house.runtime.start(spec)
    await house.appears("ready")
    assert await house.runtime.names(house.prefix) == [spec.name]
    await house.runtime.remove(spec.name)
    assert not (await house.runtime.inspect(spec.name)).found
    assert await house.runtime.names(house.prefix) == []
    left = [path for path, _, _ in os.walk("/sys/fs/cgroup") if spec.name in path]
    assert left == []


async def test_ended_wakes(house: House) -> None:
    spec = house.spec("while [ ! -e /work/go ]; do sleep 0.05; done")
    ready, heard = anyio.Event(), []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(next_name, house.runtime, spec.name, ready, heard)
            await ready.wait()
            await house.runtime.start(spec)
            (house.attempt / "rw/work/go").touch()
    assert heard[0] == ""
    assert heard[-1] == spec.name
    assert (await house.end(spec.name)).exit_code == 0


async def test_ended_wakes_for_steps_of_an_earlier_agent(house: House) -> None:
    spec = house.spec("while [ ! -e /work/go ]; do sleep 0.05; done")
    await house.runtime.start(spec)
    later = house.another()
    ready, heard = anyio.Event(), []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(next_name, later, spec.name, ready, heard)
            await ready.wait()
            (house.attempt / "rw/work/go").touch()
    assert spec.name in heard
    await later.aclose()


async def test_a_cancelled_listener_ends_at_once(house: House) -> None:
    ready, heard = anyio.Event(), []
    async with anyio.create_task_group() as group:
        group.start_soon(next_name, house.runtime, "never", ready, heard)
        await ready.wait()
        group.cancel_scope.cancel()


async def test_steps_share_volumes_and_private_tmp_is_writable(house: House) -> None:
    assert (
        await house.run(house.spec("echo one > /work/shared; echo t > /tmp/mine && cat /tmp/mine > /work/out"))
    ).exit_code == 0
    assert house.out() == "t\n"
    assert not Path("/tmp/mine").exists()
    assert (await house.run(house.spec("cat /work/shared /work/shared > /work/out", step=1))).exit_code == 0
    assert house.out() == "one\none\n"


async def test_read_only_binds_are_read_only(house: House) -> None:
    given = house.attempt / "ro" / "in.txt"
    given.parent.mkdir()
    given.write_text("given")
    os.chmod(given, 0o666)
    spec = house.spec(
        "cat /data/in.txt > /work/out; echo bad > /data/in.txt; rm -f /data/in.txt; touch /data/x",
        binds=[Bind(str(given.parent), "/data", True), Bind(str(given), "/single/in.txt", True)],
    )
    await house.run(spec)
    assert house.out() == "given"
    assert given.read_text() == "given"
    assert os.listdir(given.parent) == ["in.txt"]


ODD = ["a:b", "c,d", "with space", "quote'\"q", "ünïcödé", "$(touch x)", "new\nline", "-v", "back\\slash", "a=b"]


async def test_odd_characters_in_paths(house: House) -> None:
    binds = []
    for odd in ODD:
        directory = house.attempt / "ro" / odd
        directory.mkdir(parents=True)
        (directory / "f").write_text(odd)
        binds.append(Bind(str(directory), "/odd/" + odd, True))
    script = 'for f in /odd/*/f /odd/-v/f; do cat "$f"; echo; done > /work/out'
    status = await house.run(house.spec(script, binds=binds))
    assert status.exit_code == 0
    assert sorted(house.out().split("\n")) == sorted("\n".join([*ODD, "-v", ""]).split("\n"))


async def test_environment_reaches_the_task_as_it_is(house: House) -> None:
    env = {
        "PLAIN": "x",
        "EMPTY": "",
        "LINES": "a\nb",
        "QUOTES": "'\"`$(id)`",
        "EQUALS": "a=b=c",
        "UNICODE": "ü",
        "LD_PRELOAD": "/nowhere/evil.so",
        "odd.name-1": "dots",
    }
    status = await house.run(
        house.spec(argv=["/bin/busybox", "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ > /work/out; true"], env=env)
    )
    assert status.exit_code == 0
    out = "\n" + house.out()
    for key, value in env.items():
        assert f"\n{key}={value}\n" in out
    assert "TESGATE_STEP" not in out


async def test_arguments_reach_the_task_as_they_are(house: House) -> None:
    odd = [
        "; touch /work/evil",
        "$(touch /work/evil)",
        "`id`",
        "--privileged",
        "-v",
        "/:/host",
        "{{.Id}}",
        "",
        "a\nb",
        "'\"",
        "ü",
    ]
    argv = ["/bin/busybox", "sh", "-c", 'for a in "$@"; do printf "%s\\0" "$a"; done > /work/out', "sh", *odd]
    assert (await house.run(house.spec(argv=argv))).exit_code == 0
    assert house.out().split("\0")[:-1] == odd
    assert not (house.attempt / "rw/work/evil").exists()


async def test_out_of_memory_is_told(house: House) -> None:
    if not (await house.runtime.probe()).memory_limit:
        pytest.skip("no memory limits here")
    # The shell lives on, as exec does: the kernel's count tells, not the first process's fate.
    spec = house.spec("/bin/busybox tail /dev/zero; echo $? > /work/out", limits=Limits(ram_bytes=32 << 20))
    status = await house.run(spec)
    assert house.out() == "137\n"
    # Podman does not tell; exec itself looks at the kernel's count.
    assert status.oom_killed or house.kind == "podman"


async def test_processes_are_limited(house: House) -> None:
    if not (await house.runtime.probe()).pids_limit:
        pytest.skip("no process limits here")
    script = "i=0; while [ $i -lt 60 ]; do sleep 20 & i=$((i+1)); done; touch /work/all"
    await house.run(house.spec(script, limits=Limits(pids=12)))
    assert not (house.attempt / "rw/work/all").exists()


async def test_the_cpu_limit_is_held(house: House) -> None:
    if not (await house.runtime.probe()).cpu_limit:
        pytest.skip("no CPU limits here")
    # A fifth of a core for a whole core's work: user and system time of the loop stay far below the wall clock.
    script = "s=$(date +%s); while [ $(($(date +%s)-s)) -lt 3 ]; do :; done; cat /proc/$$/stat > /work/out"
    await house.run(house.spec(script, limits=Limits(cpu_cores=0.2)))
    fields = house.out().rsplit(")", 1)[1].split()
    ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
    assert ticks / os.sysconf("SC_CLK_TCK") < 1.8


async def test_no_network_unless_given(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        status = await house.run(
            house.spec(
                f"cat /proc/net/dev > /work/out; /bin/busybox nc -w 2 127.0.0.1 {port} </dev/null", network="none"
            )
        )
    names = [line.split(":")[0].strip() for line in house.out().splitlines()[2:]]
    assert "lo" in names
    assert not [name for name in names if name.startswith(("eth", "en"))]
    assert status.exit_code != 0


async def test_no_new_privileges_and_few_capabilities(house: House) -> None:
    await house.run(house.spec("cat /proc/self/status > /work/out"))
    found = dict(line.split(":\t", 1) for line in house.out().splitlines() if ":\t" in line)
    assert found["NoNewPrivs"] == "1"
    assert found["CapInh"] == "0" * 16
    # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID, or none
    assert int(found["CapBnd"], 16) & ~0b1111_1011 == 0


async def test_the_kernels_settings_cannot_be_written(house: House) -> None:
    before = Path("/proc/sys/kernel/core_pattern").read_bytes()
    script = "for f in sys/kernel/core_pattern sys/vm/drop_caches sysrq-trigger; do"
    script += " echo 1 > /proc/$f && echo $f >> /work/bad; done; touch /work/out"
    await house.run(house.spec(script))
    assert house.out() == ""
    assert not (house.attempt / "rw/work/bad").exists()
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == before


async def test_the_hosts_files_and_processes_are_not_there(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    await house.run(
        house.spec(
            f"ls {secret} /var/run/docker.sock /root/.ssh /home/* > /work/out; ls -d /proc/[0-9]* | wc -l >> /work/out"
        )
    )
    assert "secret" not in house.out()
    assert "docker.sock" not in house.out()
    assert int(house.out().split()[-1]) < 6


@pytest.mark.parametrize("source", ["link", "link/inner", "missing"])
async def test_sources_below_the_attempt_must_not_be_links(house: House, tmp_path: Path, source: str) -> None:
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (house.attempt / "rw").mkdir()
    (house.attempt / "rw" / "link").symlink_to(outside)
    spec = house.spec("true", binds=[Bind(str(house.attempt / "rw" / source), "/mnt/x")])
    with pytest.raises(StepRefused, match="cannot be mounted"):
        await house.runtime.start(spec)


@pytest.mark.parametrize("target", ["/", "relative", "/a/../b", "/nul\0"])
async def test_targets_that_cannot_be(house: House, target: str) -> None:
    (house.attempt / "rw/work").mkdir(parents=True)
    with pytest.raises(StepRefused):
        await house.runtime.start(house.spec("true", binds=[Bind(str(house.attempt / "rw/work"), target)]))


async def test_a_command_that_is_missing_is_refused(house: House) -> None:
    with pytest.raises(StepRefused) as caught:
        await house.runtime.start(house.spec(argv=["/no/such/command"]))
    assert "/no/such/command" in caught.value.sentence
    assert caught.value.sentence.endswith(".")


async def test_a_command_that_is_too_long_is_refused(house: House) -> None:
    with pytest.raises(StepRefused, match="too long"):
        await house.runtime.start(house.spec(argv=["/bin/busybox", "echo", "x" * 300_000]))


async def test_much_environment(house: House) -> None:
    env = {f"VARIABLE_{number}": "x" * 100 for number in range(2000)}
    assert (await house.run(house.spec("echo $VARIABLE_1999 > /work/out", env=env))).exit_code == 0
    assert house.out() == "x" * 100 + "\n"


@pytest.mark.parametrize("name", ["../up", "a/b", "", "a b", "--rm"])
async def test_names_that_cannot_be(house: House, name: str) -> None:
    spec = house.spec("true")
    spec.name = name
    with pytest.raises(StepRefused):
        await house.runtime.start(spec)


# -- through exec


def exec_spec(house: House, options: list[str], argv: list[str], **more: object) -> StepSpec:
    program = house.attempt.parent.parent / "tesgate-exec"
    if not program.exists():
        shutil.copy(binary(), program)
        os.chmod(program, 0o755)
    control = house.attempt / "steps" / "0"
    control.mkdir(parents=True, exist_ok=True)
    os.chmod(control, 0o777)
    binds = [Bind(str(program), EXEC_TARGET, True), Bind(str(control), CONTROL_TARGET)]
    full = [EXEC_TARGET, "run", "--control", CONTROL_TARGET, *options, "--", *argv]
    return house.spec(argv=full, binds=binds, **more)


async def result_of(house: House) -> dict[str, object]:
    path = house.attempt / "steps/0/result"

    async def there() -> bool:
        return path.exists()

    await until(there, 60.0)
    found: dict[str, object] = json.loads(path.read_text())
    return found


async def test_exec_writes_the_result(house: House) -> None:
    spec = exec_spec(house, ["--workdir", "/work/new"], ["/bin/busybox", "sh", "-c", "pwd; echo no >&2; exit 3"])
    await house.runtime.start(spec)
    result = await result_of(house)
    assert (result["exit_code"], result["error"], result["signal"]) == (3, None, None)
    assert (house.attempt / "steps/0/stdout").read_text() == "/work/new\n"
    assert (house.attempt / "steps/0/stderr").read_text() == "no\n"
    assert (await house.end(spec.name)).exit_code == 3


async def test_exec_tells_a_missing_command(house: House) -> None:
    await house.runtime.start(exec_spec(house, [], ["no-such-command"]))
    result = await result_of(house)
    assert (result["exit_code"], result["error"]) == (127, "exec")


async def test_exec_outlives_an_out_of_memory_kill(house: House) -> None:
    if not (await house.runtime.probe()).memory_limit:
        pytest.skip("no memory limits here")
    spec = exec_spec(house, [], ["/bin/busybox", "tail", "/dev/zero"], limits=Limits(ram_bytes=32 << 20))
    await house.runtime.start(spec)
    result = await result_of(house)
    assert result["signal"] == 9 or result["exit_code"] == 137
    assert result["oom_killed"] or (await house.end(spec.name)).oom_killed


async def test_stop_reaches_the_command_through_exec(house: House) -> None:
    script = "trap 'echo bye > /work/out; exit 4' TERM; touch /work/ready; while :; do sleep 0.05; done"
    spec = exec_spec(house, ["--grace-ms", "20000"], ["/bin/busybox", "sh", "-c", script])
    await house.runtime.start(spec)
    await house.appears("ready")
    await house.runtime.stop(spec.name, 20.0)
    result = await result_of(house)
    assert result["exit_code"] == 4
    assert house.out() == "bye\n"
