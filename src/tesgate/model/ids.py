"""Identifiers that the gateway makes: time-ordered, 26 characters of lower-case Crockford base32 (ULID)."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import NewType

__all__ = ["TaskId", "TaskIds", "created_at", "is_task_id"]

TaskId = NewType("TaskId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FORM = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def is_task_id(text: str) -> bool:
    """Whether `text` has the form of a task id; anything else cannot be a task and never reaches the database."""
    return _FORM.fullmatch(text) is not None


def created_at(task_id: str) -> float | None:
    """When an id was made, in seconds since the epoch by its gateway's clock; None: it is no id."""
    if not is_task_id(task_id):
        return None
    number = 0
    for letter in task_id[:10]:
        number = number << 5 | _ALPHABET.index(letter)
    return number / 1000


def _encode(number: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


class TaskIds:
    """Makes ids; within one process they rise strictly, so that lists show tasks in the order of their creation."""

    def __init__(
        self,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._clock_ms = clock_ms
        self._random_bits = random_bits
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> TaskId:
        """Make the next id."""
        fresh = ((self._clock_ms() & (1 << 48) - 1) << 80) | self._random_bits(80)
        with self._lock:
            if fresh <= self._last or fresh >> 80 == self._last >> 80:
                # The same millisecond (or a clock that went back): step on by a random amount.
                fresh = self._last + 1 + self._random_bits(32)
            self._last = fresh
        return TaskId(_encode(fresh))
