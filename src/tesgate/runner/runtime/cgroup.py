"""Limits without an engine: one cgroup a step, in whatever hierarchies this process may write to."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from typing import Dict, Iterable, List, Optional, Tuple

from .base import Limits

__all__ = ["Cgroups"]

_PERIOD = 100_000
_ADVICE = "run the agent as a service with Delegate=yes, or as root"


class Cgroups:
    """Makes, fills, reads and removes the cgroups of steps, v1 or v2.

    Every step gets ``<parent>/tesgate-<name>`` where `parent` is this process's own cgroup (or the configured one).
    All methods block, but only for a moment.
    """

    def __init__(
        self, *, parent: Optional[str] = None, mounts: str = "/sys/fs/cgroup", proc: str = "/proc/self"
    ) -> None:
        """`parent`: path below each hierarchy's root, instead of this process's own cgroup."""
        self._mounts = mounts
        self._bases: Dict[str, str] = {}
        """Per controller (memory, cpu, pids) the directory below which cgroups are made."""
        self._why: Dict[str, str] = {}
        own = _own_cgroups(proc)
        self.version = 2 if "" in own and os.path.exists(mounts + "/cgroup.controllers") else 1
        if self.version == 2:
            self._find_v2(parent if parent is not None else own[""])
        else:
            self._find_v1(parent, own)

    def holds(self, controller: str) -> bool:
        """Limits of this controller can be held."""
        return controller in self._bases

    def why_not(self, controller: str) -> str:
        """Why they cannot, as the end of a sentence."""
        return self._why.get(controller, "there is no %s cgroup here" % controller)

    def create(self, name: str, limits: Limits) -> List[str]:
        """Make the cgroups of a step and set its limits; returns a note for each that is not held."""
        notes: List[str] = []
        unheld: Dict[str, List[str]] = {}
        wanted: List[Tuple[str, str, bool]] = [
            ("memory", "memory", limits.ram_bytes is not None),
            ("cpu", "CPU", limits.cpu_cores is not None),
            ("pids", "processes", limits.pids is not None),
        ]
        for controller, word, asked in wanted:
            if not asked:
                continue
            base = self._bases.get(controller)
            if base is None:
                unheld.setdefault(self.why_not(controller), []).append(word)
                continue
            try:
                path = self._path(base, name)
                os.makedirs(path, exist_ok=True)
                for file, value, must in self._settings(controller, limits):
                    self._set(path, file, value, must)
            except OSError as error:
                unheld.setdefault("%s (%s)" % (error.strerror, error.filename), []).append(word)
        for why, words in unheld.items():
            subject = ("limit on %s is" if len(words) == 1 else "limits on %s are") % ", ".join(words)
            notes.append("The %s not held: %s." % (subject, why))
        return notes

    def add(self, name: str, pid: int) -> None:
        """Put a process into the step's cgroups; what it forks from then on is in them too.

        Raises `OSError`; a process that is gone is no error.
        """
        for path in self._existing(name):
            try:
                _write(path + "/cgroup.procs", str(pid))
            except OSError as error:
                if error.errno != errno.ESRCH:
                    raise

    def oom_killed(self, name: str) -> bool:
        """The kernel killed a process of the step because it had no memory left within its limit."""
        for path in self._existing(name):
            for file in ("memory.events", "memory.oom_control"):
                try:
                    with open(path + "/" + file, encoding="ascii") as stream:
                        for line in stream:
                            word, _, number = line.partition(" ")
                            if word == "oom_kill" and number.strip().isdigit() and int(number) > 0:
                                return True
                except OSError:
                    continue
        return False

    def remove(self, name: str, patience: float = 5.0) -> bool:
        """Remove the step's cgroups, whose processes must be dying; False if one still has some after `patience`."""
        deadline = time.monotonic() + patience
        for path in self._existing(name):
            while True:
                try:
                    os.rmdir(path)
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        return False
                    time.sleep(0.01)
        return True

    def sweep(self, keep: Iterable[str], older: float = 3600.0) -> None:
        """Remove empty cgroups of steps that nobody knows any more (a scratch was wiped), made `older` seconds ago."""
        known = {"tesgate-" + name for name in keep}
        for base in set(self._bases.values()):
            for entry in os.listdir(base):
                path = os.path.join(base, entry)
                if not entry.startswith("tesgate-") or entry in known or entry == "tesgate-agent":
                    continue
                with suppress(OSError):  # it has processes, or another agent was quicker
                    if os.path.isdir(path) and time.time() - os.stat(path).st_mtime > older:
                        os.rmdir(path)

    # -- how the hierarchies lie

    def _find_v1(self, parent: Optional[str], own: Dict[str, str]) -> None:
        for controller in ("memory", "cpu", "pids"):
            if controller not in own:
                self._why[controller] = "this kernel has no %s controller" % controller
                continue
            # cpu is often mounted together with cpuacct, under either name.
            for mount in (controller, "cpu,cpuacct", "cpuacct,cpu"):
                base = os.path.join(self._mounts, mount) + (parent if parent is not None else own[controller])
                if controller in mount.split(",") and os.path.isdir(base):
                    self._consider(controller, base)
                    break

    def _find_v2(self, parent: str) -> None:
        base = self._mounts + parent
        try:
            self._delegate(base)
            active = _read(base + "/cgroup.subtree_control").split()
        except OSError as error:
            active = []
            why = "the cgroup %s may not be changed (%s); %s" % (parent, error.strerror, _ADVICE)
            self._why.update(dict.fromkeys(("memory", "cpu", "pids"), why))
        for controller in ("memory", "cpu", "pids"):
            if controller in active:
                self._consider(controller, base)
            elif controller not in self._why:
                self._why[controller] = "the %s controller is not delegated to %s; %s" % (controller, parent, _ADVICE)

    def _delegate(self, base: str) -> None:
        """Pass the controllers on to children of `base`.

        A cgroup that has children with controllers may hold no processes itself; if we are alone in it (a service
        with Delegate=yes), we move into a child of our own first.
        """
        active = set(_read(base + "/cgroup.subtree_control").split())
        missing = [one for one in ("memory", "cpu", "pids") if one not in active]
        missing = [one for one in missing if one in _read(base + "/cgroup.controllers").split()]
        if not missing:
            return
        if [int(line) for line in _read(base + "/cgroup.procs").split()] == [os.getpid()]:
            leaf = base.rstrip("/") + "/tesgate-agent"
            os.makedirs(leaf, exist_ok=True)
            _write(leaf + "/cgroup.procs", str(os.getpid()))
        _write(base + "/cgroup.subtree_control", " ".join("+" + one for one in missing))

    def _consider(self, controller: str, base: str) -> None:
        if os.access(base, os.W_OK | os.X_OK):
            self._bases[controller] = base
        else:
            self._why[controller] = "the agent's user may not make cgroups here; %s" % _ADVICE

    def _path(self, base: str, name: str) -> str:
        return base.rstrip("/") + "/tesgate-" + name

    def _existing(self, name: str) -> List[str]:
        paths = dict.fromkeys(self._path(base, name) for base in self._bases.values())
        return [path for path in paths if os.path.isdir(path)]

    def _settings(self, controller: str, limits: Limits) -> List[Tuple[str, str, bool]]:
        """File, value, and whether the limit is not held without it; in the order in which they must be written."""
        v2 = self.version == 2
        if controller == "memory":
            size = str(limits.ram_bytes)
            if v2:
                return [("memory.max", size, True), ("memory.swap.max", "0", False), ("memory.oom.group", "0", False)]
            return [("memory.limit_in_bytes", size, True), ("memory.memsw.limit_in_bytes", size, False)]
        if controller == "cpu":
            quota = max(int((limits.cpu_cores or 0.0) * _PERIOD), 1000)
            if v2:
                return [("cpu.max", "%d %d" % (quota, _PERIOD), True)]
            return [("cpu.cfs_period_us", str(_PERIOD), True), ("cpu.cfs_quota_us", str(quota), True)]
        return [("pids.max", str(max(limits.pids or 0, 2)), True)]

    def _set(self, path: str, file: str, value: str, must: bool) -> None:
        try:
            _write(path + "/" + file, value)
        except OSError:
            if must:
                raise


def _own_cgroups(proc: str) -> Dict[str, str]:
    """Path of this process's cgroup by v1 controller, and under ``""`` that of v2."""
    own: Dict[str, str] = {}
    try:
        for line in _read(proc + "/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                own[controller] = path
    except (OSError, ValueError):
        return {}
    return own


def _read(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def _write(path: str, value: str) -> None:
    # Unbuffered and in one write: the kernel takes each write as one command.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)
