"""Lines about one input: of many some are enough, and how many more there are."""

from __future__ import annotations

from typing import List

__all__ = ["Notes"]

_MOST = 20


class Notes:
    """What was left out of one input. A directory may hold a million links to nowhere."""

    def __init__(self) -> None:
        self._lines: List[str] = []
        self._more = 0

    def add(self, text: str) -> None:
        """Add a line, or count it."""
        if len(self._lines) < _MOST:
            self._lines.append(text)
        else:
            self._more += 1

    def lines(self, shown: str) -> List[str]:
        """All that is to be said; `shown` is how messages call the input."""
        return self._lines + (["%s: %d more entries were left out." % (shown, self._more)] if self._more else [])
