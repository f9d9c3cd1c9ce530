"""From the settings of how commands run to what stands in a plan and in a container's description."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tesgate.app.plans import plan_settings
from tesgate.config import Settings
from tesgate.model.planning import build_plan
from tesgate.runner.plan import Limits, Plan, RunAs
from tesgate.runner.runtime.base import Bind, RuntimeFacts, StepRefused
from tesgate.runner.runtime.containers import mounts
from tesgate.runner.runtime.facts import engine_facts
from tesgate.runner.runtime.sockets import find_socket, places
from tesgate.runner.step import enforced

DOCUMENT = {"executors": [{"image": "busybox", "command": ["true"]}], "resources": {"ram_gb": 1, "disk_gb": 1}}


def plan(**runtime: Any) -> Plan:
    settings = plan_settings(Settings(runtime=runtime), "testtest")
    return build_plan("t", 1, "tg-testtest-t-1", DOCUMENT, "token", settings=settings)


@pytest.mark.parametrize(
    ("text", "run_as"),
    [
        ("auto", RunAs()),
        ("1000:100", RunAs(policy="fixed", uid=1000, gid=100)),
        ("5000-5999", RunAs(policy="fixed", uid=5000, last_uid=5999)),
        ("5000-5999:100", RunAs(policy="fixed", uid=5000, gid=100, last_uid=5999)),
    ],
)
def test_who_runs(text: str, run_as: RunAs) -> None:
    assert plan(run_as=text).run_as == run_as


@pytest.mark.parametrize("text", ["5999-5000", "0-10", "5000-", "a-b", "1-2-3", ""])
def test_ranges_that_cannot_be(text: str) -> None:
    with pytest.raises(ValidationError):
        plan(run_as=text)


def test_limits_that_are_off_still_count_for_room() -> None:
    made = plan(limits_off=["memory", "pids"])
    assert made.limits == Limits(cpu_cores=1.0, ram_bytes=10**9, disk_bytes=10**9, pids=4096)
    assert enforced(made) == Limits(cpu_cores=1.0, ram_bytes=None, disk_bytes=10**9, pids=None)
    assert enforced(plan()) == plan().limits


def test_home_shm_and_labels() -> None:
    made = plan(home="/scratch", shm_gb=0.5, labels={"org.example/site": "a b"})
    assert (made.home, made.shm_bytes, made.labels) == ("/scratch", 500_000_000, {"org.example/site": "a b"})


@pytest.mark.parametrize("name", ["tesgate.task", "", "a b", "-x"])
def test_labels_that_are_not_free(name: str) -> None:
    with pytest.raises(ValidationError, match="labels"):
        plan(labels={name: "x"})


def test_a_podman_without_control_groups_of_its_own_holds_no_limits() -> None:
    """Podman 4.3's `/info` speaks of the host's kernel even where its user may not use it (recorded)."""
    info = {"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True, "SwapLimit": True, "Rootless": True}
    version = {"Version": "4.3.1", "Components": [{"Name": "Podman Engine"}]}
    facts = engine_facts("docker", version, info, {"host": {"cgroupControllers": []}}, 1000)
    assert (facts.cpu_limit, facts.memory_limit, facts.pids_limit) == (False, False, False)
    assert (facts.rootless, facts.root_uid, facts.text_mounts) == (True, 1000, True)
    assert not facts.gpus and engine_facts("docker", version, info).gpus  # Podman drops the request for devices
    held = engine_facts("docker", version, info, {"host": {"cgroupControllers": ["cpu", "memory", "pids"]}}, 1000)
    assert (held.cpu_limit, held.memory_limit, held.pids_limit) == (True, True, True)


def test_no_path_can_add_an_option_to_a_mount() -> None:
    text = RuntimeFacts(name="docker", version="", text_mounts=True)
    evil = Bind("/scratch/rw/x", "/x,source=/etc,rw", True)
    assert mounts([evil], text) == {"Mounts": [], "Binds": ["/scratch/rw/x:/x,source=/etc,rw:ro,rprivate"]}
    assert len(mounts([evil], RuntimeFacts(name="docker", version=""))["Mounts"]) == 1
    for target in ("/a,b:c", '/a"b\\c'):
        with pytest.raises(StepRefused, match="cannot be mounted"):
            mounts([Bind("/scratch/rw/x", target)], text)


def test_where_an_engine_is_looked_for(tmp_path: Path) -> None:
    assert places({"XDG_RUNTIME_DIR": "/run/me"}, 7) == [
        "/var/run/docker.sock",
        "/run/me/docker.sock",
        "/run/me/podman/podman.sock",
        "/run/podman/podman.sock",
    ]
    assert "/run/user/7/podman/podman.sock" in places({"XDG_RUNTIME_DIR": "relative"}, 7)
    stale, living = tmp_path / "stale", tmp_path / "living"
    for path, listens in ((stale, False), (living, True)):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.fspath(path))
            if listens:
                server.listen()
                assert find_socket([str(tmp_path / "none"), str(stale), str(living)]) == str(living)
    assert find_socket([str(stale), str(living)]) is None
