"""What a step looks like to the Engine API: the body of its create call, pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

from .base import Bind, ImageFacts, RuntimeFacts, StepRefused, StepSpec

__all__ = ["DEFAULT_CAPABILITIES", "ContainerSettings", "container_body", "owner_body"]

DEFAULT_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
"""What images need whose user is root: package managers and entry points that give files away and step down to
another user (CHOWN, FOWNER, FSETID, SETUID, SETGID), inputs of another owner (DAC_OVERRIDE), and exec itself, which as
process 1 must reach children that stepped down (KILL). Of the engine's own default, NET_RAW, NET_BIND_SERVICE, MKNOD,
SETFCAP, SETPCAP, SYS_CHROOT and AUDIT_WRITE are left out. A user other than root has none at all."""

_NETWORK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_USER = re.compile(r"[0-9]{1,10}(?::[0-9]{1,10})?")
_CAPABILITY = re.compile(r"[A-Z_]{2,40}")
_LEAST_RAM = 6 << 20
_LEAST_CPU = 0.01


@dataclass(frozen=True)
class ContainerSettings:
    """What the host's owner decides for all containers."""

    capabilities: Tuple[str, ...] = DEFAULT_CAPABILITIES
    network: str = "bridge"
    """The engine network that ``default`` means."""
    shm_bytes: int = 64 << 20
    """Size of ``/dev/shm``; it counts into the memory limit."""
    oom_score_adj: Optional[int] = None
    cgroup_parent: Optional[str] = None
    user_namespace: str = ""
    """``UsernsMode``; empty is the engine's own."""
    labels: Dict[str, str] = field(default_factory=dict)
    """Identity: on every container of ours, and the filter by which ours are listed."""


def container_body(
    spec: StepSpec, facts: Optional[ImageFacts], engine: RuntimeFacts, settings: ContainerSettings
) -> Tuple[Dict[str, Any], List[str]]:
    """The JSON body that creates the container of `spec`, and notes on what cannot be held.

    Raises `StepRefused`.
    """
    if spec.user is not None and not _USER.fullmatch(spec.user):
        raise StepRefused("The user %r must be given as uid:gid in numbers." % spec.user)
    notes: List[str] = []
    host: Dict[str, Any] = {
        "NetworkMode": _network(spec.network, settings.network),
        "CapDrop": ["ALL"],
        "CapAdd": _capabilities(spec.user, settings.capabilities),
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Devices": [],
        **mounts(spec.binds, engine),
        "LogConfig": {"Type": "none"},
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Init": False,
        "ShmSize": settings.shm_bytes if spec.shm_bytes is None else spec.shm_bytes,
    }
    if settings.user_namespace:
        host["UsernsMode"] = settings.user_namespace
    if settings.oom_score_adj is not None:
        host["OomScoreAdj"] = settings.oom_score_adj
    if settings.cgroup_parent:
        host["CgroupParent"] = settings.cgroup_parent
    _limits(spec, engine, host, notes)
    if spec.limits.gpu_devices:
        # Engine API, ContainerCreate, HostConfig.DeviceRequests: these devices and no others.
        host["DeviceRequests"] = [
            {"Driver": "nvidia", "DeviceIDs": list(spec.limits.gpu_devices), "Capabilities": [["gpu"]]}
        ]
    body: Dict[str, Any] = {
        # The image's id, not its name: a tag may have moved since its digest was recorded.
        "Image": facts.id if facts is not None and facts.id else spec.image,
        "Entrypoint": list(spec.argv),
        "Cmd": [],
        "Env": ["%s=%s" % pair for pair in spec.env.items()],
        "Labels": {**spec.labels, **settings.labels},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "StopTimeout": max(1, int(spec.grace + 0.999)),
        "Tty": False,
        "OpenStdin": False,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": host,
    }
    if spec.user is not None:
        body["User"] = _user(spec.user, engine, settings)
        host["CapAdd"] = _capabilities(body["User"], settings.capabilities)
    return body, notes


def owner_body(
    image: str,
    exec_path: str,
    paths: List[str],
    uid: int,
    gid: int,
    engine: RuntimeFacts,
    settings: ContainerSettings,
) -> Dict[str, Any]:
    """The body of the short container that gives `paths` of the host to uid:gid, through ``exec own``.

    On a rootless engine the host's user is root in there; no other of the host's users can be given anything.
    """
    if engine.rootless and uid == engine.root_uid:
        uid = gid = 0
    targets = ["/.tesgate/own/%d" % index for index in range(len(paths))]
    binds = [Bind(exec_path, "/.tesgate/exec", True)]
    binds += [Bind(path, target) for path, target in zip(paths, targets)]
    return {
        "Image": image,
        "Entrypoint": ["/.tesgate/exec", "own", str(uid), str(gid), *targets],
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        "Labels": {**settings.labels, "tesgate.role": "own"},
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": False,
            **mounts(binds, engine),
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            "Init": False,
        },
    }


_MISREAD = re.compile(r"[,\"\r\n]")


def mounts(binds: List[Bind], engine: RuntimeFacts) -> Dict[str, Any]:
    """What `binds` are in a ``HostConfig``. Raises `StepRefused`.

    Podman makes ``source=...,target=...`` of each entry of the Mounts API, where a comma in a path would begin an
    option of the task's choosing. Such paths go the older way, which has a colon between.
    """
    plain: List[Dict[str, Any]] = []
    older: List[str] = []
    for bind in binds:
        if not engine.text_mounts or not _MISREAD.search(bind.source + bind.target):
            plain.append(mount(bind.source, bind.target, bind.read_only))
            continue
        if any(":" in path or "\\" in path for path in (bind.source, bind.target)):
            raise StepRefused(
                "%r cannot be mounted: this engine takes no path with a comma, quote or line break beside a colon or "
                "backslash." % bind.target
            )
        options = "ro,rprivate" if bind.read_only else "rw,rprivate"
        older.append("%s:%s:%s" % (bind.source, bind.target, options))
    return {"Mounts": plain, "Binds": older} if older else {"Mounts": plain}


def _user(user: str, engine: RuntimeFacts, settings: ContainerSettings) -> str:
    """On a rootless engine the user of the host who runs it is root inside, unless the namespace keeps its number.

    There ``host`` is the engine's own namespace, as if nothing were set.
    """
    if (
        engine.rootless
        and (settings.user_namespace or "host") == "host"
        and int(user.partition(":")[0]) == engine.root_uid
    ):
        return "0:0"
    return user


def mount(source: str, target: str, read_only: bool) -> Dict[str, Any]:
    """One bind of the Mounts API: fields of their own, so that no character of a path has a meaning."""
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _network(wanted: str, default: str) -> str:
    name = default if wanted == "default" else wanted
    # "container:..." would join another container's network; the form leaves no colon.
    if not _NETWORK.fullmatch(name):
        raise StepRefused("%r cannot be the name of a network." % name)
    return name


def _capabilities(user: Optional[str], wanted: Tuple[str, ...]) -> List[str]:
    for name in wanted:
        if not _CAPABILITY.fullmatch(name) or name == "ALL":
            raise StepRefused("%r cannot be a capability to add." % name)
    if user is not None and int(user.partition(":")[0]) != 0:
        return []
    return list(wanted)


def _limits(spec: StepSpec, engine: RuntimeFacts, host: Dict[str, Any], notes: List[str]) -> None:
    limits = spec.limits
    if limits.cpu_cores is not None:
        if not engine.cpu_limit:
            notes.append("The CPU limit is not held: this engine's kernel has no CPU quota.")
        elif engine.cpu_cores is None or limits.cpu_cores < engine.cpu_cores:
            host["NanoCpus"] = int(max(limits.cpu_cores, _LEAST_CPU) * 1e9)
    if limits.ram_bytes is not None:
        if not engine.memory_limit:
            notes.append("The memory limit is not held: this engine's kernel does not limit memory.")
        else:
            if limits.ram_bytes < _LEAST_RAM:
                notes.append("The memory limit was raised to 6 MiB, the least that a container engine holds.")
            host["Memory"] = host["MemorySwap"] = max(limits.ram_bytes, _LEAST_RAM)
    if limits.pids is not None:
        if engine.pids_limit:
            host["PidsLimit"] = max(limits.pids, 2)
        else:
            notes.append("The limit on processes is not held: this engine's kernel does not count them.")
    if limits.disk_bytes is not None:
        if engine.disk_limit:
            host["StorageOpt"] = {"size": str(max(limits.disk_bytes, 1 << 20))}
        else:
            notes.append("The disk limit is not held: this engine's storage driver has no quota.")
