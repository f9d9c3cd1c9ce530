"""What an agent measures: control groups of both versions, GPUs, and what a container is given of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tesgate.runner import gpus, quota
from tesgate.runner.facts import capacity
from tesgate.runner.plan import Limits
from tesgate.runner.runtime.base import RuntimeFacts, StepSpec
from tesgate.runner.runtime.containers import ContainerSettings, container_body
from tesgate.runner.settings import AgentSettings


def tree(root: Path, **files: str) -> str:
    """A directory with these files; `__` in a name is a slash."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


def test_a_container_of_two_cores_on_a_large_host_offers_two(tmp_path: Path) -> None:
    """Version 2 with a namespace of its own: the group is the root."""
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/\n",
        **{"sys__fs__cgroup__cpu.max": "200000 100000\n", "sys__fs__cgroup__memory.max": "1073741824\n"},
    )
    assert quota.cores(root) == 2.0
    assert quota.memory(root) == 1 << 30


def test_the_least_limit_of_all_groups_above_holds(tmp_path: Path) -> None:
    slices = "sys__fs__cgroup__a.slice"
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/a.slice/b.service\n",
        **{
            f"{slices}__cpu.max": "150000 100000",
            f"{slices}__b.service__cpu.max": "max 100000",
            f"{slices}__memory.max": "max",
            f"{slices}__b.service__memory.max": "5000000000",
        },
    )
    assert quota.cores(root) == 1.5
    assert quota.memory(root) == 5_000_000_000


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/gone/../../etc"])
def test_version_1_with_and_without_a_namespace(tmp_path: Path, path: str) -> None:
    """A container without a namespace reads the host's path of its group, which is not there: its own is the root."""
    base = "sys__fs__cgroup__cpu,cpuacct"
    root = tree(
        tmp_path,
        proc__self__cgroup=f"9:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n",
        **{
            f"{base}__cpu.cfs_quota_us": "250000",
            f"{base}__cpu.cfs_period_us": "100000",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "2000000000",
        },
    )
    assert quota.cores(root) == 2.5
    assert quota.memory(root) == 2_000_000_000


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        proc__self__cgroup="4:cpu:/\n9:memory:/\n0::/x\nnonsense\n",
        **{
            "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1",
            "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
            "sys__fs__cgroup__unified__x__cpu.max": "max 100000",
        },
    )
    assert quota.cores(root) is None
    assert quota.memory(root) is None
    assert quota.cores(str(tmp_path / "nothing")) is None


def test_capacity_is_what_is_allowed_or_declared(tmp_path: Path) -> None:
    settings = AgentSettings(url="", token_file="", scratch=str(tmp_path))
    root = tree(
        tmp_path,
        proc__self__cgroup="0::/\n",
        proc__driver__nvidia__gpus__0="",
        **{"sys__fs__cgroup__cpu.max": "50000 100000", "sys__fs__cgroup__memory.max": "1000000"},
    )
    found = capacity(settings, runtime="docker", root=root)
    assert (found.cpu_cores, found.ram_bytes, found.gpus) == (0.5, 1_000_000, 1)
    disk = os.statvfs(tmp_path)
    assert 0 < found.disk_bytes <= disk.f_blocks * disk.f_frsize
    assert capacity(settings, runtime="bubblewrap", root=root).gpus == 0  # it cannot hand them on
    settings.cpus, settings.gpus = 3.0, 4
    found = capacity(settings, runtime="docker", root=root)
    assert (found.cpu_cores, found.gpus) == (3.0, 4)


def test_gpus_are_counted_by_the_driver_else_by_device_files(tmp_path: Path) -> None:
    assert gpus.count(str(tmp_path)) == 0
    root = tree(tmp_path, dev__nvidia0="", dev__nvidia1="", dev__nvidiactl="", **{"dev__nvidia-uvm": ""})
    assert gpus.count(root) == 2
    tree(tmp_path, **{"proc__driver__nvidia__gpus__0000:01:00.0__information": ""})
    assert gpus.count(root) == 1


def test_devices_are_nobody_elses() -> None:
    assert gpus.free(4, ["0", "2"], 2) == ["1", "3"]
    assert gpus.free(2, ["0"], 2) is None
    assert gpus.free(0, [], 0) == []


def test_a_container_gets_the_devices_of_its_attempt() -> None:
    def host(limits: Limits) -> dict[str, object]:
        spec = StepSpec(name="n", image="i", argv=["true"], root="/r", control="/c", limits=limits)
        body, _ = container_body(spec, None, RuntimeFacts(name="docker", version="1"), ContainerSettings())
        found: dict[str, object] = body["HostConfig"]
        return found

    wanted = {"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}
    assert host(Limits(gpus=2, gpu_devices=["1", "3"]))["DeviceRequests"] == [wanted]
    assert "DeviceRequests" not in host(Limits())
