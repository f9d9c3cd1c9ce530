"""Pieces of a log in an object store: their names, and the way through them that is the log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Piece", "piece_key", "piece_of", "way_through"]

_NAME = re.compile(r"\.d/(\d{15})-(\d{15})")


class Piece(NamedTuple):
    """Bytes ``start:end`` of a log, under one key."""

    start: int
    end: int
    key: str


def piece_key(name: str, start: int, end: int) -> str:
    """The key of bytes ``start:end`` of the log `name`."""
    return f"{name}.d/{start:015d}-{end:015d}"


def piece_of(name: str, key: str, size: int) -> Piece | None:
    """What an object is of the log `name`; None: nothing of it, or not as long as its name says."""
    if key == name:
        return Piece(0, size, key)
    found = _NAME.fullmatch(key[len(name) :])
    if found is None or size != int(found[2]) - int(found[1]):
        return None
    return Piece(int(found[1]), int(found[2]), key)


def way_through(pieces: Iterable[Piece]) -> list[Piece]:
    """The pieces that lead furthest from the beginning without a hole; each begins at or before the end of the last."""
    way: list[Piece] = []
    reached = 0
    best: Piece | None = None
    for piece in sorted(pieces):
        if piece.start > reached:
            if best is None or best.end <= reached:
                break
            way.append(best)
            reached, best = best.end, None
            if piece.start > reached:
                break
        if best is None or piece.end > best.end:
            best = piece
    if best is not None and best.end > reached:
        way.append(best)
    return way
