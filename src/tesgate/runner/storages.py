"""The kinds of storage that an attempt has besides the agent's roots and the web."""

from __future__ import annotations

from functools import partial
from typing import List

from .gateway import GatewayClient
from .plan import Plan
from .report import AttemptRef
from .transfer.base import Storage
from .transfer.ftp import FtpServers, FtpStorage

__all__ = ["storages_of"]


def storages_of(plan: Plan, client: GatewayClient, *, ftp: FtpServers) -> List[Storage]:
    """Make them for one attempt; they ask `client` for what they may not keep (`access`).

    `ftp`: of the whole agent.
    """
    ref = AttemptRef(plan.task, plan.attempt)
    return [FtpStorage(plan, ask=partial(client.access, ref, plan.token), servers=ftp)]
