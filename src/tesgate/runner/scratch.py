"""The agent's scratch root: its lock, its instance, its attempt directories and its tombstones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from typing import List, Optional, Tuple

from . import clock, wire
from .journal import Journal
from .plan import Plan
from .removal import remove_tree
from .users import Users

__all__ = ["Scratch", "ScratchError", "ScratchLocked"]

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,200}$")
_LAST = ("plan.json", "journal")
"""What `Scratch.load` needs."""
_TOMBSTONES_KEPT = 30 * 86400.0
LOW_WATER = 64 << 20
"""Bytes that must be free before another attempt begins (on a small disk, a 64th of it)."""


class ScratchError(Exception):
    """The scratch root cannot be used; one sentence that says why and what to do."""


class ScratchLocked(ScratchError):
    """Another agent lives on this scratch root."""


class Scratch:
    """One scratch root, held by `flock` from construction to `close`.

    All methods are synchronous and short, `sweep` and `remove` excepted: call those in a thread.
    """

    def __init__(self, root: str) -> None:
        """Make the root if needed, take its lock, read or write its instance. Raises `ScratchError`."""
        self.root = os.path.realpath(root)
        self.attempts = os.path.join(self.root, "attempts")
        self.tombstones = os.path.join(self.root, "tombstones")
        self.users = Users(os.path.join(self.root, "users"))
        self._lock: Optional[int] = None
        self._had_space = True
        try:
            for directory in (self.root, self.attempts, self.tombstones, os.path.join(self.root, "bin")):
                os.makedirs(directory, mode=0o700, exist_ok=True)
            if os.statvfs(self.root).f_flag & os.ST_NOEXEC:
                raise ScratchError(
                    "%s is mounted noexec; give --scratch a directory that may hold programs" % self.root
                )
            self._take_lock()
            self._check_original()
            self.instance = self._read_instance() or self.new_instance()
        except OSError as exc:
            self.close()
            raise ScratchError("the scratch directory %s cannot be used: %s" % (self.root, exc)) from exc
        except ScratchError:
            self.close()
            raise

    def _take_lock(self) -> None:
        path = os.path.join(self.root, "lock")
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ScratchLocked(
                    "another agent already works in %s; give this one a --scratch of its own" % self.root
                ) from exc
            raise
        os.ftruncate(self._lock, 0)
        os.write(self._lock, b"%d\n" % os.getpid())

    def holds_lock(self) -> bool:
        """Say whether the lock file that we hold is still the one at its path (nobody removed or replaced it)."""
        if self._lock is None:
            return False
        try:
            there, ours = os.stat(os.path.join(self.root, "lock"), follow_symlinks=False), os.fstat(self._lock)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def close(self) -> None:
        """Let go of the lock; idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _check_original(self) -> None:
        """A copy must not go on with attempts that the original carries out: they would run twice."""
        path = os.path.join(self.root, "original")
        if not os.path.exists(path) or not os.path.getsize(path):  # empty: the host died before it was on the disk
            temporary = "%s.%s" % (path, secrets.token_hex(4))
            try:
                _write(temporary, b"", 0o600)
                with open(temporary, "w", encoding="ascii") as file:
                    file.write("%d\n" % os.fstat(file.fileno()).st_ino)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            except OSError as exc:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                return  # a full disk must not keep an agent from its attempts; the next start writes it
        with open(path, encoding="ascii") as file:
            if file.read().strip() != str(os.fstat(file.fileno()).st_ino):
                raise ScratchError(
                    "%s is a copy of another agent's scratch directory, whose attempts are not its own; give this "
                    "agent an empty --scratch (or, if the original is gone for good, remove %s)" % (self.root, path)
                )

    # -- instance ----------------------------------------------------------------------------------------------

    def _read_instance(self) -> Optional[str]:
        try:
            with open(os.path.join(self.root, "instance"), encoding="ascii") as file:
                text = file.read(200).strip()
        except FileNotFoundError:
            return None
        return text if _NAME.fullmatch(text) else None

    def new_instance(self) -> str:
        """Write a fresh random instance: the disk is new, or the gateway has closed the old one for good."""
        path = os.path.join(self.root, "instance")
        value = secrets.token_hex(16)
        temporary = "%s.%s" % (path, value)
        _write(temporary, value.encode("ascii") + b"\n", 0o600)
        os.rename(temporary, path)
        _sync_directory(self.root)
        self.instance = value
        return value

    # -- exec --------------------------------------------------------------------------------------------------

    def install(self, program: bytes) -> str:
        """Place the static exec where the engine's host sees it, and return its path; idempotent."""
        path = os.path.join(self.root, "bin", "tesgate-exec-" + hashlib.sha256(program).hexdigest()[:12])
        if not os.path.exists(path):
            temporary = "%s.%s" % (path, secrets.token_hex(4))
            _write(temporary, program, 0o755)
            os.rename(temporary, path)
        os.chmod(path, 0o755)
        return path

    # -- attempts ----------------------------------------------------------------------------------------------

    def path(self, name: str) -> str:
        """Return the directory of the attempt with this external name. Raises `ScratchError` for what is no name."""
        if not _NAME.fullmatch(name):
            raise ScratchError("%r is no external name" % name)
        return os.path.join(self.attempts, name)

    def names(self) -> List[str]:
        """Return the external names of all attempt directories."""
        return sorted(name for name in os.listdir(self.attempts) if _NAME.fullmatch(name))

    def kept(self) -> List[str]:
        """Return the names of ended attempts that were set aside (`tesgate.runner.kept`)."""
        try:
            return os.listdir(os.path.join(self.root, "kept"))
        except FileNotFoundError:
            return []

    def begin(self, plan: Plan) -> Optional[Tuple[str, Journal]]:
        """Make the directory of a new attempt with plan and journal, whole or not at all; None: it is there already.

        Where `plan` asks for a user of a range, it is given its own, and so is the plan on the disk. The directory is
        filled under another name and then renamed, which fails where one is: never begun twice.
        """
        path = self.path(plan.external_name)
        if os.path.lexists(path):
            return None
        fresh = os.path.join(self.attempts, ".new-%s-%s" % (plan.external_name, secrets.token_hex(4)))
        try:
            plan.run_as = self.users.settled(plan.external_name, plan.run_as)
            os.mkdir(fresh, 0o700)
            for part in ("rw", "ro", "steps"):
                os.mkdir(os.path.join(fresh, part), 0o755)
                os.chmod(os.path.join(fresh, part), 0o755)
            _write(os.path.join(fresh, "plan.json"), json.dumps(wire.encode(plan)).encode("utf-8"), 0o600)
            journal = Journal(os.path.join(fresh, "journal"))
            try:
                journal.append("begun")
                os.rename(fresh, path)
            except BaseException:
                journal.close()
                raise
        except BaseException as exc:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(exc, OSError) and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None
            self.users.release(plan.external_name)
            raise
        journal.path = os.path.join(path, "journal")
        return path, journal

    def settle(self, path: str, journal: Journal) -> None:
        """Make directory, plan and journal survive the death of the host: from now on this attempt has begun."""
        with open(os.path.join(path, "plan.json"), "rb") as file:
            os.fsync(file.fileno())
        journal.sync()
        _sync_directory(path)
        _sync_directory(self.attempts)

    def load(self, name: str) -> Tuple[Plan, Journal]:
        """Read plan and journal of an attempt directory. Raises OSError or ValueError where they are damaged."""
        path = self.path(name)
        with open(os.path.join(path, "plan.json"), "rb") as file:
            plan = wire.decode(Plan, json.loads(file.read().decode("utf-8")), "plan")
        return plan, Journal(os.path.join(path, "journal"))

    def remove(self, name: str) -> None:
        """Remove an attempt's directory and everything in it; idempotent, takes time. Raises OSError for the rest.

        What an earlier call had to leave (`remains`) is tried again.
        """
        path = self.path(name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, os.path.join(self.attempts, ".gone-%s-%s" % (name, secrets.token_hex(4))))
        for grave in self.remains(name):
            remove_tree(grave)
        self.users.release(name)

    def remains(self, name: str) -> List[str]:
        """Return what `remove` could not remove of this attempt (files of another user)."""
        prefix = ".gone-%s-" % name
        return [os.path.join(self.attempts, entry) for entry in os.listdir(self.attempts) if entry.startswith(prefix)]

    def empty(self, name: str) -> None:
        """Remove all of an attempt but plan and journal; idempotent, takes time. Raises OSError for the rest.

        Its user is given back: no file of it is left.
        """
        fault: Optional[OSError] = None
        for path in self.contents(name):
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    remove_tree(path)
                else:
                    os.unlink(path)
            except OSError as exc:
                fault = exc
        if fault is not None:
            raise fault
        self.users.release(name)

    def contents(self, name: str) -> List[str]:
        """Return what `empty` removes."""
        path = self.path(name)
        try:
            return [os.path.join(path, entry) for entry in os.listdir(path) if entry not in _LAST]
        except FileNotFoundError:
            return []

    def sweep(self) -> None:
        """Finish what a crash left: half-made and half-removed directories, tombstones past their time."""
        for name in os.listdir(self.attempts):
            if name.startswith((".new-", ".gone-")):
                remove_tree(os.path.join(self.attempts, name))
        self.users.sweep({*self.names(), *self.kept()})
        oldest = time.time() - _TOMBSTONES_KEPT
        for entry in os.scandir(self.tombstones):
            if entry.stat(follow_symlinks=False).st_mtime < oldest:
                os.unlink(entry.path)

    # -- tombstones --------------------------------------------------------------------------------------------

    def _tombstone(self, task: str, attempt: int) -> str:
        name = "%s-%d" % (task, attempt)
        if not _NAME.fullmatch(name):
            raise ScratchError("%r is no attempt" % name)
        return os.path.join(self.tombstones, name)

    def entomb(self, task: str, attempt: int) -> None:
        """Note that this attempt must never begin here (again); idempotent."""
        os.close(
            os.open(self._tombstone(task, attempt), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        )

    def disinter(self, task: str, attempt: int) -> None:
        """Remove a tombstone: the gateway knows that this attempt is over and will not send it again; idempotent."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._tombstone(task, attempt))

    def entombed(self, task: str, attempt: int) -> bool:
        """Say whether this attempt must not begin."""
        return os.path.lexists(self._tombstone(task, attempt))

    # -- the runtime -------------------------------------------------------------------------------------------

    def _is_used(self) -> bool:
        return bool(self.names() or self.kept())

    def recall_runtime(self) -> Optional[str]:
        """Return the runtime that attempts here, kept ones too, were begun on; None: unknown, or there are none."""
        try:
            with open(os.path.join(self.root, "runtime"), encoding="utf-8") as file:
                return (file.read().strip() or None) if self._is_used() else None
        except FileNotFoundError:
            return None

    def record_runtime(self, name: str) -> None:
        """Record it."""
        path = os.path.join(self.root, "runtime")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(name)

    def recall_socket(self) -> Optional[str]:
        """Return the socket of the engine that has the containers of attempts here, kept ones too; None as above."""
        try:
            with open(os.path.join(self.root, "socket"), encoding="utf-8") as file:
                return (file.read().strip() or None) if self._is_used() else None
        except FileNotFoundError:
            return None

    def record_socket(self, path: str) -> None:
        """Record it."""
        place = os.path.join(self.root, "socket")
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(path)

    # -- contact with a gateway --------------------------------------------------------------------------------

    def note_contact(self) -> None:
        """Remember that a gateway answered now. A disk that is full keeps what was known before."""
        path = os.path.join(self.root, "contact")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.utime(fd)
            os.pwrite(fd, (clock.now() + "\n").encode("ascii"), 0)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        finally:
            os.close(fd)

    def without_contact(self) -> float:
        """Return the seconds since a gateway last answered; 0, if none ever did."""
        path = os.path.join(self.root, "contact")
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                lines = file.read(200).splitlines()
            return clock.since({"at": os.stat(path).st_mtime, "up": lines[0] if lines else ""})
        except FileNotFoundError:
            return 0.0

    # -- space -------------------------------------------------------------------------------------------------

    def has_space(self) -> bool:
        """Say whether the disk has room for another attempt."""
        try:
            disk = os.statvfs(self.root)
        except OSError:  # a disk that does not answer for a moment is no reason to end: what was known last stands
            return self._had_space
        self._had_space = disk.f_bavail * disk.f_frsize >= min(LOW_WATER, disk.f_blocks * disk.f_frsize // 64)
        return self._had_space


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
