"""What needs no engine: tars that lie, cgroup trees of other hosts, the create call."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from tesgate.runner.plan import Limits
from tesgate.runner.runtime.archive import UnsafePath, extract, pack
from tesgate.runner.runtime.base import RuntimeFacts, StepRefused, StepSpec, check_spec, default_home
from tesgate.runner.runtime.cgroup import Cgroups
from tesgate.runner.runtime.containers import ContainerSettings, container_body
from tesgate.runner.runtime.facts import engine_facts
from tesgate.runner.runtime.processes import Process
from tesgate.runner.runtime.sandbox import SandboxSettings, sandbox_arguments
from tesgate.runner.runtime.stepdir import StepDirectory
from tesgate.runner.runtime.steps import Steps


def member(
    name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    info.uid, info.gid = os.getuid(), os.getgid()
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return io.BytesIO(out.getvalue())


def test_tars_that_lie(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("whole")
    stream = tar(
        member("d", tarfile.DIRTYPE, mode=0o755),
        member("d/../../outside/victim", content=b"bad"),
        member("../outside/victim", content=b"bad"),
        member("/etc/tesgate-bad", content=b"fine, but only below the root"),
        member("d/link", tarfile.SYMTYPE, linkname=str(outside)),
        member("d/link/victim", content=b"bad"),
        member("d/hard", tarfile.LNKTYPE, linkname="d/link/victim"),
        member("d/hard2", tarfile.LNKTYPE, linkname="../../outside/victim"),
        member("d/device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("d/suid", content=b"x", mode=0o6777),
        member("d/" + "x/" * 200 + "deep", content=b"x"),
        member("d/good", content=b"good"),
    )
    notes = extract(stream, str(root), "/data/d")
    assert (outside / "victim").read_text() == "whole"
    assert sorted(os.listdir(outside)) == ["victim"]
    assert not Path("/etc/tesgate-bad").exists()
    assert (root / "data/d/good").read_text() == "good"
    assert stat.S_IMODE((root / "data/d/suid").stat().st_mode) == 0o777
    assert not (root / "data/d/device").exists()
    assert len(notes) == 7, notes


def test_a_tar_never_replaces_a_directory_or_leaves_through_the_root(tmp_path: Path) -> None:
    (tmp_path / "data" / "d").mkdir(parents=True)
    notes = extract(tar(member("d", content=b"x")), str(tmp_path), "/data/d")
    assert (tmp_path / "data/d").is_dir()
    assert "replace a directory" in notes[0]
    for target in ("/", "", "/a/../b", "a\0b"):
        with pytest.raises(UnsafePath):
            extract(tar(member("d", content=b"x")), str(tmp_path), target)


def test_what_is_packed_is_what_is_extracted(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "a/b").mkdir(parents=True)
    (one / "a/b/file").write_bytes(os.urandom(700_001))
    (one / "a/ü\udcff").write_text("odd")
    (one / "a/link").symlink_to("b/file")
    (one / "other").write_text("not listed")
    two.mkdir()
    stream = io.BytesIO(b"".join(pack(str(one), ["/a", "/missing"])))
    assert extract(stream, str(two), "/a") == []
    assert (two / "a/b/file").read_bytes() == (one / "a/b/file").read_bytes()
    assert (two / "a/ü\udcff").read_text() == "odd"
    assert os.readlink(two / "a/link") == "b/file"
    assert os.listdir(two) == ["a"]
    (one / "door").symlink_to("/etc")
    with pytest.raises(UnsafePath):
        list(pack(str(one), ["/door/passwd"]))


def cgroup_tree(tmp_path: Path, *, procs: str, active: str) -> tuple[Path, Path]:
    mounts, proc = tmp_path / "cgroup", tmp_path / "proc"
    own = mounts / "system.slice/agent.service"
    own.mkdir(parents=True)
    proc.mkdir()
    (mounts / "cgroup.controllers").write_text("cpu memory pids")
    (proc / "cgroup").write_text("0::/system.slice/agent.service\n")
    (own / "cgroup.controllers").write_text("cpu memory pids\n")
    (own / "cgroup.subtree_control").write_text(active)
    (own / "cgroup.procs").write_text(procs)
    return mounts, proc


def test_cgroup_v2_with_delegation(tmp_path: Path) -> None:
    mounts, proc = cgroup_tree(tmp_path, procs="1\n", active="cpu memory pids")
    cgroups = Cgroups(mounts=str(mounts), proc=str(proc))
    assert cgroups.version == 2
    assert all(cgroups.holds(one) for one in ("cpu", "memory", "pids"))
    step = mounts / "system.slice/agent.service/tesgate-s"
    step.mkdir()
    for file in ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "pids.max", "cgroup.procs"):
        (step / file).touch()
    assert cgroups.create("s", Limits(cpu_cores=1.5, ram_bytes=1000, pids=7)) == []
    assert (step / "memory.max").read_text() == "1000"
    assert (step / "memory.swap.max").read_text() == "0"
    assert (step / "cpu.max").read_text() == "150000 100000"
    assert (step / "pids.max").read_text() == "7"
    cgroups.add("s", 42)
    assert (step / "cgroup.procs").read_text() == "42"
    assert not cgroups.oom_killed("s")
    (step / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert cgroups.oom_killed("s")


def test_forgotten_cgroups_are_swept(tmp_path: Path) -> None:
    mounts, proc = cgroup_tree(tmp_path, procs="1\n", active="cpu memory pids")
    cgroups = Cgroups(mounts=str(mounts), proc=str(proc))
    base = mounts / "system.slice/agent.service"
    for name in ("tesgate-old", "tesgate-known", "tesgate-new", "tesgate-agent", "tesgate-full", "other"):
        (base / name).mkdir()
    (base / "tesgate-full" / "process").touch()
    for path in base.iterdir():
        if path.name != "tesgate-new":
            os.utime(path, (1, 1))
    cgroups.sweep(["known"])
    left = sorted(path.name for path in base.iterdir() if path.is_dir())
    assert left == ["other", "tesgate-agent", "tesgate-full", "tesgate-known", "tesgate-new"]


def test_cgroup_v2_without_delegation_says_why(tmp_path: Path) -> None:
    mounts, proc = cgroup_tree(tmp_path, procs="1\n2\n", active="")
    # A file takes any write, the kernel would not: make it refuse as it does.
    (mounts / "system.slice/agent.service/cgroup.subtree_control").unlink()
    cgroups = Cgroups(mounts=str(mounts), proc=str(proc))
    assert not cgroups.holds("memory")
    (note,) = cgroups.create("s", Limits(cpu_cores=1.0, ram_bytes=1, pids=3))
    assert note.startswith("The limits on memory, CPU, processes are not held: ")
    assert "Delegate=yes" in note


def spec_of(**more: object) -> StepSpec:
    given: dict[str, object] = {
        "name": "tg-x-0",
        "image": "i",
        "argv": ["true"],
        "root": "/r/rw",
        "control": "/r/steps/0",
    }
    return StepSpec(**{**given, **more})  # type: ignore[arg-type]


def test_limits_that_the_engine_does_not_hold_are_said() -> None:
    spec = spec_of(limits=Limits(cpu_cores=1, ram_bytes=1 << 30, disk_bytes=5, pids=5))
    body, notes = container_body(spec, None, RuntimeFacts("docker", "1"), ContainerSettings())
    assert len(notes) == 4
    assert not {"NanoCpus", "Memory", "PidsLimit", "StorageOpt"} & set(body["HostConfig"])
    able = RuntimeFacts(
        "docker", "1", cpu_cores=8.0, cpu_limit=True, memory_limit=True, pids_limit=True, disk_limit=True
    )
    body, notes = container_body(spec, None, able, ContainerSettings())
    assert notes == []
    assert body["HostConfig"]["StorageOpt"] == {"size": str(1 << 20)}
    assert (body["Entrypoint"], body["Cmd"]) == (["true"], [])


@pytest.mark.parametrize(("namespace", "inside"), [("", "0:0"), ("host", "0:0"), ("keep-id", "1000:1000")])
def test_the_user_of_a_rootless_engine_in_each_namespace(namespace: str, inside: str) -> None:
    engine = RuntimeFacts("docker", "1", rootless=True, root_uid=1000)
    settings = ContainerSettings(user_namespace=namespace)
    assert container_body(spec_of(user="1000:1000"), None, engine, settings)[0]["User"] == inside
    assert container_body(spec_of(user="1001:1001"), None, engine, settings)[0]["User"] == "1001:1001"


def test_disk_quota_is_seen_by_the_driver() -> None:
    assert engine_facts("docker", {}, {"Driver": "btrfs"}).disk_limit
    overlay = {"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}
    assert not engine_facts("docker", {}, overlay).disk_limit


@pytest.mark.parametrize("env", [{"": "x"}, {"a=b": "x"}, {"a": "x\0"}, {"a\0": "x"}])
def test_environments_that_cannot_be(env: dict[str, str]) -> None:
    with pytest.raises(StepRefused):
        check_spec(spec_of(env=env))


def test_home_for_a_user_without_an_entry() -> None:
    assert default_home(True) == "/tmp"
    assert default_home(False) is None


def test_a_process_is_known_by_its_start() -> None:
    own = Process.of(os.getpid())
    assert own is not None
    assert own.alive()
    assert not Process(own.pid, own.ticks + 1).alive()
    Process(own.pid, own.ticks + 1).send(9)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/", "/etc", "x/", ".x", "x\n", "a\0b"])
def test_a_step_directory_is_never_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a step"):
        StepDirectory(str(tmp_path), name)


def test_what_processes_claim_to_be_is_no_path(tmp_path: Path) -> None:
    """A task can start processes with any environment: none of it may become a directory that is removed."""
    state = tmp_path / "bubblewrap"
    bwrap = tmp_path / "bwrap"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", bwrap)
    steps = Steps(
        state=str(state),
        program=str(bwrap),
        disable_userns=False,
        cgroups=Cgroups(),
        settings=SandboxSettings(),
    )
    (state / "tg-x-t0-1-0").mkdir()
    (state / ".other").mkdir()
    claims = ["..", ".", "", "../..", "tg-x", "tg-x-t1-1-0/..", "a/tg-x-t1-1-0", "tg-x-t1-1-0", "tg-x-t2-1-0\n"]
    running = [subprocess.Popen([bwrap, "60"], env={"TESGATE_STEP": f"{state}/{claim}"}) for claim in claims]
    running.append(subprocess.Popen(["sleep", "60"], env={**os.environ, "TESGATE_STEP": f"{state}/tg-x-t3-1-0"}))
    try:
        # Popen returns when exec has closed its files, a moment before the kernel shows the new environment.
        while not all(Path(f"/proc/{one.pid}/environ").read_bytes() for one in running):
            time.sleep(0.01)
        assert steps.names() == ["tg-x-t0-1-0", "tg-x-t1-1-0"]
        steps.remove("tg-x-t1-1-0")
        assert running[claims.index("tg-x-t1-1-0")].wait(10) == -9
        assert running[-1].poll() is None
        assert steps.names() == ["tg-x-t0-1-0"]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_task_cannot_set_the_variable_by_which_its_sandbox_is_found(tmp_path: Path) -> None:
    spec = spec_of(env={"TESGATE_STEP": "/state/.."})
    found = sandbox_arguments(spec, SandboxSettings(), network=False, etc=str(tmp_path), disable_userns=False)
    last = max(at for at, word in enumerate(found) if word == "TESGATE_STEP")
    assert found[last - 1] == "--unsetenv"
