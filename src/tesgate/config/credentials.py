"""Named credentials of FTP and HTTP servers: who may use them, and for which URLs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from tesgate.config.types import Group, Words

__all__ = ["Credential"]

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset(("connection", "content-length", "host", "range", "te", "trailer", "transfer-encoding", "upgrade"))


class Credential(Group):
    """What to log in with below one URL. Of several that fit a URL and its task's owner, the longest prefix wins."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name for messages and logs.")
    prefix: str = Field(
        description="Serves this URL and all below it, such as `ftp://ftp.example.org/lab/`; scheme ftp, ftps, http or "
        "https, compared by whole components of the path.",
        json_schema_extra={"secret": True},  # somebody may have written a password into it
    )
    user: str | None = Field(default=None, description="Who to log in as; null: anonymous (FTP), or only headers.")
    password: SecretStr | None = Field(
        default=None, description="Its password; better in a file.", json_schema_extra={"secret": True}
    )
    password_file: Path | None = Field(
        default=None, description="File that holds the password and may rotate: it is read for each question."
    )
    headers: dict[str, SecretStr] = Field(
        default={},
        description="For http(s): headers with their values, sent to the URL's own origin only.",
        json_schema_extra={"secret": True},
    )
    header_files: dict[str, Path] = Field(
        default={}, description="For http(s): headers whose values are in files that may rotate."
    )
    owners: Words = Field(default=[], description="Task owners who may use it. Empty together with groups: everybody.")
    groups: Words = Field(default=[], description="Groups whose members may use it.")
    tls: Literal["required", "offered", "never"] | None = Field(
        default=None,
        description="For ftp: `required`: TLS with a certificate that verifies, or nothing is sent; `offered`: TLS "
        "where the server offers it, whoever it proves to be; `never`. Null: `required` with a user, else `never`.",
    )
    ca_file: Path | None = Field(
        default=None,
        description="For FTP with TLS: certificates (PEM, on the gateway) to trust in place of the system's.",
    )
    sessions: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="For FTP: sessions that one agent opens to this server at most, all its tasks together; null: 4.",
    )

    @field_validator("prefix")
    @classmethod
    def _prefix(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError("must be a URL such as ftp://ftp.example.org/lab/") from None
        if parts.scheme.lower() not in ("ftp", "ftps", "http", "https") or not parts.hostname or port == 0:
            raise ValueError(
                "must be a URL of ftp, ftps, http or https with a host, such as ftp://ftp.example.org/lab/"
            )
        if "@" in parts.netloc:
            raise ValueError("must not hold a user; write it as `user`")
        if parts.query or parts.fragment:
            raise ValueError("must hold neither ? nor #")
        return value

    @field_validator("headers", "header_files")
    @classmethod
    def _names(cls, value: dict[str, SecretStr | Path]) -> dict[str, SecretStr | Path]:
        for name, content in value.items():
            if _HEADER.fullmatch(name) is None or name.lower() in _OURS:
                raise ValueError(f"{name[:60]!r} is not a header that can be set")
            if isinstance(content, SecretStr) and not _is_line(content.get_secret_value(), "latin-1"):
                raise ValueError(f"the value of {name} must be one line")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        is_ftp = self.prefix[:3].lower() == "ftp"
        if self.password is not None and self.password_file is not None:
            raise ValueError("has both password and password_file; keep one of them")
        has_password = self.password is not None or self.password_file is not None
        if has_password and self.user is None:
            raise ValueError("has a password and no user")
        if self.user is not None and not has_password:
            raise ValueError("has a user and no password; give password_file")
        if self.user is not None and not (self.user and _is_line(self.user)):
            raise ValueError("user must be one line")
        if self.password is not None and not _is_line(self.password.get_secret_value()):
            raise ValueError("password must be one line")
        if is_ftp and (self.headers or self.header_files):
            raise ValueError("headers are for http and https")
        if not is_ftp and (self.tls is not None or self.ca_file is not None or self.sessions is not None):
            raise ValueError("tls, ca_file and sessions are for ftp and ftps")
        double = {name.lower() for name in self.headers} & {name.lower() for name in self.header_files}
        if double:
            raise ValueError(f"header {min(double)} is in both headers and header_files; keep one of them")
        return self


def _is_line(text: str, charset: str = "utf-8") -> bool:
    try:
        return not set(text.encode(charset)) & {0, 10, 13}
    except UnicodeEncodeError:
        return False
