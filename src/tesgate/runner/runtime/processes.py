"""Processes by an identity that survives us: pid and start time, held by a pidfd where the kernel has them."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Iterator, List, Optional, Set, Tuple

__all__ = ["Process", "boot_id", "children_of", "find_by_environment", "start_ticks", "values_in_environments"]

_POLL = 0.05
_DELETED = " (deleted)"


def boot_id() -> str:
    """Of this run of the kernel: pids of another one mean nothing."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def start_ticks(pid: int) -> Optional[int]:
    """When a process started, in clock ticks since boot; None if there is none, or it is dead but not yet reaped."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as stream:
            content = stream.read()
    except OSError:
        return None
    # The second field is the command in parentheses and may hold anything.
    fields = content[content.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _runs(pid: str, program: str) -> bool:
    """A process executes `program`, by the file's name: an upgrade may have put another file in its place."""
    exe = os.readlink("/proc/%s/exe" % pid)
    exe = exe[: -len(_DELETED)] if exe.endswith(_DELETED) else exe
    return os.path.basename(exe) == os.path.basename(os.path.realpath(program))


def _environments(program: str) -> Iterator[Tuple[int, List[bytes]]]:
    """Pids of our user's living processes of `program`, each with what it was started with.

    Nobody else's is read: a gateway that runs as our user has the keys of its stores there.
    """
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if not _runs(name, program):
                continue
            with open("/proc/%s/environ" % name, "rb") as stream:
                entries = stream.read().split(b"\0")
        except OSError:
            continue  # another user's, or gone
        yield int(name), entries


def find_by_environment(entry: str, *, program: str) -> List[int]:
    """Pids of our user's living processes of `program` that were started with ``entry`` (``KEY=value``)."""
    wanted = os.fsencode(entry)
    return [pid for pid, entries in _environments(program) if wanted in entries]


def values_in_environments(key: str, *, program: str) -> Set[str]:
    """What the variable `key` is set to in our user's living processes of `program`, as they were started."""
    start = os.fsencode(key + "=")
    found = (entry for _, entries in _environments(program) for entry in entries if entry.startswith(start))
    return {os.fsdecode(entry[len(start) :]) for entry in found}


def children_of(pid: int) -> List[int]:
    """Pids of a process's own children."""
    found: List[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb") as stream:
                    content = stream.read()
            except OSError:
                continue
            if int(content[content.rindex(b")") + 2 :].split()[1]) == pid:
                found.append(int(name))
    return found


@dataclass(frozen=True)
class Process:
    """One process, never mistaken for another that got its pid later."""

    pid: int
    ticks: int

    @classmethod
    def of(cls, pid: int) -> Optional[Process]:
        """The process that has `pid` now."""
        ticks = start_ticks(pid)
        return None if ticks is None else cls(pid, ticks)

    def alive(self) -> bool:
        """It runs (a zombie does not)."""
        return start_ticks(self.pid) == self.ticks

    def descriptor(self) -> Optional[int]:
        """A pidfd, readable when it has ended; None where it has ended or the kernel has none (before Linux 5.3)."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return None
        # Asked after opening: from here on the pid cannot pass to another process unnoticed.
        if self.alive():
            return descriptor
        os.close(descriptor)
        return None

    def send(self, number: int) -> None:
        """Send a signal; a process that is gone is no error."""
        descriptor = self.descriptor()
        try:
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)
            elif self.alive():
                os.kill(self.pid, number)
        except ProcessLookupError:
            return
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended, at most `seconds`; blocks. True if it has."""
        deadline = time.monotonic() + seconds
        descriptor = self.descriptor()
        try:
            while self.alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if descriptor is None:
                    time.sleep(min(_POLL, left))
                else:
                    watch = select.poll()
                    watch.register(descriptor, select.POLLIN)
                    if watch.poll(left * 1000) and self.alive():
                        time.sleep(0.001)  # its leader has ended, the rest is about to
            return True
        finally:
            if descriptor is not None:
                os.close(descriptor)
