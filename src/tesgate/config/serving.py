"""What the gateway shows to clients: where it listens, who may call, what a request may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from tesgate.config.types import Group, Seconds, Words

__all__ = [
    "AuthSettings",
    "CorsSettings",
    "DialectSettings",
    "Limits",
    "ServerSettings",
    "ServiceSettings",
    "TelemetrySettings",
]


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
    tls_certificate: Path | None = Field(
        default=None,
        description="File with the server's certificate and those of the authorities between it and the root (PEM): "
        "HTTPS is spoken instead of HTTP. Read again when it changes.",
    )
    tls_key: Path | None = Field(
        default=None, description="File with the certificate's private key (PEM, without a passphrase)."
    )
    tls_client_ca: Path | None = Field(
        default=None,
        description="Every client, agents too, must show a certificate of the authorities in this file (PEM).",
    )
    shutdown_grace: Seconds = Field(
        default=10.0, description="Longest time that open requests are waited for (seconds)."
    )
    max_connections: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="Clients' connections at most, those in a TLS handshake too; each open request holds some 30 kB, "
        "with TLS some 100 kB. Beyond, an idle one is closed, or the new one answered with 503.",
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


class DialectSettings(Group):
    """How tasks look at `/v1`, to clients of TES 1.0 (`/ga4gh/tes/v1` is TES 1.1 and has no settings)."""

    queued_as_initializing: bool = Field(
        default=False,
        description="Show tasks that wait as INITIALIZING instead of QUEUED. For Galaxy's Pulsar, which takes QUEUED "
        "for a failure; other clients then cannot tell waiting from running.",
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
