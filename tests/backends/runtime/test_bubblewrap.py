"""What is bubblewrap's own: deaths of the agent at every moment, ordinary users, the host behind the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.plan import Limits
from tesgate.runner.runtime.base import Bind, RuntimeUnavailable, StepRefused
from tesgate.runner.runtime.bubblewrap import BubblewrapRuntime
from tesgate.runner.runtime.processes import find_by_environment
from tesgate.runner.runtime.sandbox import SandboxSettings
from tests.backends.runtime.conftest import House, until

pytestmark = pytest.mark.bed("bubblewrap")

REPOSITORY = Path(__file__).resolve().parents[3]

AGENT = """
import asyncio, json, os, signal, sys
from tesgate.runner.runtime.base import Bind, Limits, StepSpec
from tesgate.runner.runtime.bubblewrap import BubblewrapRuntime
from tesgate.runner.runtime.stepdir import StepDirectory

state, moment, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
given["binds"] = [Bind(**bind) for bind in given["binds"]]
given["limits"] = Limits(**given["limits"])

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "record":      # after the fork, before the step counts as started
    StepDirectory.write_record = die
elif moment == "gate":      # it counts as started, but does not run yet
    StepDirectory.open_gate = die
elif moment == "make":      # the directory is half made
    StepDirectory.gate = die

async def main():
    runtime = BubblewrapRuntime(state=state)
    notes = await runtime.start(StepSpec(**given))
    print(json.dumps(notes), flush=True)
    if moment == "running":
        die()
    while (await runtime.inspect(given["name"])).running:
        await asyncio.sleep(0.01)
    print((await runtime.inspect(given["name"])).exit_code)
    await runtime.remove(given["name"])
    await runtime.aclose()

asyncio.run(main())
"""


def agent(house: House, tmp_path: Path, spec: Any, moment: str, *prefix: str, python: str = sys.executable) -> Any:
    given = {key: value for key, value in vars(spec).items() if key not in ("binds", "limits")}
    given["binds"] = [vars(bind) for bind in spec.binds]
    given["limits"] = vars(spec.limits)
    path = os.pathsep.join([str(REPOSITORY / "src"), *(entry for entry in sys.path if "site-packages" in entry)])
    return subprocess.run(
        [*prefix, python, "-c", AGENT, str(tmp_path / "bubblewrap"), moment, json.dumps(given)],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )


@pytest.mark.parametrize("moment", ["make", "record", "gate", "running"])
async def test_the_agent_dies_and_the_step_runs_once(sandbox_house: House, tmp_path: Path, moment: str) -> None:
    house = sandbox_house
    spec = house.spec("echo x >> /work/out; while [ ! -e /work/go ]; do sleep 0.05; done; exit 9")
    done = agent(house, tmp_path, spec, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    status = await house.runtime.inspect(spec.name)
    assert status.found
    assert status.started == (moment in ("gate", "running"))
    if moment == "running":
        assert status.running
    else:
        assert not (house.attempt / "rw/work/out").exists()
    await house.runtime.start(spec)
    assert (await house.runtime.inspect(spec.name)).running
    await house.appears("out")
    (house.attempt / "rw/work/go").touch()
    assert (await house.end(spec.name)).exit_code == 9
    assert house.out() == "x\n"
    await house.runtime.remove(spec.name)
    assert find_by_environment(f"TESGATE_STEP={tmp_path}/bubblewrap/{spec.name}", program="bwrap") == []


async def test_a_step_that_ended_while_nobody_looked(sandbox_house: House, tmp_path: Path) -> None:
    spec = sandbox_house.spec("while [ ! -e /work/go ]; do sleep 0.02; done; echo x >> /work/out; exit 9")
    agent(sandbox_house, tmp_path, spec, "running")
    (sandbox_house.attempt / "rw/work/go").touch()
    status = await sandbox_house.end(spec.name)
    assert (status.exit_code, status.error) == (9, "")
    await sandbox_house.runtime.start(spec)
    assert sandbox_house.out() == "x\n"


async def test_bwrap_itself_is_killed(sandbox_house: House, tmp_path: Path) -> None:
    spec = sandbox_house.spec("touch /work/ready; while [ ! -e /work/go ]; do sleep 0.05; done")
    await sandbox_house.runtime.start(spec)
    await sandbox_house.appears("ready")
    record = json.loads((tmp_path / "bubblewrap" / spec.name / "record").read_text())
    os.kill(record["monitor"][0], signal.SIGKILL)
    assert (await sandbox_house.runtime.inspect(spec.name)).running
    (sandbox_house.attempt / "rw/work/go").touch()
    status = await sandbox_house.end(spec.name)
    assert status.exit_code is None
    assert status.error == "Its bubblewrap process was killed."


async def test_after_a_reboot_no_pid_is_believed(sandbox_house: House, tmp_path: Path) -> None:
    spec = sandbox_house.spec("echo x >> /work/out")
    await sandbox_house.run(spec)
    path = tmp_path / "bubblewrap" / spec.name
    record = json.loads((path / "record").read_text())
    record.update(boot="another", child=[os.getpid(), 1], monitor=[os.getpid(), 1])
    (path / "record").write_text(json.dumps(record))
    (path / "status").write_text("")
    status = await sandbox_house.runtime.inspect(spec.name)
    assert (status.running, status.exit_code, status.started) == (False, None, True)
    assert "restarted" in status.error
    await sandbox_house.runtime.stop(spec.name, 0.0)
    await sandbox_house.runtime.start(spec)
    assert sandbox_house.out() == "x\n"


async def test_a_pid_that_another_process_has_is_left_alone(sandbox_house: House, tmp_path: Path) -> None:
    spec = sandbox_house.spec("exit 3")
    await sandbox_house.run(spec)
    path = tmp_path / "bubblewrap" / spec.name / "record"
    with subprocess.Popen(["sleep", "60"]) as bystander:
        record = json.loads(path.read_text())
        record.update(child=[bystander.pid, 1], monitor=[bystander.pid, 1])
        path.write_text(json.dumps(record))
        assert (await sandbox_house.runtime.inspect(spec.name)).exit_code == 3
        await sandbox_house.runtime.stop(spec.name, 0.0)
        await sandbox_house.runtime.remove(spec.name)
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_an_ordinary_user(sandbox_house: House, tmp_path: Path) -> None:
    house = sandbox_house
    spec = house.spec(
        "id -u > /work/out; id -un >> /work/out; echo hi > /top; exit 4", limits=Limits(ram_bytes=64 << 20)
    )
    for path, directories, files in os.walk(tmp_path):
        for name in [".", *directories, *files]:
            os.chown(os.path.join(path, name), 65534, 65534)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    setpriv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = agent(house, tmp_path, spec, "none", *setpriv, python="/usr/bin/python3")
    assert done.returncode == 0, done.stderr
    notes, code = done.stdout.splitlines()
    assert code == "4"
    assert "not used" in notes
    assert "The limit" in notes
    assert "not held: the agent's user may not make cgroups here" in notes
    assert house.out() == "65534\ntask\n"
    assert (house.attempt / "rw/top").read_text() == "hi\n"
    assert (house.attempt / "rw/top").stat().st_uid == 65534
    assert os.listdir(tmp_path / "bubblewrap") == []


async def test_outputs_anywhere_and_nothing_of_the_host(sandbox_house: House, tmp_path: Path) -> None:
    script = "echo a > /top; mkdir -p /data/deep /var/lib/x; echo b > /data/deep/f; echo c > /tmp/t;"
    script += " for d in /usr/x /bin/x /etc/x; do echo bad > $d && echo $d >> /work/bad; done;"
    script += (
        " ls -A / /run /home /root /var > /work/out 2>&1; cat /etc/shadow >> /work/out; which busybox >> /work/out"
    )
    await sandbox_house.run(sandbox_house.spec(script))
    root = sandbox_house.attempt / "rw"
    assert (root / "top").read_text() == "a\n"
    assert (root / "data/deep/f").read_text() == "b\n"
    assert (root / "tmp/t").read_text() == "c\n"
    assert not (root / "work/bad").exists()
    out = sandbox_house.out()
    assert "docker" not in out
    assert "root:*" not in out
    assert "root:!" not in out
    assert "busybox" in out


async def test_binds_in_and_below_system_directories(sandbox_house: House) -> None:
    given = sandbox_house.attempt / "ro" / "f"
    given.parent.mkdir()
    given.write_text("given")
    binds = [Bind(str(given), target, True) for target in ("/etc/mine.conf", "/data/a/b/f", "/tmp/f", "/run/f")]
    spec = sandbox_house.spec("cat /etc/mine.conf /data/a/b/f /tmp/f /run/f > /work/out", binds=binds)
    await sandbox_house.run(spec)
    assert sandbox_house.out() == "given" * 4
    with pytest.raises(StepRefused, match="bubblewrap refuses the step"):
        await sandbox_house.runtime.start(
            sandbox_house.spec("true", step=1, binds=[Bind(str(given), "/usr/share/tesgate/f", True)])
        )


async def test_a_link_of_an_earlier_step_is_not_followed(sandbox_house: House, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    await sandbox_house.run(
        sandbox_house.spec(f"ln -s /oldroot{outside} /data; ln -s {outside} /other; ln -s /x /file")
    )
    given = sandbox_house.attempt / "ro" / "f"
    given.parent.mkdir()
    given.write_text("given")
    for step, target in enumerate(["/data/f", "/other/f", "/file"], 1):
        with pytest.raises(StepRefused, match="Nothing can be mounted at"):
            await sandbox_house.runtime.start(
                sandbox_house.spec("true", step=step, binds=[Bind(str(given), target, True)])
            )
    assert os.listdir(outside) == []


async def test_notes_say_what_is_not_held(sandbox_house: House) -> None:
    spec = sandbox_house.spec("true", limits=Limits(disk_bytes=1), user="1234:1234", image="some/image:1")
    notes = await sandbox_house.runtime.start(spec)
    assert "The image some/image:1 is not used: bubblewrap runs the host's own programs." in notes
    assert any(note.startswith("The disk limit is not held") for note in notes)
    assert any("only shown" in note for note in notes)
    assert (await sandbox_house.end(spec.name)).exit_code == 0


async def test_secrets_in_the_environment_stand_on_no_command_line(sandbox_house: House) -> None:
    spec = sandbox_house.spec("touch /work/ready; while :; do sleep 1; done", env={"TOKEN": "very-secret-value"})
    await sandbox_house.runtime.start(spec)
    await sandbox_house.appears("ready")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        assert b"very-secret-value" not in content or b"pytest" in content


async def test_networks(sandbox_house: House, tmp_path: Path) -> None:
    with pytest.raises(StepRefused, match="network 'host'"):
        await sandbox_house.runtime.start(sandbox_house.spec("true", network="host"))
    with pytest.raises(StepRefused, match="network 'named'"):
        await sandbox_house.runtime.start(sandbox_house.spec("true", network="named"))
    settings = SandboxSettings(network="host")
    open_runtime = BubblewrapRuntime(state=str(tmp_path / "bubblewrap"), settings=settings)
    spec = sandbox_house.spec("readlink /proc/self/ns/net > /work/out", network="default")
    await open_runtime.start(spec)
    await sandbox_house.end(spec.name)
    assert sandbox_house.out().strip() == os.readlink("/proc/self/ns/net")
    await open_runtime.aclose()


async def test_directories_of_the_host_that_its_owner_shows(sandbox_house: House, tmp_path: Path) -> None:
    shown = tmp_path / "opt/tools"
    shown.mkdir(parents=True)
    (shown / "words").write_text("from the host\n")
    (tmp_path / "opt/secret").touch()
    settings = SandboxSettings(read_only=(str(shown), str(tmp_path / "gone")))
    runtime = BubblewrapRuntime(state=str(tmp_path / "bubblewrap"), settings=settings)
    script = f"cat {shown}/words > /work/out; echo bad > {shown}/words; ls {shown.parent} >> /work/out; exit 0"
    spec = sandbox_house.spec(script)
    await runtime.start(spec)
    await sandbox_house.end(spec.name)
    assert sandbox_house.out() == "from the host\ntools\n"
    assert (shown / "words").read_text() == "from the host\n"
    await runtime.aclose()


async def test_a_host_without_bubblewrap(tmp_path: Path) -> None:
    runtime = BubblewrapRuntime(state=str(tmp_path / "s"), program="/no/bwrap")
    with pytest.raises(RuntimeUnavailable, match="apt-get install bubblewrap"):
        await runtime.probe()
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\ncase $1 in --version|--help) exec /usr/bin/bwrap $1;; esac\n"
        "echo 'bwrap: Creating new namespace failed: Operation not permitted' >&2; exit 1\n"
    )
    broken.chmod(0o755)
    runtime = BubblewrapRuntime(state=str(tmp_path / "s"), program=str(broken))
    with pytest.raises(RuntimeUnavailable, match=r"cannot make a sandbox here \(bwrap: Creating .*\): .*\.$"):
        await runtime.probe()


async def test_a_bwrap_that_no_sandbox_could_execute(sandbox_house: House, tmp_path: Path) -> None:
    """As of conda, Nix or Spack: its loader lies where sandboxes see nothing."""
    shutil.copy(os.path.realpath("/bin/sh"), tmp_path / "sh")
    program = tmp_path / "bwrap"
    program.write_text(f'#!{tmp_path}/sh\nexec /usr/bin/bwrap "$@"\n')
    program.chmod(0o755)
    runtime = BubblewrapRuntime(state=str(tmp_path / "bubblewrap"), program=str(program))
    facts = await runtime.probe()
    assert not [note for note in facts.notes if "user namespaces" in note]
    await runtime.aclose()


async def test_a_trial_that_fails_in_passing_does_not_weaken_steps(sandbox_house: House, tmp_path: Path) -> None:
    """Mounts of the host go while they are bound, and user namespaces are used up: neither lasts."""
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\ncase $1 in --version|--help) exec /usr/bin/bwrap $1;; esac\n"
        f"mkdir {tmp_path}/failed 2>/dev/null && echo 'bwrap: Unable to remount recursively' >&2 && exit 1\n"
        'exec /usr/bin/bwrap "$@"\n'
    )
    program.chmod(0o755)
    runtime = BubblewrapRuntime(state=str(tmp_path / "bubblewrap"), program=str(program))
    facts = await runtime.probe()
    assert (tmp_path / "failed").is_dir()
    assert not [note for note in facts.notes if "user namespaces" in note]
    spec = sandbox_house.spec("unshare -U true && echo made > /work/out || echo refused > /work/out")
    await runtime.start(spec)
    await sandbox_house.end(spec.name)
    assert sandbox_house.out() == "refused\n"
    await runtime.aclose()


async def test_many_ends_are_all_heard(sandbox_house: House) -> None:
    heard: set[str] = set()
    ready = anyio.Event()

    async def listen() -> None:
        async for name in sandbox_house.runtime.ended():
            heard.add(name)
            ready.set()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await ready.wait()
        specs = [sandbox_house.spec("true", step=step) for step in range(8)]
        for spec in specs:
            group.start_soon(sandbox_house.runtime.start, spec)

        async def all_heard() -> bool:
            return heard >= {spec.name for spec in specs}

        await until(all_heard)
        group.cancel_scope.cancel()
