"""Which workspace the settings name."""

from __future__ import annotations

from tesgate.app.places import DataDir
from tesgate.config import S3Endpoint, Settings
from tesgate.errors import ConfigError
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location, UrlRefused, covers, may_meet, parse
from tesgate.storage.s3.workspace import ObjectWorkspace
from tesgate.storage.workspace import FileWorkspace, Workspace

__all__ = ["open_workspace", "workspace_place"]


def workspace_place(settings: Settings) -> tuple[S3Endpoint, Location] | None:
    """Where the workspace is, if it is one of objects. Raises `ConfigError`."""
    if settings.workspace is None:
        return None
    try:
        at = parse(settings.workspace)
    except UrlRefused as error:
        raise ConfigError(f"workspace: {settings.workspace} {error.why}") from None
    serving = next(
        (
            endpoint
            for endpoint in settings.s3.endpoints
            if "s3" in endpoint.schemes and covers(endpoint.buckets, at.bucket, at.prefix)
        ),
        None,
    )
    if serving is None:
        raise ConfigError(f"workspace: {settings.workspace} is on none of s3.endpoints; add one that serves its bucket")
    if serving.anonymous:
        raise ConfigError(
            f"workspace: endpoint {serving.name} writes nothing, without credentials; give it some, or take another"
        )
    # Several endpoints may lead to one store, with other rights each.
    for endpoint in settings.s3.endpoints:
        if not may_meet(endpoint.buckets, at.bucket, at.prefix):
            continue
        for grant in endpoint.access:
            if may_meet([*grant.read, *grant.write], at.bucket, at.prefix):
                raise ConfigError(
                    f"workspace: the access of endpoint {endpoint.name} gives {', '.join(grant.who)} what may be "
                    f"everybody's logs in {settings.workspace}; choose a bucket or prefix that no grant covers"
                )
    return serving, at


def open_workspace(settings: Settings, place: DataDir) -> Workspace:
    """Nothing is asked of it yet. Raises `ConfigError`."""
    most = settings.logs.max_bytes
    found = workspace_place(settings)
    if found is None:
        return FileWorkspace(place.logs, max_bytes=most)
    endpoint, at = found
    return ObjectWorkspace(store=ObjectStore(endpoint), place=at, max_bytes=most)
