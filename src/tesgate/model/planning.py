"""From a TES task document to the plan of one attempt, and what the task needs to be placed.

Pure. The plan is computed each time a start is answered, and never stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tesgate.model.container_paths import normal_path
from tesgate.model.live import is_live_output, live_places, notes_of
from tesgate.model.mounts import Live, Place, mount_table
from tesgate.model.roots import KnownRoot, local_path
from tesgate.model.wishes import gpus_of
from tesgate.runner.plan import Executor, Input, Keep, Limits, Output, Plan, RunAs, UrlPolicy

__all__ = ["GB", "Need", "PlanSettings", "build_plan", "local_path", "local_paths", "need", "origin"]

GB = 10**9
"""Bytes of ``ram_gb`` and ``disk_gb``. The specification says "gigabytes (GB)", SI's 10^9, and clients do: cwl-tes
sends 1024 MiB as ``ram_gb: 1.0737``."""


class Need(NamedTuple):
    """What a task needs at least."""

    cpu_cores: float
    ram_bytes: int
    disk_bytes: int


_DEFAULTS = Need(cpu_cores=1.0, ram_bytes=2 * GB, disk_bytes=0)


@dataclass(frozen=True)
class PlanSettings:
    """What the deployment says about every plan."""

    deployment: str = ""
    """Eight characters that name this deployment on engines and clusters."""
    defaults: Need = _DEFAULTS
    """For a task that does not say what it needs. Placement counts them, so the first two are limits as well."""
    pids: int | None = 4096
    """Processes and threads of one executor at most."""
    run_as: RunAs = field(default_factory=RunAs)
    url_policy: UrlPolicy = field(default_factory=UrlPolicy)
    network: str = "default"
    pull_policy: str = "missing"
    timeout: float | None = None
    """Seconds for a whole attempt."""
    executor_timeout: float | None = None
    """Seconds for one executor."""
    grace: float = 10.0
    """Seconds between a polite signal and a kill."""
    tail_bytes: int = 10240
    log_bytes: int = 1 << 30
    roots: tuple[KnownRoot, ...] = ()
    """File roots of this configuration: which of them are mounted."""
    logins: frozenset[str] = frozenset()
    """Origins (`origin`) of servers that named credentials are configured for."""
    home: str | None = None
    shm_bytes: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    limits_off: tuple[str, ...] = ()
    keep: Keep = field(default_factory=Keep)


def need(document: Mapping[str, Any], defaults: Need) -> Need:
    """What the task's ``resources`` ask for; `defaults` where they are silent (or not above zero)."""
    resources = document.get("resources") or {}

    def amount(name: str) -> float | None:
        value = resources.get(name)
        # NaN fails the comparison too.
        return float(value) if value is not None and float(value) > 0 else None

    cpu_cores, ram_gb, disk_gb = amount("cpu_cores"), amount("ram_gb"), amount("disk_gb")
    return Need(
        defaults.cpu_cores if cpu_cores is None else cpu_cores,
        defaults.ram_bytes if ram_gb is None else round(ram_gb * GB),
        defaults.disk_bytes if disk_gb is None else round(disk_gb * GB),
    )


def origin(url: str) -> str | None:
    """Scheme, host and port of a URL of the web, in one spelling; None for other URLs."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not parts.hostname:
        return None
    return f"{scheme}://{parts.hostname.rstrip('.')}:{port or (443 if scheme == 'https' else 80)}"


def local_paths(document: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The host's paths that the task reads (False) and writes (True): whoever runs it must have their roots."""
    found: dict[tuple[str, bool], None] = {}
    for item in document.get("inputs") or []:
        if item.get("content") is None and (path := local_path(item.get("url") or "")):
            found[path, False] = None
    for item in document.get("outputs") or []:
        if path := local_path(item.get("url") or ""):
            found[path, True] = None
    return list(found)


def build_plan(
    task_id: str,
    attempt: int,
    external_name: str,
    document: Mapping[str, Any],
    token: str,
    *,
    settings: PlanSettings,
) -> Plan:
    """Compute the plan of one attempt. Raises `MountError` for paths that `check_paths` would have refused."""
    live = live_places(document, settings.roots)
    table = mount_table(document, live)
    wanted = need(document, settings.defaults)
    asked_disk = (document.get("resources") or {}).get("disk_gb")
    return Plan(
        task=task_id,
        attempt=attempt,
        external_name=external_name,
        deployment=settings.deployment,
        token=token,
        executors=[_executor(item, index, settings) for index, item in enumerate(document.get("executors") or [])],
        inputs=_inputs(document, table.places, settings.logins),
        outputs=[
            _output(item, index, live, settings.logins) for index, item in enumerate(document.get("outputs") or [])
        ],
        mounts=table.mounts,
        directories=table.directories,
        collect=table.collect,
        limits=Limits(
            cpu_cores=wanted.cpu_cores,
            ram_bytes=wanted.ram_bytes,
            # Not every engine can limit it, and a default that kills would surprise.
            disk_bytes=wanted.disk_bytes if asked_disk else None,
            pids=settings.pids,
            gpus=gpus_of(document.get("resources") or {}),
        ),
        run_as=settings.run_as,
        url_policy=settings.url_policy,
        network=settings.network,
        pull_policy=settings.pull_policy,
        timeout=settings.timeout,
        grace=settings.grace,
        tail_bytes=settings.tail_bytes,
        log_bytes=settings.log_bytes,
        notes=notes_of(live),
        home=settings.home,
        shm_bytes=settings.shm_bytes,
        labels=dict(settings.labels),
        limits_off=list(settings.limits_off),
        keep=settings.keep,
    )


def _inputs(document: Mapping[str, Any], places: list[Place], logins: frozenset[str]) -> list[Input]:
    """Each input once, outer directories before what lies in them: that is the order in which they are staged."""
    inputs: dict[str, Input] = {}
    for index, (item, place) in enumerate(zip(document.get("inputs") or [], places, strict=True)):
        path = normal_path(item.get("path"), f"inputs[{index}].path")
        if place.place.startswith("live/"):
            continue  # mounted as it is: nothing is staged
        content = item.get("content")
        inputs[path] = Input(
            path=path,
            place=place.place,
            # Specification: content wins over url.
            url=None if content is not None else item.get("url"),
            login=content is None and bool(logins) and origin(item.get("url") or "") in logins,
            content=content,
            type=item.get("type") or "FILE",
            writable=place.writable,
        )
    return sorted(inputs.values(), key=lambda item: item.path.count("/"))


def _output(item: Mapping[str, Any], index: int, live: Mapping[str, Live], logins: frozenset[str]) -> Output:
    path = normal_path(item.get("path"), f"outputs[{index}].path")
    return Output(
        path=path,
        url=item.get("url") or "",
        type=item.get("type") or "FILE",
        path_prefix=item.get("path_prefix") or None,
        live=bool(live) and is_live_output(item, path, live),
        login=bool(logins) and origin(item.get("url") or "") in logins,
    )


def _executor(item: Mapping[str, Any], index: int, settings: PlanSettings) -> Executor:
    def path(name: str) -> str | None:
        return normal_path(item[name], f"executors[{index}].{name}") if item.get(name) else None

    return Executor(
        image=item.get("image") or "",
        command=[str(part) for part in item.get("command") or []],
        workdir=path("workdir"),
        stdin=path("stdin"),
        stdout=path("stdout"),
        stderr=path("stderr"),
        env={str(name): "" if value is None else str(value) for name, value in (item.get("env") or {}).items()},
        ignore_error=bool(item.get("ignore_error")),
        timeout=settings.executor_timeout,
    )
