"""Kinds of values that settings have."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

__all__ = ["DatabaseURL", "Group", "Seconds", "Words", "words"]

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def words(value: Any) -> Any:
    """A list from an environment variable: JSON, or words with commas between them."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


Words = Annotated[list[str], NoDecode, BeforeValidator(words)]


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


class Group(BaseModel):
    """Settings that belong together. An unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
