"""Checksums of objects as stores name them, computed piece by piece and put together from ranges in any order.

CRC32 is zlib's. CRC32C and CRC64NVME, which the standard library has not, are computed by folding big integers: a
multiple of the polynomial with few terms, squared as often as fits, halves a block with some shifts and XORs
(docs/design/adr/0044). The digests (MD5, SHA) cannot be put together from ranges: `Digest` reads from the beginning.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from typing import Dict, List, Mapping, Optional, Protocol, Sequence, Tuple, Union

__all__ = ["COMBINED", "CRC32", "Combined", "Digest", "Sum", "base64_of_crc32", "best_of", "sum_of"]

Data = Union[bytes, bytearray, memoryview]

CRC32 = "crc32"
_PREFERRED = (CRC32, "crc32c", "crc64nvme", "sha256", "sha1", "md5")
COMBINED = frozenset((CRC32, "crc32c", "crc64nvme"))
"""Those whose ranges may come in any order."""


class Sum(Protocol):
    """One checksum that is being computed."""

    def update(self, data: Data) -> None: ...

    def base64(self) -> str:
        """As stores show it."""
        ...


def best_of(known: Mapping[str, str]) -> Optional[Tuple[str, str]]:
    """The cheapest to verify of an object's checksums, by its name; None: there is none that we know."""
    for name in _PREFERRED:
        if known.get(name):
            return name, known[name]
    return None


def sum_of(name: str) -> Sum:
    """Begin the checksum of this name."""
    return Combined(name) if name in COMBINED else Digest(name)


class Digest:
    """MD5 and SHA: of bytes in their order."""

    def __init__(self, name: str) -> None:
        # MD5 here finds accidents, and is what stores have; it protects nothing.
        self._hash = hashlib.md5(usedforsecurity=False) if name == "md5" else hashlib.new(name, usedforsecurity=False)

    def update(self, data: Data) -> None:
        self._hash.update(data)

    def hex(self) -> str:
        """As an ETag has it."""
        return self._hash.hexdigest()

    def base64(self) -> str:
        return base64.b64encode(self._hash.digest()).decode("ascii")


class Combined:
    """A cyclic redundancy check, of bytes in their order; `append` puts what follows behind it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._crc = _crc_of(name)
        self.value = 0
        self.size = 0

    def update(self, data: Data) -> None:
        self.value = zlib.crc32(data, self.value) if self._name == CRC32 else self._crc.update(data, self.value)
        self.size += len(data)

    def append(self, other: Combined) -> None:
        """Go on as if the bytes of `other` had come."""
        self.value = self._crc.combine(self.value, other.value, other.size)
        self.size += other.size

    def base64(self) -> str:
        return base64.b64encode(self.value.to_bytes(self._crc.width // 8, "big")).decode("ascii")


def base64_of_crc32(value: int) -> str:
    """As stores show it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode("ascii")


class _Crc:
    """One polynomial, reflected, with all ones before and after: bit 0 of a byte comes first."""

    def __init__(self, width: int, polynomial: int, terms: Sequence[int]) -> None:
        """`polynomial`: reflected, without its highest term. `terms`: exponents of a multiple of it, falling."""
        self.width = width
        self._polynomial = polynomial
        self._ones = (1 << width) - 1
        self._highest, self._gap = terms[0], terms[0] - terms[1]
        self._shifts = [terms[0] - each for each in terms[1:]]
        self._table = [self._byte(value) for value in range(256)]
        self._powers: List[int] = [1 << (width - 2)]  # x, then x^2, x^4, ...

    def _byte(self, value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (self._polynomial if value & 1 else 0)
        return value

    def update(self, data: Data, before: int) -> int:
        """Return the check of what `before` is the check of, and of `data` behind it. Best with 64 KiB and more."""
        width, table = self.width, self._table
        left = 8 * len(data) + width
        # As a polynomial: the bit that comes first is the highest power, and `width` zeros follow the last.
        rest = int.from_bytes(data, "little") ^ before ^ self._ones
        scale = 1 << max(0, (left // (self._highest + self._gap)).bit_length() - 1)
        while scale:
            count = self._gap * scale & ~7
            while count and left >= self._highest * scale + count:
                # The highest `count` powers are those times x^-highest, times all the other terms.
                high, rest = rest & ((1 << count) - 1), rest >> count
                for shift in self._shifts:
                    rest ^= high << (shift * scale - count)
                left -= count
            scale >>= 1
        while left > width:
            rest = rest >> 8 ^ table[rest & 255]
            left -= 8
        return rest ^ self._ones

    def combine(self, first: int, second: int, size: int) -> int:
        """Return the check of two pieces; `size` is that of the second in bytes."""
        power, exponent, index = 1 << (self.width - 1), size * 8, 0
        while exponent:
            while len(self._powers) <= index:
                self._powers.append(self._times(self._powers[-1], self._powers[-1]))
            if exponent & 1:
                power = self._times(self._powers[index], power)
            exponent, index = exponent >> 1, index + 1
        return self._times(power, first) ^ second

    def _times(self, one: int, other: int) -> int:
        product, bit = 0, 1 << (self.width - 1)
        while bit:
            if one & bit:
                product ^= other
            other = other >> 1 ^ (self._polynomial if other & 1 else 0)
            bit >>= 1
        return product


_POLYNOMIALS: Dict[str, Tuple[int, int, Sequence[int]]] = {
    CRC32: (32, 0xEDB88320, (3006, 2866, 2215, 0)),
    "crc32c": (32, 0x82F63B78, (1281, 90, 21, 14, 13, 0)),
    "crc64nvme": (64, 0x9A6C9329AC4BC9B5, (2062, 323, 62, 61, 57, 56, 47, 45, 26, 23, 17, 12, 10, 3, 0)),
}


@functools.lru_cache(maxsize=None)
def _crc_of(name: str) -> _Crc:
    return _Crc(*_POLYNOMIALS[name])
