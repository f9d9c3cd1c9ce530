"""How and where commands run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tesgate.config.types import Group, Seconds

__all__ = ["AgentSettings", "Defaults", "RuntimeSettings", "TimeoutSettings"]


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
        pattern=r"^(auto|image|agent|\d{1,10}:\d{1,10})$",
        description="Who the commands are: `image` (the image's own user), `agent` (the agent's user), `UID:GID`, or "
        "`auto` (`image` where the agent is root, else `agent`).",
    )
    pids: int | None = Field(
        default=4096, ge=16, description="Processes that one executor may have at most; null: no limit."
    )


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


class AgentSettings(Group):
    """The agent that `serve` starts on this host."""

    start: bool = Field(default=True, description="Start one.", json_schema_extra={"flag": "--agent/--no-agent"})
    cpus: float | None = Field(default=None, gt=0, description="CPU cores to offer; null: all.")
    ram_gb: float | None = Field(default=None, gt=0, description="Memory to offer (GB); null: what the host has.")
    disk_gb: float | None = Field(default=None, gt=0, description="Disk to offer (GB); null: what is free.")
    scratch: Path | None = Field(default=None, description="Scratch directory; null: `agent/` in the data directory.")
    idle_exit: Seconds = Field(default=60.0, description="It ends after so long with no task and no gateway (seconds).")
    pool: str = Field(default="default", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Pool that it belongs to.")
    labels: dict[str, str] = Field(default={}, description="Free words about this host.")
