"""Every setting: its type, unit, default and words. Reference page and JSON schema are made from this."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

__all__ = [
    "ENV_PREFIX",
    "AgentSettings",
    "AuthSettings",
    "ControlSettings",
    "CorsSettings",
    "Defaults",
    "FileRoot",
    "Limits",
    "LogSettings",
    "PoolSettings",
    "RetentionSettings",
    "RetrySettings",
    "RuntimeSettings",
    "ServerSettings",
    "ServiceSettings",
    "Settings",
    "TelemetrySettings",
    "TimeoutSettings",
    "UrlPolicySettings",
]

ENV_PREFIX = "TESGATE_"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _words(value: Any) -> Any:
    """A list from an environment variable: JSON, or words with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


Words = Annotated[list[str], NoDecode, BeforeValidator(_words)]


def _database_url(value: str) -> str:
    """Refuse what no server could be found by. The value may hold a password, so no message quotes any part of it."""
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("postgresql", "postgres") or not value.startswith(f"{parts.scheme}://"):
        raise ValueError("must be a URL such as postgresql://user:password@host:5432/database")
    hosts = parts.netloc.rpartition("@")[2]
    if parts.fragment or "@" in parts.path or "@" in parts.query:
        raise ValueError("has a # / ? or @ in user or password, which must be written as %23 %2F %3F or %40")
    if not all(re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{1,5})?", host) for host in hosts.split(",")):
        raise ValueError("has a port that is not a number (write special characters of the password as %23, %2F, …)")
    return value


DatabaseURL = Annotated[str, AfterValidator(_database_url)]


def _data_home() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG rules: a relative value is to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "tesgate"


class Group(BaseModel):
    """Settings that belong together. An unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Group):
    """Where the gateway listens."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.", json_schema_extra={"flag": "--host"})
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port; 0 takes a free one.", json_schema_extra={"flag": "--port"}
    )
    public_url: str | None = Field(
        default=None,
        description="URL under which runners and agents reach this gateway; made from host and port where unset.",
    )
    shutdown_grace: Seconds = Field(
        default=10.0, description="Longest time that open requests are waited for (seconds)."
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Clients' connections at most, each open request holds some 30 kB; beyond, an idle one is closed, "
        "or the new one answered with 503.",
    )
    keep_alive: Seconds = Field(default=65.0, description="How long an idle connection is kept open (seconds).")
    client_timeout: Seconds = Field(
        default=30.0,
        description="How long a client may keep the gateway waiting: for the head of a request, for a body that brings "
        "less than 1 KiB a second, until it takes an answer (seconds).",
    )


class ServiceSettings(Group):
    """What service info says about the deployment."""

    id: str = Field(default="org.tesgate", min_length=1, description="Unique id, reverse domain name notation.")
    name: str = Field(default="tesgate", min_length=1, description="Name for people.")
    description: str = Field(
        default="A GA4GH TES gateway: it stages files in, runs containers and stages files out.",
        description="What this deployment is for.",
    )
    organization_name: str = Field(default="Unnamed organization", min_length=1, description="Who runs it.")
    organization_url: str = Field(default="https://example.org", min_length=1, description="Website of who runs it.")
    contact_url: str | None = Field(default=None, description="URL or `mailto:` of whom to ask.")
    documentation_url: str | None = Field(default=None, description="Where users find help.")
    environment: str | None = Field(default=None, description="Such as `prod`, `test` or `dev`.")
    created_at: str | None = Field(default=None, description="When it was first deployed, RFC 3339.")
    updated_at: str | None = Field(default=None, description="When it was last updated, RFC 3339.")


class PoolSettings(Group):
    """Connections to PostgreSQL."""

    min_size: int = Field(default=2, ge=1, le=1000, description="Connections kept open.")
    max_size: int = Field(default=10, ge=1, le=1000, description="Connections at most, for each replica.")
    command_timeout: Seconds = Field(default=30.0, description="Longest time for one statement (seconds).")
    start_timeout: Seconds = Field(
        default=60.0, description="Longest time for which a database that is away is waited for at start (seconds)."
    )


class AuthSettings(Group):
    """Who may use the gateway."""

    mode: Literal["none", "tokens"] = Field(
        default="none",
        description="`none`: everybody is the caller `anonymous`, and credentials are ignored. "
        "`tokens`: a bearer token (or HTTP Basic with the token as password) is needed.",
        json_schema_extra={"flag": "--auth"},
    )
    tokens_file: Path | None = Field(
        default=None,
        description="File with one `name:token[:group,group][:admin]` on each line (or the same as a YAML list); "
        "read at start and again when it changes.",
    )
    allow_unauthenticated_network: bool = Field(
        default=False,
        description="Listen on addresses other than loopback although `mode` is `none`: "
        "whoever reaches the port can run containers here.",
        json_schema_extra={"flag": "--allow-unauthenticated-network"},
    )
    share_with_group: bool = Field(
        default=False,
        description="Members of a caller's first group see and cancel its tasks; otherwise only their owner "
        "(and admins).",
    )
    cache_seconds: float = Field(
        default=5.0,
        ge=0,
        le=5,
        description="How long a found token is remembered, and so how late a revocation may be seen (seconds).",
    )


class CorsSettings(Group):
    """Whether pages of other origins may call the API from a browser."""

    allow_origins: Words = Field(
        default=[], description="Origins such as `https://portal.example.org`, or `*`. Empty: none."
    )
    allow_credentials: bool = Field(
        default=False, description="Browsers may send credentials along (not together with `*`)."
    )
    max_age: int = Field(default=600, ge=0, description="How long browsers may remember the answer (seconds).")


class FileRoot(Group):
    """A local directory that tasks may read from and write to by `file://` URL or plain path."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name by which agents say that they have it.")
    path: Path = Field(description="Absolute path, the same on the gateway and on its agents.")
    writable: bool = Field(default=True, description="Outputs may be stored below it.")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute() or ".." in value.parts:
            raise ValueError("must be an absolute path without `..`")
        return value


class RuntimeSettings(Group):
    """How agents run containers."""

    engine: Literal["auto", "docker", "bubblewrap", "none"] = Field(
        default="auto",
        description="Container engine; `auto` takes the first that works, `none` runs nothing on this host.",
        json_schema_extra={"flag": "--runtime"},
    )
    docker_socket: str = Field(
        default="/var/run/docker.sock",
        description="Socket of the Docker (or Podman) engine; `DOCKER_HOST` is not read.",
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


class UrlPolicySettings(Group):
    """Which addresses `http(s)://` inputs may lead to, after redirects and name resolution."""

    allow_private: bool = Field(
        default=False,
        description="Allow private, loopback and link-local addresses everywhere (cloud metadata addresses still only "
        "by `allowed_hosts`).",
    )
    allowed_hosts: Words = Field(
        default=[], description="`host`, `host:port` or CIDR networks that are allowed although not global."
    )


class Limits(Group):
    """What one request may hold. A request beyond is refused with 400 or 413."""

    max_body_bytes: int = Field(default=16 << 20, ge=1 << 18, description="Whole body of a request (bytes).")
    max_content_bytes: int = Field(
        default=1 << 20,
        ge=131_072,
        description="`content` of one input (bytes of UTF-8); the specification asks for 128 KiB.",
    )
    max_executors: int = Field(default=1_000, ge=1, description="Executors of one task.")
    max_inputs: int = Field(default=20_000, ge=1, description="Inputs of one task.")
    max_outputs: int = Field(default=20_000, ge=1, description="Outputs of one task.")
    max_volumes: int = Field(default=1_000, ge=1, description="Volumes of one task.")
    max_tags: int = Field(default=1_000, ge=1, description="Tags of one task.")
    max_env: int = Field(default=10_000, ge=1, description="Environment variables of one executor.")
    max_command_bytes: int = Field(
        default=1_900_000,
        ge=4096,
        description="Command and environment of one executor (bytes); Linux takes about 2 MB.",
    )
    max_path_bytes: int = Field(default=4_095, ge=255, description="One container path (bytes).")
    max_name_bytes: int = Field(
        default=65_536, ge=255, description="A task's name, an image's name, one tag's key (bytes)."
    )
    max_cpu_cores: float = Field(default=100_000, gt=0, description="`resources.cpu_cores`.")
    max_ram_gb: float = Field(default=1_000_000, gt=0, le=1_000_000_000, description="`resources.ram_gb` (GB).")
    max_disk_gb: float = Field(default=10_000_000, gt=0, le=1_000_000_000, description="`resources.disk_gb` (GB).")


class Defaults(Group):
    """What a task needs that does not say so."""

    cpu_cores: float = Field(default=1.0, gt=0, description="CPU cores.")
    ram_gb: float = Field(default=2.0, gt=0, description="Memory (GB, 10⁹ bytes).")
    disk_gb: float = Field(default=0.0, ge=0, description="Disk (GB); 0 reserves none.")


class RetrySettings(Group):
    """What happens when the system, not the command, failed."""

    max_attempts: int = Field(default=3, ge=1, le=100, description="Attempts of one task, the first one included.")
    backoff_first: Seconds = Field(default=1.0, description="Wait before the second attempt (seconds).")
    backoff_factor: float = Field(default=4.0, ge=1, description="Each further wait is this much longer.")
    backoff_max: Seconds = Field(default=300.0, description="Longest wait (seconds).")


class ControlSettings(Group):
    """The loops that follow tasks."""

    heartbeat: Seconds = Field(default=2.0, description="How often a replica says that it lives (seconds).")
    trust_window: Seconds = Field(
        default=8.0,
        description="Without a successful heartbeat for so long a replica lets go of all it holds (seconds).",
    )
    adopt_after: Seconds = Field(
        default=15.0, description="Silence after which others take over a replica's tasks (seconds)."
    )
    agent_lost_after: Seconds = Field(
        default=60.0, description="Silence after which an agent's attempts are lost (seconds)."
    )
    publish_lease: Seconds = Field(
        default=30.0, description="How long an attempt may store outputs without a report (seconds)."
    )
    dispatch_interval: Seconds = Field(
        default=1.0, description="How often waiting tasks are looked at, at the latest (seconds)."
    )
    poll_interval: Seconds = Field(
        default=2.0, description="How often attempts of lost agents are looked for (seconds)."
    )
    janitor_interval: Seconds = Field(
        default=60.0, description="How often old and orphaned things are looked for (seconds)."
    )
    crash_limit: int = Field(
        default=5, ge=1, description="A task that crashes its driver so often ends in SYSTEM_ERROR."
    )
    cancel_grace: float = Field(default=10.0, ge=0, description="Between a polite signal and a kill (seconds).")


class RetentionSettings(Group):
    """How long ended tasks are kept."""

    task_days: float | None = Field(
        default=90.0,
        gt=0,
        description="Ended tasks (days), and up to `partition_days` longer where that is less; null: for ever.",
    )
    partition_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="Tasks of so many days lie in one partition and are dropped together (days). Holds for partitions "
        "that are made from now on.",
    )
    log_days: float | None = Field(
        default=30.0, gt=0, description="Their whole logs in the workspace (days); null: for ever."
    )


class LogSettings(Group):
    """How much of stdout and stderr is kept."""

    tail_bytes: int = Field(
        default=10_240, ge=0, le=1 << 20, description="End of each stream that the FULL view shows (bytes)."
    )
    max_bytes: int = Field(
        default=1 << 30, ge=0, description="Each stream in the workspace at most (bytes); 0 keeps none."
    )


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


class TelemetrySettings(Group):
    """What the gateway tells about itself."""

    log_format: Literal["auto", "json", "console"] = Field(
        default="auto",
        description="`auto`: console where stderr is a terminal, else JSON.",
        json_schema_extra={"flag": "--log-format"},
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is written.", json_schema_extra={"flag": "--log-level"}
    )
    metrics: bool = Field(default=True, description="Serve Prometheus metrics at `/metrics`.")


class Settings(BaseSettings):
    """Configuration of tesgate.

    Taken from, the first one wins: the command line, environment variables, the YAML file, the defaults.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, env_ignore_empty=True
    )

    data_dir: Path = Field(
        default_factory=_data_home,
        description="Where this gateway keeps its own files: keys, logs, the embedded database.",
        json_schema_extra={"flag": "--data-dir", "default_text": "$XDG_DATA_HOME/tesgate"},
    )
    database_url: DatabaseURL | None = Field(
        default=None,
        description="PostgreSQL, such as `postgresql://user@host/db`; null: an embedded one in the data directory.",
        json_schema_extra={"flag": "--database-url", "secret": True},
    )
    deployment_id: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9]{8}$",
        description="Eight letters or digits that mark all that this deployment makes; null: taken from the database, "
        "made at first start. A database with another one is refused.",
    )
    secret_key_file: Path | None = Field(
        default=None,
        description="File with at least 32 random bytes, the same for all replicas; null: `secret.key` in data_dir.",
    )
    roles: Annotated[list[Literal["api", "control"]], NoDecode, BeforeValidator(_words)] = Field(
        default=["api", "control"],
        min_length=1,
        description="What this replica does: answer requests, follow tasks, or both.",
        json_schema_extra={"flag": "--roles"},
    )
    file_roots: list[FileRoot] = Field(default=[], description="Local directories that tasks may use.")
    server: ServerSettings = ServerSettings()
    service: ServiceSettings = ServiceSettings()
    database: PoolSettings = PoolSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    url_policy: UrlPolicySettings = UrlPolicySettings()
    limits: Limits = Limits()
    defaults: Defaults = Defaults()
    timeouts: TimeoutSettings = TimeoutSettings()
    retries: RetrySettings = RetrySettings()
    control: ControlSettings = ControlSettings()
    retention: RetentionSettings = RetentionSettings()
    logs: LogSettings = LogSettings()
    agent: AgentSettings = AgentSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """``Settings(...)`` reads nothing behind the caller's back; `load_settings` adds environment and file."""
        return (init_settings,)

    def check(self) -> list[str]:
        """Rules that concern several settings; one line for each that is broken."""
        lines: list[str] = []
        if self.database.min_size > self.database.max_size:
            lines.append(f"database.min_size: must not be above database.max_size ({self.database.max_size}); lower it")
        control = self.control
        if not control.heartbeat < control.trust_window < control.adopt_after:
            lines.append(
                "control.trust_window: must lie between control.heartbeat and control.adopt_after, so that a replica "
                "lets go before others take over"
            )
        if self.cors.allow_credentials and "*" in self.cors.allow_origins:
            lines.append("cors.allow_credentials: browsers refuse it together with origin `*`; name the origins")
        for what in ("name", "path"):
            values = [str(getattr(root, what)) for root in self.file_roots]
            double = sorted({value for value in values if values.count(value) > 1})
            lines.extend(f"file_roots: two roots have the {what} {value!r}; keep one of them" for value in double)
        if self.auth.mode != "none" and self.runtime.engine == "bubblewrap":
            lines.append(
                "runtime.engine: bubblewrap is for a single user and cannot be used with auth.mode `tokens`; use "
                "docker, or start without an agent (--no-agent) and run agents with a container engine elsewhere"
            )
        if self.logs.tail_bytes > self.logs.max_bytes > 0:
            lines.append(f"logs.tail_bytes: must not be above logs.max_bytes ({self.logs.max_bytes})")
        return lines

    def field(self, path: str) -> Any:
        """Value of a dotted setting, such as ``server.port``."""
        value: Any = self
        for part in path.split("."):
            value = getattr(value, part)
        return value
