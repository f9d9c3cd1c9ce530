"""How and where commands run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from tesgate.config.types import Group, Seconds, Words, words

POOL = r"^[a-z0-9][a-z0-9_-]{0,62}$"

__all__ = ["AgentPool", "AgentSettings", "Defaults", "RuntimeSettings", "TimeoutSettings"]

_COVERED = ("proc", "sys", "dev", "etc", "run", "tmp")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class RuntimeSettings(Group):
    """How agents run containers."""

    engine: Literal["auto", "docker", "bubblewrap", "none"] = Field(
        default="auto",
        description="Container engine; `auto` takes the first that works, `none` runs nothing on this host.",
        json_schema_extra={"flag": "--runtime"},
    )
    docker_socket: str = Field(
        default="auto",
        min_length=1,
        description="Socket of Docker or Podman; `auto` takes the first that answers of `/var/run/docker.sock`, the "
        "user's own in `$XDG_RUNTIME_DIR` (`docker.sock`, `podman/podman.sock`) and `/run/podman/podman.sock`. "
        "`DOCKER_HOST` is not read.",
    )
    registry_auth_file: Path | None = Field(
        default=None, description="Credentials for image registries, in the form of `~/.docker/config.json`."
    )
    network: str = Field(
        default="default",
        min_length=1,
        description="Network of the containers: `default` (the engine's usual one), `none`, `host`, or a name.",
    )
    pull_policy: Literal["missing", "always", "never"] = Field(default="missing", description="When images are pulled.")
    run_as: str = Field(
        default="auto",
        pattern=r"^(auto|image|agent|\d{1,9}:\d{1,9}|\d{1,9}-\d{1,9}(:\d{1,9})?)$",
        description="Who the commands are: `image` (the image's own user), `agent` (the agent's user; on a rootless "
        "engine root in the container, who is that user outside), `UID:GID`, a range `FIRST-LAST` or `FIRST-LAST:GID` "
        "(each attempt on an agent has a user of its own; without GID the group has the user's number), or `auto` "
        "(`image` where the agent is root, else `agent`).",
    )
    user_namespace: Literal["host", "keep-id"] | None = Field(
        default=None,
        description="User namespace of containers: `keep-id` (rootless Podman: the agent's user has its own number "
        "inside too), `host`, or null: the engine's own.",
    )
    home: str | None = Field(
        default=None,
        pattern=r"^/[^\x00:]*$",
        description="HOME of commands whose task sets none; null: `/tmp` where `run_as` gives a user, else what the "
        "image says.",
    )
    shm_gb: float | None = Field(
        default=None, gt=0, description="Size of `/dev/shm` (GB); null: 64 MiB. It counts into a task's memory."
    )
    labels: dict[str, str] = Field(default={}, description="Labels on every container, beside tesgate's own.")
    limits_off: Annotated[list[Literal["cpu", "memory", "disk", "pids"]], NoDecode, BeforeValidator(words)] = Field(
        default=[],
        description="Limits that are not enforced. What a task needs still counts where it is placed.",
    )
    keep_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long agents keep an ended attempt for people who look for a mistake (seconds): its containers "
        "and its scratch directory, with all that the task held; 0 keeps none.",
    )
    keep_which: Literal["failed", "all"] = Field(
        default="failed", description="`failed`: those that did not end well; canceled ones are never kept."
    )
    keep_most: int = Field(
        default=20,
        ge=1,
        description="Attempts that one agent keeps at most; the oldest go first, all when disk is short.",
    )
    sandbox_paths: Annotated[list[Path], NoDecode, BeforeValidator(words)] = Field(
        default=[],
        description="Further directories of the host that bubblewrap's sandboxes see, read-only and under their own "
        "paths: installed software, such as `/opt` or `/nix`. Container engines do not look at it.",
    )
    pids: int | None = Field(
        default=4096, ge=16, description="Processes that one executor may have at most; null: no limit."
    )

    @field_validator("labels")
    @classmethod
    def _free_labels(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _LABEL.fullmatch(name) or name.startswith("tesgate."):
                raise ValueError(
                    f"{name!r} must begin with a letter or digit, hold no space, and not begin with `tesgate.`"
                )
        return value

    @field_validator("sandbox_paths")
    @classmethod
    def _visible(cls, value: list[Path]) -> list[Path]:
        for path in value:
            if not path.is_absolute() or ".." in path.parts or str(path).startswith("//"):
                raise ValueError(f"{path} must be an absolute path without `..`")
            if len(path.parts) < 2 or path.parts[1] in _COVERED:
                raise ValueError(
                    f"{path} cannot be shown in a sandbox, as it is, or lies in, what each has of its own: "
                    "move it elsewhere, such as below /opt"
                )
        return value

    @field_validator("run_as")
    @classmethod
    def _range(cls, value: str) -> str:
        first, dash, last = value.partition(":")[0].partition("-")
        if dash and not 0 < int(first) <= int(last):
            raise ValueError("a range must begin above 0 and not end before it begins")
        return value


class TimeoutSettings(Group):
    """How long a task may run. What is over its time is ended with exit code 124."""

    task: float | None = Field(
        default=None,
        gt=0,
        description="One attempt, from its start to the end of its last executor (seconds); null: no limit.",
    )
    executor: float | None = Field(default=None, gt=0, description="One executor (seconds); null: no limit.")


class Defaults(Group):
    """What a task needs that does not say so."""

    cpu_cores: float = Field(default=1.0, gt=0, description="CPU cores.")
    ram_gb: float = Field(default=2.0, gt=0, description="Memory (GB, 10⁹ bytes).")
    disk_gb: float = Field(default=0.0, ge=0, description="Disk (GB); 0 reserves none.")


class AgentPool(Group):
    """A pool of agents. An agent is in the pool of its token."""

    name: str = Field(pattern=POOL, description="Its name, as in `tesgate token create --kind agent --pool NAME`.")
    callers: Words = Field(
        default=[], description="Who may use it, by name. With neither callers nor groups it is everybody's."
    )
    groups: Words = Field(default=[], description="Whose members may use it.")


class AgentSettings(Group):
    """The agent that `serve` starts on this host."""

    start: bool = Field(default=True, description="Start one.", json_schema_extra={"flag": "--agent/--no-agent"})
    cpus: float | None = Field(default=None, gt=0, description="CPU cores to offer; null: all.")
    ram_gb: float | None = Field(default=None, gt=0, description="Memory to offer (GB); null: what the host has.")
    disk_gb: float | None = Field(default=None, gt=0, description="Disk to offer (GB); null: what is free.")
    scratch: Path | None = Field(default=None, description="Scratch directory; null: `agent/` in the data directory.")
    idle_exit: Seconds = Field(default=60.0, description="It ends after so long with no task and no gateway (seconds).")
    pool: str = Field(default="default", pattern=POOL, description="Pool that it belongs to.")
    labels: dict[str, str] = Field(
        default={}, description="Words about this host that tasks can ask for, such as `disk: ssd`."
    )
    zones: Words = Field(default=[], description="Zones that this host is in (`resources.zones` of tasks).")
    gpus: int | None = Field(
        default=None, ge=0, le=1024, description="NVIDIA GPUs to offer; null: those that are found."
    )
    ca_file: Path | None = Field(
        default=None,
        description="Authorities that this agent trusts for the gateway's certificate; null: those of the system.",
    )
