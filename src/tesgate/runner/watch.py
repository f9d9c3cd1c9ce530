"""Wakes whoever waits for an executor's result file: inotify where the kernel has it, else a plain poll."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import struct
from contextlib import contextmanager
from typing import Dict, Iterator, Optional

import anyio

__all__ = ["Wake", "Watch"]

_IN_MOVED_TO = 0x00000080
_IN_ONLYDIR = 0x01000000
_IN_DONT_FOLLOW = 0x02000000
_IN_Q_OVERFLOW = 0x00004000
_IN_NONBLOCK = os.O_NONBLOCK
_IN_CLOEXEC = os.O_CLOEXEC
_EVENT = struct.Struct("iIII")

_WITH_INOTIFY = 1.0
_WITHOUT_INOTIFY = 0.05

_log = logging.getLogger(__name__)


class Wake:
    """A level that is raised by whoever knows something, and lowered by the one who waits."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._event = anyio.Event()
        self.ended = False
        """The engine says that the container has ended (a hint; never the truth)."""

    def set(self, *, ended: bool = False) -> None:
        """Wake the waiter now."""
        self.ended = self.ended or ended
        self._event.set()

    async def wait(self) -> None:
        """Return when woken, and in any case after the safety interval: events can be lost, so always look."""
        with anyio.move_on_after(self._interval):
            await self._event.wait()
        self._event = anyio.Event()


class Watch:
    """Watches any number of directories for a file renamed into them. `run` must be running for inotify to serve."""

    def __init__(self, *, inotify: bool = True) -> None:
        self._fd: Optional[int] = None
        self._libc: Optional[ctypes.CDLL] = None
        self._wakes: Dict[str, Wake] = {}
        self._descriptors: Dict[int, str] = {}
        if inotify:
            self._open()

    @property
    def works(self) -> bool:
        """Whether inotify is in use (else waiting polls)."""
        return self._fd is not None

    def _open(self) -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            fd = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
        except (OSError, AttributeError) as exc:
            _log.warning("inotify is not there (%s); result files are polled", exc)
            return
        if fd < 0:
            _log.warning("inotify refused (%s); result files are polled", os.strerror(ctypes.get_errno()))
            return
        self._libc, self._fd = libc, fd

    def _add(self, directory: str) -> Optional[int]:
        if self._fd is None or self._libc is None:
            return None
        mask = _IN_MOVED_TO | _IN_ONLYDIR | _IN_DONT_FOLLOW
        descriptor = int(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        if descriptor < 0:
            # ENOSPC: the user's limit of watches is reached; this one directory is polled.
            _log.warning("no inotify watch on %s (%s); it is polled", directory, os.strerror(ctypes.get_errno()))
            return None
        return descriptor

    @contextmanager
    def on(self, directory: str, name: str) -> Iterator[Wake]:
        """Watch `directory` for as long as the block lasts; `name` is that of the step, for `notify`.

        Set up before the first look at the directory, so that nothing falls between look and wait.
        """
        descriptor = self._add(directory)
        wake = Wake(_WITHOUT_INOTIFY if descriptor is None else _WITH_INOTIFY)
        self._wakes[name] = wake
        if descriptor is not None:
            self._descriptors[descriptor] = name
        try:
            yield wake
        finally:
            self._wakes.pop(name, None)
            if descriptor is not None:
                self._descriptors.pop(descriptor, None)
                if self._fd is not None and self._libc is not None:
                    self._libc.inotify_rm_watch(self._fd, descriptor)

    def notify(self, name: str) -> None:
        """Wake the waiter of step `name`, or everybody where `name` is empty: the engine reported an end or a gap."""
        for key, wake in list(self._wakes.items()):
            if name in ("", key):
                wake.set(ended=True)

    async def run(self) -> None:
        """Read inotify's events until cancelled; returns at once where there is no inotify."""
        while self._fd is not None:
            await anyio.wait_readable(self._fd)
            try:
                data = os.read(self._fd, 65536)
            except OSError as exc:
                if exc.errno in (errno.EAGAIN, errno.EINTR):
                    continue
                raise
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        offset = 0
        while offset + _EVENT.size <= len(data):
            descriptor, mask, _, length = _EVENT.unpack_from(data, offset)
            name = data[offset + _EVENT.size : offset + _EVENT.size + length].rstrip(b"\0")
            offset += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:
                for wake in list(self._wakes.values()):
                    wake.set()
            elif name == b"result" and descriptor in self._descriptors:
                found = self._wakes.get(self._descriptors[descriptor])
                if found is not None:
                    found.set()

    def close(self) -> None:
        """Let go of inotify; idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
