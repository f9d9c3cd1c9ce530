"""Identifiers that the gateway makes: time-ordered, 26 characters of lower-case Crockford base32 (ULID)."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import NewType

__all__ = ["TaskId", "TaskIds", "created_at", "id_time", "ids_from", "is_task_id"]

TaskId = NewType("TaskId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FORM = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def is_task_id(text: str) -> bool:
    """Whether `text` has the form of a task id; anything else cannot be a task and never reaches the database."""
    return _FORM.fullmatch(text) is not None


def created_at(task_id: str) -> float | None:
    """When an id was made, in seconds since the epoch by its gateway's clock; None: it is no id."""
    return id_time(task_id) / 1000 if is_task_id(task_id) else None


def _encode(number: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def ids_from(moment_ms: int) -> str:
    """Where the ids of this moment (milliseconds since 1970) begin: 10 characters that no earlier id is behind."""
    return _encode(moment_ms << 80)[:10]


def id_time(task_id: str) -> int:
    """When an id (or what `ids_from` gave) was made, in milliseconds since 1970."""
    made = 0
    for letter in task_id[:10]:
        made = made << 5 | _ALPHABET.index(letter)
    return made


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
