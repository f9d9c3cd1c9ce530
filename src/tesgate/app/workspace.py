"""Which workspace the settings name."""

from __future__ import annotations

from tesgate.app.places import DataDir
from tesgate.config import Settings
from tesgate.errors import ConfigError
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import UrlRefused, covers, parse
from tesgate.storage.s3.workspace import ObjectWorkspace
from tesgate.storage.workspace import FileWorkspace, Workspace

__all__ = ["open_workspace"]


def open_workspace(settings: Settings, place: DataDir) -> Workspace:
    """Nothing is asked of it yet. Raises `ConfigError`."""
    most = settings.logs.max_bytes
    if settings.workspace is None:
        return FileWorkspace(place.logs, max_bytes=most)
    try:
        at = parse(settings.workspace)
    except UrlRefused as error:
        raise ConfigError(f"workspace: {settings.workspace} {error.why}") from None
    serving = [
        endpoint
        for endpoint in settings.s3.endpoints
        if "s3" in endpoint.schemes and covers(endpoint.buckets, at.bucket, at.prefix)
    ]
    if not serving:
        raise ConfigError(f"workspace: {settings.workspace} is on none of s3.endpoints; add one that serves its bucket")
    for grant in serving[0].access:
        if covers([*grant.read, *grant.write], at.bucket, at.prefix):
            raise ConfigError(
                f"workspace: the access of endpoint {serving[0].name} gives {', '.join(grant.who)} everybody's logs in "
                f"{settings.workspace}; choose a bucket or prefix that no grant covers"
            )
    return ObjectWorkspace(store=ObjectStore(serving[0]), place=at, max_bytes=most)
