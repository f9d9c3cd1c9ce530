"""Where the keys of an endpoint come from, and that they are read again when they rotate.

The standard chain, profiles and roles are botocore's; files and variables that the configuration names are read here.
What was read stays until its file changes or a store says that it is not valid any more (`forget`).
"""

from __future__ import annotations

import configparser
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import structlog
from aiobotocore.config import AioConfig
from aiobotocore.credentials import (
    AioAssumeRoleCredentialFetcher,
    AioCredentialResolver,
    AioCredentials,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError

from tesgate.config import S3Endpoint
from tesgate.storage.s3.signing import Keys
from tesgate.storage.secrets import SecretMissing, read_secret

__all__ = ["Credentials", "NoCredentials"]

log = structlog.get_logger(__name__)

LOOK_AGAIN = 0.5
"""Seconds between two looks at whether files changed. A runner whose requests are refused asks for others at once."""
ROLE_SECONDS = 3600


class NoCredentials(Exception):
    """No keys can be had; the message is half a sentence without any value."""


class Credentials:
    """The keys of one endpoint, now."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        self._endpoint = endpoint
        self._lock = anyio.Lock()
        self._current: Any = None
        self._marks: list[tuple[str, int, int]] = []
        self._looked = 0.0

    async def keys(self) -> Keys | None:
        """What to sign with; None: not at all. Raises `NoCredentials`."""
        if self._endpoint.anonymous:
            return None
        current = await self._live()
        try:
            frozen = await current.get_frozen_credentials()
        except (BotoCoreError, ClientError, OSError) as error:
            # Their messages may quote what they were given; the kind alone is safe.
            raise NoCredentials(f"the credentials cannot be renewed ({_kind(error)})") from None
        ends = getattr(current, "_expiry_time", None)
        return Keys(
            frozen.access_key, frozen.secret_key, frozen.token, ends.timestamp() if isinstance(ends, datetime) else None
        )

    def forget(self) -> None:
        """A store refused the keys: the next request reads them anew."""
        self._current = None

    def session(self, loader: Any) -> AioSession:
        """A session whose clients sign with `keys`, whatever they are at that moment. `loader`: of its models."""
        session = AioSession()
        session.register_component("data_loader", loader)
        session.register_component("credential_provider", AioCredentialResolver([_Provider(self)]))
        return session

    async def _live(self) -> Any:
        async with self._lock:
            now = time.monotonic()
            if self._current is None or now - self._looked > LOOK_AGAIN:
                self._looked = now
                marks = _marks(self._files())
                if self._current is None or marks != self._marks:
                    self._current = await self._read()
                    self._marks = marks
            return self._current

    def _files(self) -> list[Path]:
        endpoint = self._endpoint
        found = [
            Path(place[5:])
            for place in (endpoint.access_key_id, endpoint.secret_access_key, endpoint.session_token)
            if place is not None and place.startswith("file:")
        ]
        if endpoint.credentials_file is not None:
            found.append(endpoint.credentials_file)
        elif endpoint.access_key_id is None:
            home = Path("~/.aws").expanduser()
            found.append(Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"))
            found.append(Path(os.environ.get("AWS_CONFIG_FILE") or home / "config"))
        return found

    async def _read(self) -> Any:
        source = await self._source()
        endpoint = self._endpoint
        if endpoint.role_arn is None:
            return source
        arguments: dict[str, Any] = {"RoleSessionName": "tesgate", "DurationSeconds": ROLE_SECONDS}
        if endpoint.external_id is not None:
            arguments["ExternalId"] = _value(endpoint.external_id, "external_id")
        fetcher = AioAssumeRoleCredentialFetcher(self._sts, source, endpoint.role_arn, extra_args=arguments, cache={})
        return AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")

    def _sts(self, service: str, **options: Any) -> Any:
        endpoint = self._endpoint
        return AioSession().create_client(
            service,
            region_name=endpoint.region or "us-east-1",
            endpoint_url=endpoint.sts_url,
            verify=str(endpoint.ca_file) if endpoint.ca_file and endpoint.sts_url else None,
            config=AioConfig(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}),
            **options,
        )

    async def _source(self) -> Any:
        endpoint = self._endpoint
        if endpoint.access_key_id is not None and endpoint.secret_access_key is not None:
            token = endpoint.session_token
            return AioCredentials(
                _value(endpoint.access_key_id, "access_key_id"),
                _value(endpoint.secret_access_key, "secret_access_key"),
                None if token is None else _value(token, "session_token"),
            )
        if endpoint.credentials_file is not None:
            return _from_file(endpoint.credentials_file, endpoint.profile or "default")
        try:
            found = await AioSession(profile=endpoint.profile).get_credentials()
        except (BotoCoreError, ClientError, OSError) as error:
            raise NoCredentials(f"the credentials cannot be read ({_kind(error)})") from None
        if found is None:
            raise NoCredentials(
                "no credentials were found; set them for the endpoint, or `anonymous` for public buckets"
            )
        return found


class _Provider:
    """Puts `Credentials` into a session of botocore."""

    METHOD = "tesgate"
    CANONICAL_NAME = "tesgate"

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def load(self) -> AioCredentials:
        return _Live(self._credentials.keys)


class _Live(AioCredentials):  # type: ignore[misc]
    """What botocore's signer asks before each request."""

    def __init__(self, keys: Callable[[], Awaitable[Keys | None]]) -> None:
        super().__init__("-", "-", method="tesgate")
        self._keys = keys

    async def get_frozen_credentials(self) -> Any:
        keys = await self._keys()
        if keys is None:
            raise NoCredentials("there are none")
        return await AioCredentials(keys.access_key, keys.secret_key, keys.token).get_frozen_credentials()


def _from_file(path: Path, profile: str) -> AioCredentials:
    parser = configparser.RawConfigParser()
    try:
        with path.open(encoding="utf-8") as file:
            parser.read_file(file)
        section = parser[profile]
        return AioCredentials(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
        )
    except (OSError, UnicodeError, KeyError, configparser.Error) as error:
        raise NoCredentials(f"the section [{profile}] of {path} cannot be read ({_kind(error)})") from None


def _value(place: str, what: str) -> str:
    try:
        return read_secret(place, what)
    except SecretMissing as error:
        raise NoCredentials(str(error)) from None


def _marks(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    found = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_mtime_ns, status.st_ino))
    return found


def _kind(error: BaseException) -> str:
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "ClientError"))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
