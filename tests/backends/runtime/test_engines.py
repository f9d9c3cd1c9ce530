"""What engines of containers do alike, and where Podman differs: users, mounts, kept containers, volumes."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tesgate.runner.exec import binary
from tesgate.runner.plan import Limits
from tesgate.runner.report import Root
from tesgate.runner.runtime.base import Bind, EngineUnavailable, StepRefused
from tesgate.runner.runtime.containers import ContainerSettings
from tesgate.runner.runtime.docker import DockerRuntime
from tesgate.runner.volumes import VolumeError, resolve_volumes
from tests.backends.runtime.conftest import House, keep_house
from tests.beds.images import BUSYBOX, engine_call
from tests.beds.podman_rootless import FIRST_SUBID

ENGINES = [pytest.param(name, marks=pytest.mark.bed(name)) for name in ("docker", "podman_rootless")]


@pytest_asyncio.fixture(params=ENGINES)
async def engine_house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    async for one in keep_house(request.param, request, tmp_path):
        yield one


@pytest_asyncio.fixture
async def rootless_house(podman_rootless: Any, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    async for one in keep_house("podman_rootless", request, tmp_path):
        yield one


def socket_of(house: House, request: pytest.FixtureRequest) -> str:
    socket: str = request.getfixturevalue(house.kind).socket
    return socket


async def test_shared_memory_has_its_size_and_labels_are_there(
    engine_house: House, request: pytest.FixtureRequest
) -> None:
    spec = engine_house.spec(
        "df -k /dev/shm | tail -n 1 > /work/out", shm_bytes=8 << 20, labels={"org.example/site": "a b,c=d"}
    )
    assert (await engine_house.run(spec)).exit_code == 0
    assert engine_house.out().split()[1] == "8192"
    path = f"/v1.41/containers/{spec.name}/json"
    found = json.loads(engine_call(socket_of(engine_house, request), "GET", path)[1])
    assert found["Config"]["Labels"]["org.example/site"] == "a b,c=d"


async def test_what_is_kept_is_neither_found_nor_adopted(engine_house: House) -> None:
    runtime, spec = engine_house.runtime, engine_house.spec("echo x >> /work/out")
    await engine_house.run(spec)
    await runtime.keep(spec.name)
    await runtime.keep(spec.name)
    assert not (await runtime.inspect(spec.name)).found
    assert await runtime.names(engine_house.prefix) == []
    assert await runtime.names("kept-" + engine_house.prefix) == ["kept-" + spec.name]
    await engine_house.run(spec)
    assert engine_house.out() == "x\nx\n"
    await runtime.remove("kept-" + spec.name)
    assert await runtime.names("kept-" + engine_house.prefix) == []


async def test_a_path_is_no_option_of_a_mount(engine_house: House, tmp_path: Path) -> None:
    secret = engine_house.attempt.parent / "secret"
    secret.mkdir()
    (secret / "key").write_text("secret")
    target = f"/x,source={secret},rw"
    spec = engine_house.spec(
        f"cat /x/key '{target}/key' > /work/leak; ls -d /x,* > /work/out",
        binds=[Bind(str(engine_house.attempt / "rw/work"), target)],
    )
    assert (await engine_house.run(spec)).exit_code == 0
    assert engine_house.out().startswith("/x,source=")
    assert engine_house.out("leak") == ""
    other = engine_house.spec("true", step=1, binds=[Bind(str(engine_house.attempt / "rw/work"), "/a,b:c")])
    if engine_house.kind == "docker":
        assert (await engine_house.run(other)).exit_code == 0
    else:
        with pytest.raises(StepRefused, match="takes no path with a comma"):
            await engine_house.runtime.start(other)


async def test_volumes_are_found(engine_house: House, request: pytest.FixtureRequest) -> None:
    socket, name = socket_of(engine_house, request), engine_house.prefix + "data"
    status, body = engine_call(socket, "POST", "/v1.41/volumes/create", json.dumps({"Name": name}).encode())
    assert status == 201, body
    root = Root(name="data", path="/data", volume=name)
    try:
        found = resolve_volumes([root, Root(name="plain", path="/plain")], socket, lambda _: None)
        assert [one.path for one in found] == ["/data", "/plain"]
        assert found[1].real is None
        assert found[0].real is not None
        assert os.path.isdir(found[0].real)
        Path(found[0].real, "given").write_text("x")
        with pytest.raises(VolumeError, match="nothing-there of the root data does not exist"):
            resolve_volumes([Root(name="data", path="/data", volume="nothing-there")], socket, lambda _: None)
    finally:
        assert engine_call(socket, "DELETE", f"/v1.41/volumes/{name}")[0] == 204
    with pytest.raises(EngineUnavailable, match="does not answer"):
        resolve_volumes([root], "/nowhere/engine.sock", lambda _: None)


async def test_an_engine_is_found_and_kept(engine_house: House, request: pytest.FixtureRequest) -> None:
    heard: list[str] = []
    socket = socket_of(engine_house, request)
    runtime = DockerRuntime(identity={"a": "b"}, socket="auto", found=heard.append)
    runtime._engine._candidates = ["/nowhere/engine.sock", socket]
    await runtime.probe()
    await runtime.probe()
    assert heard == [socket]
    await runtime.aclose()


async def test_the_user_of_a_rootless_engine_is_root_inside(rootless_house: House, podman_rootless: Any) -> None:
    uid = podman_rootless.uid
    facts = await rootless_house.runtime.probe()
    assert (facts.rootless, facts.root_uid) == (True, uid)
    work = rootless_house.attempt / "rw/work"
    await rootless_house.run(rootless_house.spec("id -u > /work/out", user=f"{uid}:{uid}"))
    assert rootless_house.out() == "0\n"
    assert (work / "out").stat().st_uid == uid
    # Another user is a sub-id outside, whose closed files are the agent's only after `own`.
    await rootless_house.run(
        rootless_house.spec("umask 077; mkdir /work/in; touch /work/in/f", user="1234:1234", step=1)
    )
    assert (work / "in").stat().st_uid == FIRST_SUBID + 1233
    program = rootless_house.attempt.parent / "exec"
    program.write_bytes(binary().read_bytes())
    program.chmod(0o755)
    owner = DockerRuntime(identity={"a": "b"}, socket=podman_rootless.socket, exec_path=str(program))
    await owner.own(BUSYBOX, [str(work / "in")], uid, uid)
    assert {path.stat().st_uid for path in (work / "in", work / "in/f")} == {uid}
    await owner.aclose()


async def test_a_namespace_that_keeps_the_users_number(rootless_house: House, podman_rootless: Any) -> None:
    uid = podman_rootless.uid
    settings = ContainerSettings(user_namespace="keep-id")
    runtime = DockerRuntime(
        identity={"tesgate.instance": rootless_house.prefix}, socket=podman_rootless.socket, settings=settings
    )
    spec = rootless_house.spec("id -u > /work/out", user=f"{uid}:{uid}", limits=Limits(pids=100))
    await runtime.start(spec)
    await rootless_house.end(spec.name)
    assert rootless_house.out() == f"{uid}\n"
    assert (rootless_house.attempt / "rw/work/out").stat().st_uid == uid
    await runtime.aclose()
