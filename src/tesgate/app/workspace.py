"""Which workspace the settings name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from tesgate.app.places import DataDir
from tesgate.config import S3Endpoint, Settings
from tesgate.errors import ConfigError, Unavailable
from tesgate.storage.s3.store import ObjectStore
from tesgate.storage.s3.urls import Location, UrlRefused, covers, may_meet, parse
from tesgate.storage.s3.workspace import ObjectWorkspace
from tesgate.storage.workspace import FileWorkspace, Workspace

__all__ = ["claim_workspace", "keeps_logs", "open_workspace", "workspace_place"]

log = structlog.get_logger(__name__)


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


async def claim_workspace(workspace: Workspace, deployment: str) -> None:
    """See that a workspace of objects is this deployment's. Raises `ConfigError` where it is another's.

    A store that is away keeps nobody from starting: nothing is removed there before this is known (`keeps_logs`).
    """
    if not isinstance(workspace, ObjectWorkspace):
        return
    try:
        owner = await workspace.claim(deployment)
    except Unavailable as error:
        log.warning("whose the workspace is could not be read", why=str(error))
        return
    if owner != deployment:
        raise ConfigError(
            f"workspace: it belongs to the deployment {owner}, and this one is {deployment}: each would remove the "
            "other's logs; give this one a prefix of its own (or, if that deployment is gone for good, remove the "
            "object `deployment` below the prefix)"
        )


def keeps_logs(
    workspace: Workspace, deployment: str, hold: Callable[[], Awaitable[bool]]
) -> Callable[[], Awaitable[bool]] | None:
    """Whether a replica may remove logs in a round: None for files, which nobody shares.

    `hold`: takes or keeps the part among this deployment's replicas.
    """
    if not isinstance(workspace, ObjectWorkspace):
        return None

    async def is_ours() -> bool:
        if (owner := await workspace.claim(deployment)) != deployment:
            log.error("the workspace belongs to another deployment; no log is removed", owner=owner)
            return False
        return await hold()

    return is_ours
