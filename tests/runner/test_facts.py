"""What an agent measures: control groups of both versions, GPUs, and what a container is given of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from tesgate.runner import gpus, quota
from tesgate.runner.facts import agent_facts, capacity, devices
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
        **{"sys__fs__cgroup__cpu.max": "50000 100000", "sys__fs__cgroup__memory.max": "1000000"},
    )
    found = capacity(settings, root=root)
    assert (found.cpu_cores, found.ram_bytes, found.gpus) == (0.5, 1_000_000, 0)
    disk = os.statvfs(tmp_path)
    assert 0 < found.disk_bytes <= disk.f_blocks * disk.f_frsize
    settings.cpus = 3.0
    assert capacity(settings, root=root).cpu_cores == 3.0


def test_gpus_keep_the_numbers_of_their_files(tmp_path: Path) -> None:
    assert gpus.found(str(tmp_path)) == []
    root = tree(tmp_path, dev__nvidia10="", dev__nvidia2="", dev__nvidia3="", dev__nvidiactl="")
    tree(tmp_path, **{"dev__nvidia-uvm": "", "dev__nvidia-caps__nvidia-cap1": ""})
    assert gpus.found(root) == ["2", "3", "10"]  # a container was given these
    for minor in (3, 1, 2):
        text = f"Model: \t\t NVIDIA\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        tree(tmp_path, **{f"proc__driver__nvidia__gpus__0000:0{minor}:00.0__information": text})
    assert gpus.found(root) == ["2", "3"]  # number 10 has gone, number 1 is not for this container
    shutil.rmtree(tmp_path / "dev")
    assert gpus.found(root) == ["1", "2", "3"]
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information").unlink()
    assert gpus.found(root) == ["0", "1", "2"]  # a count is all there is
    assert gpus.found(tree(tmp_path, dev__nvidia4="")) == ["4"]


def test_declared_gpus_are_those_that_are_there(tmp_path: Path) -> None:
    root = tree(tmp_path, dev__nvidia1="", dev__nvidia2="")
    assert gpus.offered(None, root) == ["1", "2"]
    assert [gpus.offered(count, root) for count in (0, 1, 4)] == [[], ["1"], ["1", "2", "0", "3"]]


def test_gpus_are_offered_where_the_engine_hands_them_on(tmp_path: Path) -> None:
    """While it has not answered they are still the attempts' own; the agent is given nothing new meanwhile."""
    settings = AgentSettings(url="", token_file="", scratch=str(tmp_path), gpus=2)
    docker, podman = (RuntimeFacts(name="docker", version="1", gpus=gpus) for gpus in (True, False))
    assert len(devices(settings, runtime="docker", engine=docker)) == 2
    assert devices(settings, runtime="docker", engine=podman) == []
    assert devices(settings, runtime="bubblewrap", engine=None) == []
    silent = devices(settings, runtime="docker", engine=None)
    facts = agent_facts(settings, instance="i", runtime=None, gpu_count=len(silent))
    assert (facts.capacity.gpus, facts.runtimes) == (2, [])


def test_devices_are_nobody_elses() -> None:
    assert gpus.free(["0", "1", "2", "3"], ["0", "2"], 2) == ["1", "3"]
    assert gpus.free(["2", "3"], ["0"], 2) == ["2", "3"]
    assert gpus.free(["0", "1"], ["0"], 2) is None
    assert gpus.free([], [], 0) == []


def test_two_agents_of_the_example_on_one_host_do_not_offer_the_same_gpus() -> None:
    path = Path(__file__).resolve().parents[2] / "examples/compose/compose.yaml"
    services = yaml.safe_load(path.read_text())["services"]
    told = [word for name in ("agent-1", "agent-2") for word in services[name]["command"] if word.startswith("--gpus")]
    assert told == ["--gpus=${AGENT_1_GPUS:-0}", "--gpus=0"]


def test_a_container_gets_the_devices_of_its_attempt() -> None:
    def host(limits: Limits) -> dict[str, object]:
        spec = StepSpec(name="n", image="i", argv=["true"], root="/r", control="/c", limits=limits)
        body, _ = container_body(spec, None, RuntimeFacts(name="docker", version="1"), ContainerSettings())
        found: dict[str, object] = body["HostConfig"]
        return found

    wanted = {"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}
    assert host(Limits(gpus=2, gpu_devices=["1", "3"]))["DeviceRequests"] == [wanted]
    assert "DeviceRequests" not in host(Limits())
