"""The kinds of storage that an attempt has besides the agent's roots and the web."""

from __future__ import annotations

from functools import partial
from typing import Callable, Dict, List

from .gateway import GatewayClient
from .plan import Plan
from .report import AttemptRef
from .transfer.base import Storage
from .transfer.connect import HttpSettings
from .transfer.ftp import FtpServers, FtpStorage
from .transfer.logins import WebLogins
from .transfer.policy import AddressPolicy
from .transfer.s3 import ObjectStorage
from .transfer.threads import Stop

__all__ = ["headers_of", "storages_of"]

_TRIES = 8
"""Failures in a row of one request to an object store, which says SlowDown for minutes when it is busy."""


def storages_of(plan: Plan, client: GatewayClient, *, ftp: FtpServers) -> List[Storage]:
    """Make them for one attempt; they ask `client` for what they may not keep (`access`).

    `ftp`: of the whole agent.
    """
    ask = partial(client.access, AttemptRef(task=plan.task, attempt=plan.attempt), plan.token)
    settings = HttpSettings(ca_file=client.ca_file, tries=_TRIES)
    policy = AddressPolicy(plan.url_policy)
    return [
        ObjectStorage(ask=ask, settings=settings, inputs=plan.inputs, policy=policy),
        FtpStorage(plan, ask=ask, servers=ftp),
    ]


def headers_of(plan: Plan, client: GatewayClient) -> Callable[[str, Stop], Dict[str, str]]:
    """Say who asks for the headers of named credentials for URLs of the web."""
    return WebLogins(partial(client.access, AttemptRef(task=plan.task, attempt=plan.attempt), plan.token)).headers
