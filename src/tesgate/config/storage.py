"""Where files come from and go to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tesgate.config.types import Group, Words

__all__ = ["FileRoot", "UrlPolicySettings"]


class FileRoot(Group):
    """A local directory that tasks may read from and write to by `file://` URL or plain path."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name by which agents say that they have it.")
    path: Path = Field(description="Absolute path, the same on the gateway and on its agents.")
    writable: bool = Field(default=True, description="Outputs may be stored below it.")
    mode: Literal["copy", "mount"] = Field(
        default="copy",
        description="`copy`: tasks get copies, and outputs appear when they are whole. `mount`: for sites whose "
        "clients share the directory with the agents; inputs and DIRECTORY outputs below it are mounted as they are, "
        "writable where the root is: what a task writes is seen at once, also if it fails (docs/security.md).",
    )

    volume: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$",
        description="The named volume of the container engine that this root is; null: a directory at `path`. Tasks "
        "name it by `path`; the agent asks the engine where it lies, unless it is mounted at `path`.",
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute() or ".." in value.parts:
            raise ValueError("must be an absolute path without `..`")
        return value


class UrlPolicySettings(Group):
    """Which addresses URLs of inputs and outputs may lead to, after redirects and name resolution."""

    allow_private: bool = Field(
        default=False,
        description="Allow private, loopback and link-local addresses everywhere (cloud metadata addresses still only "
        "by `allowed_hosts`).",
    )
    allowed_hosts: Words = Field(
        default=[], description="`host`, `host:port` or CIDR networks that are allowed although not global."
    )
