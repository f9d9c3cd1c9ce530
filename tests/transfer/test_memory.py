"""Memory does not grow with the size of what is moved."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tesgate.runner.plan import Input, Output
from tests.transfer.conftest import Bed
from tests.transfer.http_server import Misbehaving

SIZE = 200 << 20


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def flat(limit: int) -> Iterator[None]:
    """Fail when the resident size ever rises by more than `limit` bytes."""
    begun, peak, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert peak[0] - begun < limit


@pytest.fixture
def big(bed: Bed) -> str:
    block = os.urandom(1 << 20)
    with open(bed.root / "big", "wb") as file:
        file.writelines(block for _ in range(SIZE >> 20))
    return f"{bed.root}/big"


@pytest.mark.parametrize("missing", ["", "copy_file_range", "copy_file_range sendfile"])
def test_a_large_file_in_and_out(bed: Bed, big: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*arguments: object) -> int:
        raise OSError(18, "no")

    for name in missing.split():
        monkeypatch.setattr(os, name, unable)
    with flat(24 << 20):
        bed.stage_in(Input("/work/big", "rw/work/big", url=big, writable=True))
        stored = bed.store(Output("/work/big", f"{bed.root}/out"), link_outputs=False)
    assert stored[0].size_bytes == SIZE == (bed.root / "out").stat().st_size


def test_a_large_download(bed: Bed, server: Misbehaving) -> None:
    server.stream_bytes = SIZE
    tracemalloc.start()
    try:
        with flat(32 << 20):
            staged = bed.stage(f"{server.url}/big")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert staged.stat().st_size == SIZE
    assert peak < 12 << 20
