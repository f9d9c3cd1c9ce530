"""What an engine's answers about itself mean for limits and isolation; pure but for one look at the mount table."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from .base import RuntimeFacts

__all__ = ["engine_facts"]


def engine_facts(
    name: str,
    version: Dict[str, Any],
    info: Dict[str, Any],
    libpod: Optional[Dict[str, Any]] = None,
    owner: int = 0,
) -> RuntimeFacts:
    """The facts of an engine from its ``/version`` and ``/info``.

    `libpod`: what it says at ``/libpod/info``, where it has that (Podman): there alone it tells which control groups
    its user has. `owner`: the host's user whose socket it is.
    """
    security = [str(option) for option in info.get("SecurityOptions") or []]
    rootless = any("rootless" in option for option in security) or bool(info.get("Rootless"))
    product = next((str(part.get("Name")) for part in version.get("Components") or [] if part.get("Name")), "")
    product = name if product in ("", "Engine") else product
    notes: List[str] = [
        "Containers run on %s %s without new privileges and with few capabilities." % (product, version.get("Version"))
    ]
    if rootless:
        notes.append("The engine is rootless: root in a container is the host's user %d." % owner)
    if not any("seccomp" in option for option in security):
        notes.append("The engine filters no system calls (seccomp is off).")
    facts = RuntimeFacts(
        name=name,
        version=str(version.get("Version", "")),
        cpu_cores=float(info["NCPU"]) if info.get("NCPU") else None,
        ram_bytes=info.get("MemTotal") or None,
        cpu_limit=bool(info.get("CpuCfsQuota")) and _has_controller(libpod, "cpu"),
        memory_limit=bool(info.get("MemoryLimit")) and _has_controller(libpod, "memory"),
        pids_limit=bool(info.get("PidsLimit")) and _has_controller(libpod, "pids"),
        disk_limit=_has_quota(info),
        rootless=rootless,
        root_uid=owner if rootless else 0,
        text_mounts=libpod is not None,
        gpus=libpod is None,
        notes=notes,
    )
    for held, what in ((facts.cpu_limit, "CPU"), (facts.memory_limit, "memory"), (facts.pids_limit, "process")):
        if not held:
            why = "with the control groups that its user has" if rootless else "on this kernel"
            notes.append("The engine holds no %s limits %s." % (what, why))
    if facts.memory_limit and not info.get("SwapLimit"):
        notes.append("The engine limits memory but not swap on this kernel.")
    if not facts.disk_limit:
        notes.append(
            "The engine's storage driver (%s) holds no disk limits: that needs xfs with project quota, btrfs or zfs."
            % info.get("Driver")
        )
    return facts


def _has_controller(libpod: Optional[Dict[str, Any]], name: str) -> bool:
    return libpod is None or name in ((libpod.get("host") or {}).get("cgroupControllers") or [])


def _has_quota(info: Dict[str, Any]) -> bool:
    driver = info.get("Driver")
    if driver in ("btrfs", "zfs"):
        return True
    status = {str(pair[0]): str(pair[1]) for pair in info.get("DriverStatus") or [] if len(pair) == 2}
    if driver not in ("overlay2", "overlay") or status.get("Backing Filesystem") != "xfs":
        return False
    return any(option in ("prjquota", "pquota") for option in _mount_options(str(info.get("DockerRootDir", ""))))


def _mount_options(path: str) -> List[str]:
    """The super block's options of the file system that holds `path`; empty where that cannot be seen from here."""
    best, options = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                fields = line.split()
                point = fields[4]
                if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                    best, options = point, fields[-1]
    except OSError:
        return []
    return options.split(",")
