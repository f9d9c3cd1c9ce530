"""When a further attempt follows one that the system failed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

__all__ = ["Retries"]


@dataclass(frozen=True, slots=True)
class Retries:
    """The policy; what the executor failed is never repeated."""

    max_attempts: int
    first: timedelta
    """Wait before the second attempt."""
    factor: float
    """Each further wait is this much longer."""
    longest: timedelta

    def after(self, number: int) -> timedelta:
        """How long the task waits after attempt `number`."""
        # The exponent is bounded: a float to the power of an attempt's number may not overflow.
        return min(self.longest, self.first * self.factor ** min(number - 1, 20))
