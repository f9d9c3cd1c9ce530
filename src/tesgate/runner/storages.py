"""The kinds of storage that an attempt has besides the agent's roots and the web."""

from __future__ import annotations

from functools import partial
from typing import Callable, Dict, List

from .gateway import GatewayClient
from .plan import Plan
from .report import AttemptRef
from .transfer.base import Storage
from .transfer.logins import WebLogins
from .transfer.threads import Stop

__all__ = ["headers_of", "storages_of"]


def storages_of(plan: Plan, client: GatewayClient) -> List[Storage]:
    """Make them for one attempt; they ask `client` for what they may not keep (`access`)."""
    del plan, client
    return []


def headers_of(plan: Plan, client: GatewayClient) -> Callable[[str, Stop], Dict[str, str]]:
    """Say who asks for the headers of named credentials for URLs of the web."""
    return WebLogins(partial(client.access, AttemptRef(task=plan.task, attempt=plan.attempt), plan.token)).headers
