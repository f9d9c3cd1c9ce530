"""Cuts lists of files into short runs, each for one thread at a time."""

from __future__ import annotations

from typing import Callable, Iterator, List, Sequence, TypeVar

__all__ = ["SMALL", "runs"]

T = TypeVar("T")

SMALL = 1 << 20
"""Bytes of a file that may share a run with others."""
_MOST, _MOST_BYTES = 32, 4 << 20
_SHARES = 8
"""Of what is left, so that threads which take runs end at about the same time."""


def runs(items: Sequence[T], *, size: Callable[[T], int], beside: Callable[[T, T], bool]) -> Iterator[List[T]]:
    """Cut without changing the order; large files are alone. `beside`: two neighbours may be in one run."""
    run: List[T] = []
    bytes_in, most = 0, 0
    for index, item in enumerate(items):
        length = size(item)
        full = len(run) >= most or length > SMALL or bytes_in + length > _MOST_BYTES
        if run and (full or not beside(run[-1], item)):
            yield run
            run, bytes_in = [], 0
        if not run:
            most = 1 if length > SMALL else min(_MOST, max(1, (len(items) - index) // _SHARES))
        run.append(item)
        bytes_in += length
    if run:
        yield run
