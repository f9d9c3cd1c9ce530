"""The answer to a poll: each row of the comparison between what an agent has and what the rows say."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from tesgate.model.orders import Orders, decide


@dataclass(frozen=True)
class Row:
    task_id: str = "t"
    number: int = 1
    closed: bool = False
    acknowledged: bool = False
    canceling: bool = False
    version: int = 7
    its_own: bool = True


T = ("t", 1)

CASES = {
    "to be started": (Row(), set(), set(), set(), {"start": [T]}),
    "first seen": (Row(), {T}, set(), set(), {"acknowledge": [T]}),
    "running": (Row(acknowledged=True), {T}, set(), set(), {}),
    "cancelled while it runs": (Row(acknowledged=True, canceling=True), {T}, set(), set(), {"stop": [T]}),
    "is stopping already": (Row(acknowledged=True, canceling=True), {T}, {T}, set(), {}),
    "cancelled before it arrived": (Row(canceling=True), set(), set(), set(), {"stop": [T]}),
    "will never begin it": (Row(canceling=True), set(), set(), {T}, {"stopped": [T]}),
    "tombstone of a wanted attempt": (Row(), set(), set(), {T}, {"lost": [(T, 7)]}),
    "once acknowledged, now missing": (Row(acknowledged=True), set(), set(), set(), {"lost": [(T, 7)]}),
    "missing and cancelled": (Row(acknowledged=True, canceling=True), set(), set(), set(), {"lost": [(T, 7)]}),
    "over": (Row(closed=True, acknowledged=True), {T}, set(), set(), {"forget": [T]}),
    "tombstone of what is over": (Row(closed=True), set(), set(), {T}, {"forget": [T]}),
    "over and forgotten": (Row(closed=True), set(), set(), set(), {}),
    "another agent's": (Row(its_own=False), {T}, set(), set(), {"forget": [T]}),
    "no such row": (None, {T}, set(), set(), {"forget": [T]}),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    row, have, stopping, tombstones, expected = CASES[name]
    orders = decide([] if row is None else [row], have=have, stopping=stopping, tombstones=tombstones)
    assert {
        field.name: getattr(orders, field.name) for field in fields(Orders) if getattr(orders, field.name)
    } == expected
