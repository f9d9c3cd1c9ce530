"""What the answer to an agent's poll says: pure, from what the agent has and what the rows say."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Name", "OrderRow", "Orders", "decide"]

Name = tuple[str, int]
"""Task id and attempt number."""


class OrderRow(Protocol):
    """An attempt that the agent has, or that it should have."""

    @property
    def task_id(self) -> str:
        """Of the task."""

    @property
    def number(self) -> int:
        """Of the attempt."""

    @property
    def closed(self) -> bool:
        """No message of it changes anything any more."""

    @property
    def acknowledged(self) -> bool:
        """The agent had it once."""

    @property
    def canceling(self) -> bool:
        """Its task was cancelled."""

    @property
    def version(self) -> int:
        """Of the task's row."""

    @property
    def its_own(self) -> bool:
        """It was given to the agent that polls."""


@dataclass
class Orders:
    """What to write into the rows, and what to answer."""

    acknowledge: list[Name] = field(default_factory=list)
    lost: list[tuple[Name, int]] = field(default_factory=list)
    """Acknowledged once and missing now, with the version of the row that says so."""
    stopped: list[Name] = field(default_factory=list)
    """Cancelled, and the agent says that it will never begin them."""
    start: list[Name] = field(default_factory=list)
    stop: list[Name] = field(default_factory=list)
    forget: list[Name] = field(default_factory=list)

    def says_anything(self) -> bool:
        """Whether the agent has to hear of it now."""
        return bool(self.start or self.stop or self.forget)


def decide(
    rows: Iterable[OrderRow], *, have: Collection[Name], stopping: Collection[Name], tombstones: Collection[Name]
) -> Orders:
    """Compare what an agent has (`have`, of which it is `stopping` some) with the rows.

    `lost` may only be acted upon for the newest poll of a session, right when it arrives.
    """
    orders = Orders()
    known: set[Name] = set()
    for row in rows:
        name = (row.task_id, row.number)
        known.add(name)
        if row.closed or not row.its_own:
            if name in have or name in tombstones:
                orders.forget.append(name)
        elif name in have:
            if not row.acknowledged:
                orders.acknowledge.append(name)
            if row.canceling and name not in stopping:
                orders.stop.append(name)
        elif name in tombstones:
            # A tombstone of a task that nobody cancelled (any more) is a start that the agent cannot make.
            if row.canceling:
                orders.stopped.append(name)
            else:
                orders.lost.append((name, row.version))
        elif row.acknowledged:
            orders.lost.append((name, row.version))
        elif row.canceling:
            orders.stop.append(name)
        else:
            orders.start.append(name)
    # What has no row any more is long over.
    orders.forget.extend(sorted((set(have) | set(tombstones)) - known))
    return orders
