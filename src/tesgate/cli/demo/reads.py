"""Sequencing reads to work on: always the same ones, and what the tasks must find in them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["READ_LENGTH", "count_beginning", "count_reads", "gc_by_chunk", "write_reads"]

READ_LENGTH = 100


def write_reads(path: Path, *, sample: str, count: int, seed: int) -> None:
    """Write a FASTQ file of `count` reads; the same `seed` writes the same bytes."""
    source = random.Random(seed)  # noqa: S311 (the same ones each time, and no secret)
    with path.open("w", encoding="ascii") as out:
        for number in range(1, count + 1):
            bases = "".join(source.choices("ACGT", weights=(3, 2, 2, 3), k=READ_LENGTH))
            quality = "".join(source.choices("?@ABCDEFGHI", k=READ_LENGTH))
            out.write(f"@{sample}.{number} length={READ_LENGTH}\n{bases}\n+\n{quality}\n")


def count_reads(path: Path) -> int:
    """How many reads a FASTQ file holds."""
    return sum(1 for _ in _bases(path))


def count_beginning(path: Path, bases: str) -> int:
    """How many reads begin with `bases`."""
    return sum(1 for read in _bases(path) if read.startswith(bases))


def gc_by_chunk(path: Path, size: int) -> list[tuple[int, int]]:
    """Reads, and bases that are G or C, of each `size` reads in turn."""
    chunks: list[tuple[int, int]] = []
    for number, bases in enumerate(_bases(path)):
        if number % size == 0:
            chunks.append((0, 0))
        reads, gc = chunks[-1]
        chunks[-1] = (reads + 1, gc + bases.count("G") + bases.count("C"))
    return chunks


def _bases(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii") as lines:
        for number, line in enumerate(lines):
            if number % 4 == 1:
                yield line.strip()
