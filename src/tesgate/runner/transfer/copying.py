"""Moves bytes from one descriptor to another the cheapest way that the two file systems allow."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from typing import Set, Tuple

from .threads import Stop

__all__ = ["CHUNK", "Changed", "Copier", "copied_mode", "process_umask"]

CHUNK = 16 << 20
"""Bytes that the kernel moves in one call: between two calls a stop is looked for."""
_BUFFER = 1 << 20
_FICLONE = 0x40049409
_UNABLE = frozenset(
    (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV, errno.ETXTBSY)
)


class Changed(Exception):
    """The source became another one while it was copied."""


class Copier:
    """Copies whole files; remembers which pairs of file systems cannot share blocks. Safe in many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cannot_clone: Set[Tuple[int, int]] = set()

    def copy(self, source: int, target: int, stop: Stop) -> int:
        """Copy all of `source` into the empty file `target`; returns its size in bytes, which was verified.

        Raises `Changed`, `Stopped`, OSError.
        """
        before = os.fstat(source)
        if not self.clone(source, target) and not self._copy_data(source, target, before, stop):
            self._copy_range(source, target, stop)
        after = os.fstat(source)
        size = os.fstat(target).st_size
        if size != after.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Changed
        return size

    def may_clone(self, source: int, target: int) -> bool:
        """Say whether a reflink between the file systems of two descriptors has not failed yet."""
        pair = (os.fstat(source).st_dev, os.fstat(target).st_dev)
        with self._lock:
            return pair not in self._cannot_clone

    def clone(self, source: int, target: int) -> bool:
        """Make `target` share the blocks of `source` (a reflink); False where the file systems cannot."""
        pair = (os.fstat(source).st_dev, os.fstat(target).st_dev)
        with self._lock:
            if pair in self._cannot_clone:
                return False
        try:
            fcntl.ioctl(target, _FICLONE, source)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            with self._lock:
                self._cannot_clone.add(pair)
            return False
        return True

    def _copy_data(self, source: int, target: int, info: os.stat_result, stop: Stop) -> bool:
        """Copy a file that has holes without filling them; False where it has none (or nobody can tell).

        A terabyte of holes costs whoever makes it nothing, and would fill the disk of whoever writes it out.
        """
        if info.st_blocks * 512 >= info.st_size:
            return False
        offset = 0
        while offset < info.st_size:
            stop.check()
            try:
                data = os.lseek(source, offset, os.SEEK_DATA)
                end = os.lseek(source, data, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # nothing but a hole up to the end
                if error.errno == errno.EINVAL and offset == 0:
                    return False
                raise
            if data == 0 and end >= info.st_size:
                return False
            self._copy_piece(source, target, data, end, stop)
            offset = end
        os.ftruncate(target, info.st_size)
        return True

    def _copy_piece(self, source: int, target: int, offset: int, end: int, stop: Stop) -> None:
        while offset < end:
            stop.check()
            data = os.pread(source, min(_BUFFER, end - offset), offset)
            if not data:
                return  # cut off meanwhile: whoever called sees it by size and time
            view = memoryview(data)
            while view:
                count = os.pwrite(target, view, offset)
                offset, view = offset + count, view[count:]

    def _copy_range(self, source: int, target: int, stop: Stop) -> None:
        """Until the end of the file, not until its size, about which some file systems lie.

        Some (proc) even say that there is nothing to copy: then reading has the last word.
        """
        offset = 0
        try:
            while True:
                stop.check()
                count = os.copy_file_range(source, target, CHUNK, offset, offset)
                if count == 0 and offset > 0:
                    return
                if count == 0:
                    break
                offset += count
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
        self._sendfile(source, target, offset, stop)

    def _sendfile(self, source: int, target: int, offset: int, stop: Stop) -> None:
        os.lseek(target, offset, os.SEEK_SET)
        try:
            while True:
                stop.check()
                count = os.sendfile(target, source, offset, CHUNK)
                if count == 0:
                    return
                offset += count
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
        self._read_write(source, target, offset, stop)

    def _read_write(self, source: int, target: int, offset: int, stop: Stop) -> None:
        os.lseek(source, offset, os.SEEK_SET)
        os.lseek(target, offset, os.SEEK_SET)
        buffer = memoryview(bytearray(_BUFFER))
        while True:
            stop.check()
            count = os.readv(source, [buffer])
            if count == 0:
                return
            done = 0
            while done < count:
                done += os.write(target, buffer[done:count])


def copied_mode(mode: int, base: int) -> int:
    """Permission bits of a copy: `base`, and the right to execute for those whom `base` lets read, if anyone had it.

    Never set-user-id and the like.
    """
    return base | ((base & 0o444) >> 2 if mode & 0o111 else 0)


def process_umask() -> int:
    """Read the umask without setting it (setting it would be seen by every thread)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        return 0o022
    return 0o022
