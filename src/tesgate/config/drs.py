"""GA4GH DRS: where objects' ids are resolved, and who the gateway is there."""

from __future__ import annotations

from pydantic import Field

from tesgate.config.s3 import SECRET, SecretPlace
from tesgate.config.types import Group, Words

__all__ = ["DrsHost", "DrsSettings"]


class DrsHost(Group):
    """A DRS server that needs more than its name."""

    host: str = Field(
        pattern=r"^[^\s/@?#]+$",
        description="What stands in `drs://host/id` (`host`, `host:port`), or the namespace of compact ids.",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^?#@\s]+$",
        description="Where its `/ga4gh/drs/v1` lies, such as `https://drs.example.org`; null: `https://` and the host.",
    )
    token: SecretPlace | None = Field(
        default=None,
        json_schema_extra=SECRET,
        description="Where a bearer token is (`env:NAME`, `file:/path`); sent to this server alone.",
    )
    who: Words = Field(
        default=["*"],
        min_length=1,
        description="Whose tasks may use it: owners, groups as `group:NAME`, or `*` for everybody.",
    )


class DrsSettings(Group):
    """How `drs://` inputs are resolved. Addresses must be allowed by `url_policy`."""

    hosts: list[DrsHost] = Field(default=[], description="Servers with a token or another address.")
    registry: str | None = Field(
        default="https://registry.api.identifiers.org",
        pattern=r"^https?://[^?#@\s]+$",
        description="Registry of compact ids (`drs://namespace:id`); null: only those of `hosts`.",
    )
