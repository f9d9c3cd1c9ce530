"""Every setting together. Reference page and JSON schema are made from this."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from tesgate.config.compute import AgentPool, AgentSettings, Defaults, RuntimeSettings, TimeoutSettings
from tesgate.config.credentials import Credential
from tesgate.config.drs import DrsSettings
from tesgate.config.keeping import ControlSettings, LogSettings, PoolSettings, RetentionSettings, RetrySettings
from tesgate.config.s3 import S3Settings
from tesgate.config.serving import (
    AuthSettings,
    CorsSettings,
    DialectSettings,
    Limits,
    ServerSettings,
    ServiceSettings,
    TelemetrySettings,
)
from tesgate.config.storage import FileRoot, UrlPolicySettings
from tesgate.config.types import DatabaseURL, words

__all__ = ["ENV_PREFIX", "Settings"]

ENV_PREFIX = "TESGATE_"


def _data_home() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG rules: a relative value is to be ignored.
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "share"
    return root / "tesgate"


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
    database_url_file: Path | None = Field(
        default=None,
        description="File that holds `database_url` and nothing else: a mounted secret, or a credential of systemd.",
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
    roles: Annotated[list[Literal["api", "control"]], NoDecode, BeforeValidator(words)] = Field(
        default=["api", "control"],
        min_length=1,
        description="What this replica does: answer requests, follow tasks, or both.",
        json_schema_extra={"flag": "--roles"},
    )
    workspace: str | None = Field(
        default=None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9._/-]*)?$",
        description="Where whole logs are kept: `s3://bucket/prefix` on the first of `s3.endpoints` that serves it, "
        "for all replicas together; null: in the data directory, each replica for itself.",
    )
    file_roots: list[FileRoot] = Field(default=[], description="Local directories that tasks may use.")
    pools: list[AgentPool] = Field(
        default=[],
        description="The pools of agents that get tasks, in the order in which they are filled. Empty: all pools, the "
        "one of this gateway's own agent first, and open to everybody.",
    )
    credentials: list[Credential] = Field(
        default=[],
        description="What to log in with on FTP and HTTP servers.",
        json_schema_extra={"secret": True},
    )
    server: ServerSettings = ServerSettings()
    service: ServiceSettings = ServiceSettings()
    dialect: DialectSettings = DialectSettings()
    database: PoolSettings = PoolSettings()
    auth: AuthSettings = AuthSettings()
    cors: CorsSettings = CorsSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    url_policy: UrlPolicySettings = UrlPolicySettings()
    s3: S3Settings = S3Settings()
    drs: DrsSettings = DrsSettings()
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
        names = [credential.name for credential in self.credentials]
        lines.extend(
            f"credentials: two have the name {name!r}; rename one of them"
            for name in sorted({*names})
            if names.count(name) > 1
        )
        lines.extend(self._check_s3())
        if self.auth.mode != "none" and self.runtime.engine == "bubblewrap":
            lines.append(
                "runtime.engine: bubblewrap is for a single user and cannot be used with auth.mode `tokens`; use "
                "docker, or start without an agent (--no-agent) and run agents with a container engine elsewhere"
            )
        names = [pool.name for pool in self.pools]
        double = sorted({name for name in names if names.count(name) > 1})
        lines.extend(f"pools: two pools have the name {name!r}; keep one of them" for name in double)
        if names and self.agent.start and self.runtime.engine != "none" and self.agent.pool not in names:
            lines.append(
                f"agent.pool: {self.agent.pool!r} is not among the pools ({', '.join(names)}), so the agent of this "
                "host would get no tasks; add it there, or start without an agent (--no-agent)"
            )
        if fault := self._tls_fault():
            lines.append(fault)
        if self.logs.tail_bytes > self.logs.max_bytes > 0:
            lines.append(f"logs.tail_bytes: must not be above logs.max_bytes ({self.logs.max_bytes})")
        return lines

    def _check_s3(self) -> list[str]:
        endpoints = self.s3.endpoints
        names = [endpoint.name for endpoint in endpoints]
        lines = [
            f"s3.endpoints: two endpoints have the name {name!r}; give each its own"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        for endpoint in endpoints:
            lines.extend(endpoint.check())
            if self.auth.mode != "none" and not endpoint.access:
                lines.append(
                    f"s3.endpoints.{endpoint.name}.access: say who may read and write what; everybody would use the "
                    "gateway's account"
                )
        if self.workspace is not None and not any("s3" in endpoint.schemes for endpoint in endpoints):
            lines.append("workspace: needs an endpoint in s3.endpoints that serves its bucket; add one")
        return lines

    def _tls_fault(self) -> str | None:
        server, agent = self.server, self.agent.start and self.runtime.engine != "none"
        if (server.tls_certificate is None) != (server.tls_key is None):
            return "server.tls_certificate: needs server.tls_key beside it, and the other way round; give both or none"
        if server.tls_certificate is None:
            if server.tls_client_ca is not None:
                return "server.tls_client_ca: means nothing without server.tls_certificate; add that, or leave it out"
        elif agent and server.tls_client_ca is not None:
            return (
                "server.tls_client_ca: the agent that `serve` starts has no certificate; start without it "
                "(--no-agent), and `tesgate agent` with --certificate and --key"
            )
        elif agent and not (server.public_url or "").startswith("https://"):
            return (
                "server.public_url: the agent of this host needs an https:// URL whose name is in "
                "server.tls_certificate; give it, or start without an agent (--no-agent)"
            )
        return None

    def field(self, path: str) -> Any:
        """Value of a dotted setting, such as ``server.port``."""
        value: Any = self
        for part in path.split("."):
            value = getattr(value, part)
        return value
