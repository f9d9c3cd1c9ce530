"""Object stores that speak S3: where they are, who the gateway is there, and what it lets whom read and write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator
from pydantic.config import JsonDict

from tesgate.config.types import Group, Words

__all__ = ["SECRET", "S3Endpoint", "S3Grant", "S3Settings", "SecretPlace"]

_PLACE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/.+")


def _place(value: str) -> str:
    # The value is perhaps a secret that somebody wrote here by mistake: no message quotes it.
    if _PLACE.fullmatch(value) is None:
        raise ValueError("must say where the secret is (`env:NAME` or `file:/path`), not what it is")
    return value


SecretPlace = Annotated[str, AfterValidator(_place)]
"""Where a secret is to be read: ``env:NAME`` or ``file:/path``. Files are read again when they change.

Its fields say `SECRET`, so that no message shows what was given.
"""

SECRET: JsonDict = {"secret": True}


def _buckets(value: list[str]) -> list[str]:
    for item in value:
        if not item or "://" in item or item.startswith("/") or "*" in item[:-1]:
            raise ValueError("must be names such as `bucket`, `bucket/prefix/` or `lab-*`")
    return value


Buckets = Annotated[Words, AfterValidator(_buckets)]
"""Buckets and prefixes, as `storage.s3.urls.covers` reads them."""


class S3Grant(Group):
    """Who may read and write what at an endpoint."""

    who: Words = Field(
        default=["*"],
        min_length=1,
        description="Owners of tasks by name, groups as `group:NAME`, or `*` for everybody.",
    )
    read: Buckets = Field(
        default=[],
        description="Buckets and prefixes, as in `buckets`, that inputs may come from. `{owner}` and `{group}` "
        "stand for the task's.",
    )
    write: Buckets = Field(default=[], description="The same for outputs.")


class S3Endpoint(Group):
    """One object store."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="Its name in messages and rows. Keep it while tasks run.",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        description="Address, such as `https://minio.example.org:9000`; null: Amazon's.",
    )
    region: str | None = Field(
        default=None, description="Region; null: the bucket's own where the store names it, else `us-east-1`."
    )
    style: Literal["auto", "path", "virtual"] = Field(
        default="auto",
        description="Where the bucket's name goes: into the path or into the host name; `auto`: `virtual` at Amazon, "
        "`path` elsewhere. What is no host name goes into the path.",
    )
    buckets: Buckets = Field(
        default=["*"],
        description="What it serves: `bucket`, `bucket/prefix/`, or the beginning of one with `*` at its end. The "
        "first endpoint that serves a URL gets it.",
    )
    schemes: Words = Field(default=["s3"], description="Schemes of the URLs that it serves: `s3`, `gs`.")
    anonymous: bool = Field(default=False, description="Public buckets, read without credentials.")
    profile: str | None = Field(
        default=None, min_length=1, description="Profile of the AWS configuration files to use; null: the usual chain."
    )
    credentials_file: Path | None = Field(
        default=None,
        description="File in the form of `~/.aws/credentials`, of which `profile` (or `default`) is taken; read again "
        "when it changes.",
    )
    access_key_id: SecretPlace | None = Field(
        default=None, json_schema_extra=SECRET, description="Where the key's id is: `env:NAME`, `file:/path`."
    )
    secret_access_key: SecretPlace | None = Field(
        default=None, json_schema_extra=SECRET, description="Where the secret key is."
    )
    session_token: SecretPlace | None = Field(
        default=None, json_schema_extra=SECRET, description="Where the session token is, if there is one."
    )
    role_arn: str | None = Field(default=None, min_length=1, description="Role to assume with these credentials.")
    external_id: SecretPlace | None = Field(
        default=None, json_schema_extra=SECRET, description="Where the external id is that the role asks for."
    )
    sts_url: str | None = Field(
        default=None, pattern=r"^https?://[^?#@\s]+$", description="Address of STS for `role_arn`; null: Amazon's."
    )
    ca_file: Path | None = Field(default=None, description="Certificates (PEM) to trust in place of the system's.")
    request_checksum: Literal["auto", "none", "crc32", "crc32c", "crc64nvme", "sha1", "sha256"] = Field(
        default="auto",
        description="Checksum that uploads carry for the store to check; `auto`: `crc32` at Amazon, none elsewhere "
        "(the ETags are compared).",
    )
    requester_pays: bool = Field(default=False, description="Pay for requests to others' buckets.")
    encryption: Literal["none", "AES256", "aws:kms"] = Field(
        default="none", description="Server-side encryption to ask for; `none`: the bucket's own default."
    )
    kms_key_id: str | None = Field(default=None, min_length=1, description="Key of `aws:kms`; null: the account's.")
    storage_class: str | None = Field(
        default=None, pattern=r"^[A-Z_]{1,40}$", description="Storage class of outputs, such as `STANDARD_IA`."
    )
    part_mb: int = Field(
        default=16, ge=5, le=5120, description="Size of parts of large outputs (MiB); grows so that 10,000 are enough."
    )
    access: list[S3Grant] = Field(
        default=[],
        description="Who may read and write what. Empty: everybody all that the endpoint serves, which is only allowed "
        "where `auth.mode` is `none`.",
    )

    @field_validator("schemes")
    @classmethod
    def _schemes(cls, value: list[str]) -> list[str]:
        if not value or not set(value) <= {"s3", "gs"}:
            raise ValueError("must be `s3`, `gs` or both")
        return value

    def check(self) -> list[str]:
        """Rules that concern several of its settings; one line for each that is broken."""
        lines: list[str] = []
        place = f"s3.endpoints.{self.name}"
        keys = (self.access_key_id, self.secret_access_key)
        if any(keys) != all(keys) or (self.session_token and not all(keys)):
            lines.append(f"{place}: access_key_id and secret_access_key belong together; give both")
        ways = [
            name
            for name, used in (
                ("anonymous", self.anonymous),
                ("credentials_file", self.credentials_file is not None),
                ("access_key_id", any(keys)),
            )
            if used
        ]
        if self.profile and self.credentials_file is None:
            ways.append("profile")
        if len(ways) > 1:
            lines.append(f"{place}: {' and '.join(ways)} exclude each other; keep one")
        if self.anonymous and self.role_arn:
            lines.append(f"{place}.role_arn: cannot be assumed without credentials; leave anonymous out")
        if self.role_arn is None and (self.external_id or self.sts_url):
            lines.append(f"{place}: external_id and sts_url mean nothing without role_arn")
        if self.kms_key_id and self.encryption != "aws:kms":
            lines.append(f"{place}.kms_key_id: needs encryption `aws:kms`")
        for what, path in (("credentials_file", self.credentials_file), ("ca_file", self.ca_file)):
            if path is not None and not path.is_absolute():
                lines.append(f"{place}.{what}: must be an absolute path")
        if self.anonymous and any(grant.write for grant in self.access):
            lines.append(f"{place}.access: nothing can be written without credentials; leave `write` or anonymous out")
        return lines


class S3Settings(Group):
    """Object stores that tasks read from and write to by `s3://bucket/key`."""

    endpoints: list[S3Endpoint] = Field(default=[], description="The stores; the first that serves a URL gets it.")
