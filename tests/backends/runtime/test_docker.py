"""What is Docker's own: images, files of the container, adoption by name, the engine that goes away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.exec import binary
from tesgate.runner.plan import Collect, Limits
from tesgate.runner.runtime.base import (
    EngineUnavailable,
    ImageRefused,
    RegistryUnreachable,
    RuntimeUnavailable,
    StepRefused,
)
from tesgate.runner.runtime.containers import ContainerSettings
from tesgate.runner.runtime.docker import DockerRuntime
from tests.backends.runtime.conftest import House, next_name, until
from tests.backends.runtime.wire import Proxy
from tests.beds.images import BUSYBOX, DATA, FOREIGN, USER, engine_call

pytestmark = pytest.mark.bed("docker")


def inspected(docker: Any, name: str) -> dict[str, Any]:
    status, body = engine_call(docker.socket, "GET", f"/containers/{name}/json")
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    return found


async def test_start_is_two_calls(docker: Any, docker_house: House, tmp_path: Path) -> None:
    with Proxy(tmp_path / "p.sock", docker.socket) as proxy:
        runtime = DockerRuntime(identity={"tesgate.instance": docker_house.prefix}, socket="unix://" + proxy.path)
        await runtime.probe()
        await runtime.prepare(BUSYBOX, "missing")
        proxy.requests.clear()
        await runtime.prepare(BUSYBOX, "missing")
        assert proxy.requests == []
        await runtime.start(docker_house.spec("true"))
        assert [line.split("?")[0].split("/", 2)[2].split(" ")[0] for line in proxy.requests] == [
            "containers/create",
            f"containers/{docker_house.prefix}0/start",
        ]
        await runtime.aclose()


async def test_the_container_is_confined(docker: Any, docker_house: House) -> None:
    limits = Limits(cpu_cores=0.5, ram_bytes=64 << 20, disk_bytes=1 << 30, pids=77)
    spec = docker_house.spec("true", limits=limits, labels={"tesgate.task": "x"}, grace=3.2)
    notes = await docker_house.runtime.start(spec)
    found = inspected(docker, spec.name)
    host, config = found["HostConfig"], found["Config"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (
        500_000_000,
        64 << 20,
        64 << 20,
        77,
    )
    assert host["Binds"] is None
    assert host["NetworkMode"] == "none"
    assert host["LogConfig"]["Type"] == "none"
    assert not host["AutoRemove"]
    assert host["MaskedPaths"]
    assert config["Labels"] == {"tesgate.task": "x", "tesgate.instance": docker_house.prefix}
    assert config["StopTimeout"] == 4
    assert found["Image"].startswith("sha256:")
    assert any("disk limit is not held" in note for note in notes)


async def test_a_user_other_than_root_has_no_capabilities(docker: Any, docker_house: House) -> None:
    spec = docker_house.spec(
        "id -u > /work/out; id -g >> /work/out; cat /proc/self/status >> /work/out", user="4321:4322"
    )
    await docker_house.run(spec)
    assert docker_house.out().split()[:2] == ["4321", "4322"]
    assert "CapBnd:\t0000000000000000" in docker_house.out()
    for user in ("root", "1000:x", "1:2:3", "-1"):
        with pytest.raises(StepRefused, match="uid:gid"):
            await docker_house.runtime.start(docker_house.spec("true", step="u", user=user))


async def test_the_images_own_user_workdir_and_environment(docker_house: House) -> None:
    facts = await docker_house.runtime.prepare(USER, "never")
    assert (facts.user, facts.workdir, facts.env["FROM_IMAGE"]) == ("app", "/srv/app", "yes")
    await docker_house.run(
        docker_house.spec("id -u > /work/out; pwd >> /work/out; echo $FROM_IMAGE >> /work/out", image=USER)
    )
    assert docker_house.out() == "1234\n/srv/app\nyes\n"


async def test_networks(docker: Any, docker_house: House) -> None:
    spec = docker_house.spec("cat /proc/net/dev > /work/out", network="default")
    await docker_house.run(spec)
    assert "eth0" in docker_house.out()
    for name in ("container:" + spec.name, "a b", "--x", ""):
        with pytest.raises(StepRefused, match="name of a network"):
            await docker_house.runtime.start(docker_house.spec("true", step="n", network=name))
    with pytest.raises(StepRefused, match="nosuchnet"):
        await docker_house.runtime.start(docker_house.spec("true", step="m", network="nosuchnet"))


@pytest.mark.parametrize(
    "image",
    [
        *("-v /:/host busybox", "", "UPPER", "a b", "x;y", "$(id)", "a/../b", "a?fromSrc=-", "busybox@sha256:abc"),
        *("http://x/y", "x:tag:tag", "x\ny", "/x", "x/", "Reg/x", "a" * 2000),
    ],
)
async def test_what_is_no_reference_never_reaches_the_engine(docker: Any, tmp_path: Path, image: str) -> None:
    with Proxy(tmp_path / "p.sock", docker.socket) as proxy:
        runtime = DockerRuntime(identity={"a": "b"}, socket=proxy.path)
        with pytest.raises(ImageRefused, match="image reference"):
            await runtime.prepare(image, "missing")
        assert proxy.requests == []
        await runtime.aclose()


async def test_images_that_cannot_be_had(docker_house: House) -> None:
    prepare = docker_house.runtime.prepare
    with pytest.raises(ImageRefused, match="pull policy forbids"):
        await prepare("tesgate-test/absent:1", "never")
    with pytest.raises(RegistryUnreachable, match=r"localhost:1 did not answer"):
        await prepare("localhost:1/x/y:z", "missing")
    with pytest.raises(RegistryUnreachable):
        await prepare("localhost:1/x/y:z", "always")
    with pytest.raises(ImageRefused, match="none of"):
        await prepare(BUSYBOX, "sometimes")
    with pytest.raises(ImageRefused, match="not on this host"):
        await docker_house.runtime.start(docker_house.spec("true", image="tesgate-test/absent:1"))


async def test_always_does_not_settle_for_the_local_image(docker: Any, docker_house: House) -> None:
    query = "/images/tesgate-test/busybox:latest/tag?repo=localhost:1/local&tag=1"
    assert engine_call(docker.socket, "POST", query)[0] == 201
    try:
        assert (await docker_house.runtime.prepare("localhost:1/local:1", "missing")).id
        with pytest.raises(RegistryUnreachable):
            await docker_house.runtime.prepare("localhost:1/local:1", "always")
    finally:
        engine_call(docker.socket, "DELETE", "/images/localhost:1/local:1")


async def test_an_image_removed_after_it_was_prepared(docker: Any, docker_house: House) -> None:
    engine_call(docker.socket, "POST", "/images/tesgate-test/data:latest/tag?repo=tesgate-test/gone&tag=1")
    facts = await docker_house.runtime.prepare("tesgate-test/gone:1", "never")
    assert facts.id
    engine_call(docker.socket, "DELETE", "/images/tesgate-test/gone:1")
    # The id is still there under another name, and the id is what runs.
    assert (await docker_house.run(docker_house.spec("true", image="tesgate-test/gone:1"))).exit_code == 0


async def test_an_image_for_another_machine_is_noted(docker_house: House) -> None:
    facts = await docker_house.runtime.prepare(FOREIGN, "never")
    assert any("built for s390x" in note for note in facts.notes)


async def test_a_created_container_is_started_and_one_that_ran_is_not(docker: Any, docker_house: House) -> None:
    spec = docker_house.spec("echo x >> /work/out")
    await docker_house.runtime.restore(spec, [], spec.root)
    status = await docker_house.runtime.inspect(spec.name)
    assert (status.found, status.running, status.started, status.exit_code) == (True, False, False, None)
    assert await docker_house.runtime.start(spec) == []
    assert (await docker_house.end(spec.name)).exit_code == 0
    await docker_house.runtime.start(spec)
    await docker_house.runtime.restore(spec, [Collect("/work")], spec.root)
    assert docker_house.out() == "x\n"


async def test_a_name_of_somebody_else_is_refused(docker: Any, docker_house: House) -> None:
    other = DockerRuntime(identity={"tesgate.instance": "other"}, socket=docker.socket)
    spec = docker_house.spec("true")
    await other.start(spec)
    with pytest.raises(StepRefused, match="not this agent's"):
        await docker_house.runtime.start(spec)
    assert await docker_house.runtime.names("") == []
    assert await other.names(docker_house.prefix) == [spec.name]
    await other.remove(spec.name)
    await other.aclose()


# -- files of the container


MAKE = """
mkdir -p /data/new/deep /data/sub; echo made > /data/new/deep/f.txt; echo changed > /data/old.txt
ln -s f.txt /data/new/deep/link; ln -s /etc/passwd /data/new/evil; ln /data/new/deep/f.txt /data/new/hard
mkfifo /data/new/pipe; chmod 4755 /data/new/deep/f.txt; : > '/data/new/odd "name"
,ü'; ln -s /data/new/deep/f.txt /data/top; echo b > /data/sub/b.bam; echo c > /data/c.bam; rm /data/sub/inner.txt
dd if=/dev/zero of=/data/big bs=1M count=3 2>/dev/null
"""


async def test_collects_from_the_containers_own_files(docker_house: House) -> None:
    await docker_house.runtime.prepare(DATA, "never")
    spec = docker_house.spec(MAKE, image=DATA)
    assert (await docker_house.run(spec)).exit_code == 0
    items = [Collect("/data/new"), Collect("/data/top"), Collect("/data/absent"), Collect("/data/big")]
    items.append(Collect("/data/**/*.bam", pattern=True))
    notes = await docker_house.runtime.collect(spec.name, items, spec.root)
    data = docker_house.attempt / "rw/data"
    assert (data / "new/deep/f.txt").read_text() == "made\n"
    assert stat.S_IMODE((data / "new/deep/f.txt").stat().st_mode) == 0o755
    assert os.readlink(data / "new/deep/link") == "f.txt"
    assert os.readlink(data / "new/evil") == "/etc/passwd"
    assert (data / "new/hard").read_text() == "made\n"
    assert (data / 'new/odd "name"\n,ü').exists()
    assert not (data / "new/pipe").exists()
    assert not (data / "top").is_symlink()
    assert (data / "top").read_text() == "made\n"
    assert (data / "big").stat().st_size == 3 << 20
    assert sorted(str(path.relative_to(data)) for path in data.rglob("*.bam")) == ["c.bam", "sub/b.bam"]
    assert not (data / "old.txt").exists()
    assert len(notes) == 1
    assert "pipe" in notes[0]


async def test_what_was_collected_is_put_back(docker_house: House) -> None:
    items = [Collect("/data/new"), Collect("/data/big"), Collect("/data/**/*.bam", pattern=True), Collect("/never")]
    first = docker_house.spec(MAKE, image=DATA)
    await docker_house.runtime.prepare(DATA, "never")
    await docker_house.run(first)
    await docker_house.runtime.collect(first.name, items, first.root)
    check = "cat /data/new/deep/link /data/new/hard /data/c.bam /data/sub/b.bam /data/old.txt > /work/out;"
    check += " wc -c < /data/big >> /work/out; echo more >> /data/new/deep/f.txt; rm /data/c.bam"
    second = docker_house.spec(check, image=DATA, step=1)
    await docker_house.runtime.restore(second, items, second.root)
    assert (await docker_house.run(second)).exit_code == 0
    assert docker_house.out() == "made\nmade\nc\nb\nfrom the image\n3145728\n"
    await docker_house.runtime.collect(second.name, items, second.root)
    assert (docker_house.attempt / "rw/data/new/deep/f.txt").read_text() == "made\nmore\n"


async def test_collecting_never_follows_a_link_of_ours(docker_house: House, tmp_path: Path) -> None:
    await docker_house.runtime.prepare(DATA, "never")
    spec = docker_house.spec("mkdir /data/d; echo bad > /data/d/f", image=DATA)
    await docker_house.run(spec)
    outside = tmp_path / "outside"
    outside.mkdir()
    (docker_house.attempt / "rw/data").symlink_to(outside)
    notes = await docker_house.runtime.collect(spec.name, [Collect("/data/d")], spec.root)
    assert os.listdir(outside) == []
    assert notes
    with pytest.raises(EngineUnavailable, match="gone"):
        await docker_house.runtime.collect(docker_house.prefix + "x", [Collect("/data/d")], spec.root)


async def test_files_are_given_back(docker: Any, docker_house: House, tmp_path: Path) -> None:
    program = tmp_path / "tesgate-exec"
    shutil.copy(binary(), program)
    program.chmod(0o755)
    runtime = DockerRuntime(identity={"tesgate.instance": "own"}, socket=docker.socket, exec_path=str(program))
    scratch = tmp_path / "a,b:c"
    (scratch / "inner").mkdir(parents=True)
    (scratch / "inner/file").write_text("x")
    outside = tmp_path / "untouched"
    outside.write_text("x")
    (scratch / "link").symlink_to(outside)
    await runtime.own(BUSYBOX, [str(scratch)], 4321, 4322)
    found = (scratch / "inner/file").stat()
    assert (found.st_uid, found.st_gid) == (4321, 4322)
    assert outside.stat().st_uid == os.getuid()
    assert await runtime.names("") == []
    await runtime.aclose()


# -- the engine goes away


async def test_no_engine_is_one_sentence(tmp_path: Path) -> None:
    runtime = DockerRuntime(identity={"a": "b"}, socket=str(tmp_path / "none.sock"))
    with pytest.raises(RuntimeUnavailable) as caught:
        await runtime.probe()
    assert caught.value.transient
    assert caught.value.sentence == (
        f"The Docker engine at {tmp_path}/none.sock does not answer (No such file or directory); "
        "start it, or set the socket's path."
    )
    with pytest.raises(EngineUnavailable):
        await runtime.inspect("x")
    with pytest.raises(EngineUnavailable):
        await runtime.prepare("x", "missing")
    await runtime.aclose()


async def test_events_go_on_after_the_engine_was_away(docker: Any, docker_house: House, tmp_path: Path) -> None:
    with Proxy(tmp_path / "p.sock", docker.socket) as proxy:
        runtime = DockerRuntime(identity={"tesgate.instance": docker_house.prefix}, socket=proxy.path)
        spec = docker_house.spec("while [ ! -e /work/go ]; do sleep 0.05; done")
        ready, heard = anyio.Event(), []
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(next_name, runtime, spec.name, ready, heard)
                await ready.wait()
                await anyio.to_thread.run_sync(proxy.cut)
                with pytest.raises(EngineUnavailable):
                    await runtime.start(spec)
                proxy.listen()

                async def heard_again() -> bool:
                    return heard.count("") > 1

                await until(heard_again)
                await runtime.start(spec)
                (docker_house.attempt / "rw/work/go").touch()
        assert heard[-1] == spec.name
        await runtime.aclose()


async def test_an_idle_connection_that_the_engine_closed_is_no_fault(
    docker: Any, docker_house: House, tmp_path: Path
) -> None:
    with Proxy(tmp_path / "p.sock", docker.socket) as proxy:
        runtime = DockerRuntime(identity={"tesgate.instance": docker_house.prefix}, socket=proxy.path)
        await runtime.probe()
        await anyio.to_thread.run_sync(proxy.cut)
        proxy.listen()
        assert not (await runtime.inspect("nothing")).found
        await runtime.aclose()


async def test_a_full_engine_and_settings(docker: Any, docker_house: House) -> None:
    settings = ContainerSettings(capabilities=("CHOWN",), shm_bytes=1 << 20, labels={"site": "x"}, oom_score_adj=500)
    runtime = DockerRuntime(identity={"tesgate.instance": docker_house.prefix}, socket=docker.socket, settings=settings)
    spec = docker_house.spec("true", limits=Limits(ram_bytes=1, cpu_cores=500.0))
    notes = await runtime.start(spec)
    found = inspected(docker, spec.name)
    assert found["HostConfig"]["CapAdd"] == ["CHOWN"] or found["HostConfig"]["CapAdd"] == ["CAP_CHOWN"]
    assert found["HostConfig"]["ShmSize"] == 1 << 20
    assert found["HostConfig"]["OomScoreAdj"] == 500
    assert found["HostConfig"]["Memory"] == 6 << 20
    assert found["HostConfig"]["NanoCpus"] == 0
    assert found["Config"]["Labels"]["site"] == "x"
    assert any("6 MiB" in note for note in notes)
    await runtime.aclose()


async def test_anonymous_volumes_go_with_the_container(docker: Any, docker_house: House) -> None:
    await docker_house.runtime.prepare(DATA, "never")
    spec = docker_house.spec("touch /cache/x", image=DATA)
    await docker_house.run(spec)
    volume = next(mount["Name"] for mount in inspected(docker, spec.name)["Mounts"] if mount["Type"] == "volume")
    assert engine_call(docker.socket, "GET", f"/volumes/{volume}")[0] == 200
    await docker_house.runtime.remove(spec.name)
    assert engine_call(docker.socket, "GET", f"/volumes/{volume}")[0] == 404


async def test_a_cancelled_start_leaves_something_that_can_be_adopted(docker_house: House) -> None:
    spec = docker_house.spec("echo x >> /work/out")
    with anyio.move_on_after(0.005), contextlib.suppress(TimeoutError):
        await docker_house.runtime.start(spec)
    began = time.monotonic()
    await docker_house.runtime.start(spec)
    assert (await docker_house.end(spec.name)).exit_code == 0
    assert docker_house.out() == "x\n"
    assert time.monotonic() - began < 60


async def test_directories_above_a_collected_path_are_there_and_the_images_own_stay(docker_house: House) -> None:
    await docker_house.runtime.prepare(DATA, "never")
    items = [Collect("/opt/res/deep/x.txt"), Collect("/data/y.txt"), Collect("/z.txt")]
    script = "echo x > /opt/res/deep/x.txt; echo y > /data/y.txt; echo z > /z.txt; stat -c %a /data > /work/out"
    before = docker_house.spec("stat -c %a /data > /work/out", image=DATA)
    assert (await docker_house.run(before)).exit_code == 0
    mode = docker_house.out()
    spec = docker_house.spec(script, image=DATA, step=1)
    await docker_house.runtime.restore(spec, items, spec.root)
    assert (await docker_house.run(spec)).exit_code == 0
    assert docker_house.out() == mode
    assert await docker_house.runtime.collect(spec.name, items, spec.root) == []
    for name, text in (("opt/res/deep/x.txt", "x\n"), ("data/y.txt", "y\n"), ("z.txt", "z\n")):
        assert (docker_house.attempt / "rw" / name).read_text() == text
