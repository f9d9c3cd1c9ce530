"""Checksums that are folded and put together, against known values and a table of bytes."""

from __future__ import annotations

import base64
import hashlib
import random
import zlib

import pytest

from tesgate.runner.transfer.s3sums import _POLYNOMIALS, Combined, _Crc, best_of, sum_of

CHECK = {"crc32": 0xCBF43926, "crc32c": 0xE3069283, "crc64nvme": 0xAE8B14860A799888}
"""Of ``123456789``: https://reveng.sourceforge.io/crc-catalogue/"""


def slow(name: str, data: bytes) -> int:
    """Bit by bit."""
    width, polynomial, _ = _POLYNOMIALS[name]
    value = (1 << width) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value ^ ((1 << width) - 1)


@pytest.mark.parametrize("name", sorted(CHECK))
def test_the_known_value(name: str) -> None:
    total = Combined(name)
    total.update(b"1234")
    total.update(b"")
    total.update(b"56789")
    assert total.value == CHECK[name]
    assert base64.b64decode(total.base64()) == CHECK[name].to_bytes(8 if name == "crc64nvme" else 4, "big")


@pytest.mark.parametrize("name", sorted(CHECK))
@pytest.mark.parametrize("size", [0, 1, 3, 90, 321, 400, 700, 1031, 2000, 9000])
def test_folding_gives_what_the_bits_give(name: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    crc = _Crc(*_POLYNOMIALS[name])  # zlib's place is not taken here
    assert crc.update(data, slow(name, b"before")) == slow(name, b"before" + data)


def test_large_blocks() -> None:
    data = random.Random(1).randbytes(300_001)
    assert _Crc(*_POLYNOMIALS["crc32"]).update(data, 0) == zlib.crc32(data)


@pytest.mark.parametrize("name", sorted(CHECK))
def test_ranges_in_any_order(name: str) -> None:
    data = random.Random(2).randbytes(5000)
    whole = Combined(name)
    for begin, end in ((0, 1), (1, 1), (1, 3000), (3000, 5000)):
        piece = Combined(name)
        piece.update(data[begin:end])
        whole.append(piece)
    assert (whole.value, whole.size) == (slow(name, data), 5000)


def test_digests_and_the_choice() -> None:
    for name in ("md5", "sha1", "sha256"):
        total = sum_of(name)
        total.update(b"data")
        assert total.base64() == base64.b64encode(hashlib.new(name, b"data").digest()).decode()
    assert best_of({"md5": "m", "crc32c": "c", "unknown": "u"}) == ("crc32c", "c")
    assert best_of({"unknown": "u", "md5": ""}) is None
