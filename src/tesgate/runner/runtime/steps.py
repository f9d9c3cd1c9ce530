"""The steps that bubblewrap runs: started once, adopted by whoever comes after us, ended and removed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from typing import Dict, List, Optional, Tuple

from .base import EngineUnavailable, StepRefused, StepSpec, StepStatus, check_spec
from .cgroup import Cgroups
from .processes import Process, children_of, find_by_environment, values_in_environments
from .sandbox import (
    STEP_VARIABLE,
    SandboxSettings,
    etc_files,
    prepare_root,
    refusal,
    sandbox_arguments,
    uses_network,
)
from .stepdir import STEP_NAME, StepDirectory

__all__ = ["Steps"]

_SETUP = 20.0
"""Seconds that bwrap may take to set a sandbox up."""
_DYING = 30.0
_LATE = 2.0
"""Seconds that our KILL waits longer than exec's own, so that exec can still write the result."""
_RUNNING = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,200}-[0-9]{1,9}")
"""An external name and the index of an executor."""


class Steps:
    """One `StepDirectory` per step below `state`; all methods block."""

    def __init__(
        self, *, state: str, program: str, disable_userns: bool, cgroups: Cgroups, settings: SandboxSettings
    ) -> None:
        self._state = state
        self._program = program
        self.disable_userns = disable_userns
        self._cgroups = cgroups
        self._settings = settings
        self._lock = threading.Lock()
        self._locks: Dict[str, threading.Lock] = {}
        self._children: Dict[str, int] = {}
        os.makedirs(state, mode=0o700, exist_ok=True)

    def start(self, spec: StepSpec) -> Tuple[List[str], Optional[Process]]:
        """Start or adopt; returns notes, and the process whose end is the step's (None if it has ended)."""
        check_spec(spec)
        with self._lock_of(spec.name):
            there = self._directory(spec.name)
            if there.exists():
                if there.record() is not None:
                    there.open_gate()
                    return [], self.living(spec.name)
                self._discard(spec.name)
            try:
                return self._spawn(spec, there)
            except BaseException:
                self._discard(spec.name)
                raise

    def inspect(self, name: str) -> StepStatus:
        """What is known of a step."""
        self._reap(name)
        there = self._directory(name)
        if not there.exists():
            return StepStatus(running=False, found=False)
        record = there.record()
        if record is None:
            return StepStatus(running=False, found=True, error="It was created but never started.")
        _, code = there.status()
        if not record.of_this_boot:
            error = "" if code is not None else "The host was restarted while it ran."
            return StepStatus(running=False, found=True, exit_code=code, error=error, started=True)
        oom = self._cgroups.oom_killed(name)
        if record.child.alive() or (code is None and record.monitor.alive()):
            return StepStatus(running=True, found=True, oom_killed=oom, started=True)
        _, code = there.status()  # it may have been written between the two looks
        error = "" if code is not None else refusal(there.stderr()) or "Its bubblewrap process was killed."
        return StepStatus(running=False, found=True, exit_code=code, oom_killed=oom, error=error, started=True)

    def stop(self, name: str, grace: float) -> None:
        """TERM to the step's first process, `grace` and a little more, KILL to everything."""
        record = self._directory(name).record()
        if record is None or not record.of_this_boot:
            return
        if grace > 0:
            record.child.send(signal.SIGTERM)
        if grace <= 0 or not record.child.wait(grace + _LATE):
            record.child.send(signal.SIGKILL)
            if not record.child.wait(_DYING):
                raise EngineUnavailable("The step %s does not die; a file system it uses may hang." % name)
        record.monitor.wait(1.0)
        self._reap(name)

    def remove(self, name: str) -> None:
        """Kill the step and leave nothing of it."""
        with self._lock_of(name):
            self._discard(name)
        with self._lock:
            self._locks.pop(name, None)

    def names(self) -> List[str]:
        """Of all steps that are not removed, and of those that still run although somebody wiped their directory.

        Any process of our user can have the variable, a task's too: what it says is no more than a claim.
        """
        there = {name for name in os.listdir(self._state) if STEP_NAME.fullmatch(name)}
        running = {os.path.split(path) for path in values_in_environments(STEP_VARIABLE, program=self._program)}
        return sorted(there | {name for state, name in running if state == self._state and _RUNNING.fullmatch(name)})

    def living(self, name: str) -> Optional[Process]:
        """The process whose end is the step's end: bwrap, which writes the exit code, else the step itself."""
        record = self._directory(name).record()
        if record is not None and record.of_this_boot:
            for process in (record.monitor, record.child):
                if process.alive():
                    return process
        return None

    # -- starting

    def _spawn(self, spec: StepSpec, there: StepDirectory) -> Tuple[List[str], Optional[Process]]:
        network = uses_network(spec, self._settings)
        prepare_root(spec, self._settings)
        there.make(etc_files(spec, network))
        notes = ["The image %s is not used: bubblewrap runs the host's own programs." % spec.image]
        notes += self._cgroups.create(spec.name, spec.limits)
        if spec.limits.disk_bytes is not None:
            notes.append("The disk limit is not held: bubblewrap has no quota.")
        if spec.user and int(spec.user.partition(":")[0]) != os.getuid():
            notes.append("The user %s is only shown: on the host the step is the agent's own user." % spec.user)
        arguments = sandbox_arguments(
            spec, self._settings, network=network, etc=there.etc, disable_userns=self.disable_userns
        )
        self._children[spec.name] = self._fork(spec, there, arguments)
        monitor = Process.of(self._children[spec.name])
        child = self._wait_child(spec.name, there)
        if monitor is None or child is None:
            raise StepRefused(refusal(there.stderr()) or "bubblewrap ended at once and said nothing.")
        try:
            self._cgroups.add(spec.name, child.pid)
        except OSError as error:
            notes.append("The limits are not held: %s (%s)." % (error.strerror, error.filename))
        there.write_record(monitor, child)
        there.open_gate()
        self._wait_setup(spec.name, there, child)
        return notes, monitor if monitor.alive() else None

    def _fork(self, spec: StepSpec, there: StepDirectory, arguments: List[str]) -> int:
        status, errors, gate = there.open_for_append("status"), there.open_for_append("stderr"), there.gate()
        try:
            with tempfile.TemporaryFile(dir=there.path) as given:
                given.write(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))
                given.flush()
                given.seek(0)
                command = [self._program, "--args", str(given.fileno()), "--json-status-fd", str(status)]
                command += ["--block-fd", str(gate), "--", *spec.argv]
                process = subprocess.Popen(
                    command,
                    # Nothing of the task's environment: variables such as LD_PRELOAD would act on bwrap itself.
                    env={"PATH": "/usr/bin:/bin", STEP_VARIABLE: there.path},
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(given.fileno(), status, gate),
                    start_new_session=True,
                    cwd="/",
                )
        except OSError as error:
            if error.errno in (errno.E2BIG, errno.EINVAL):
                raise StepRefused("The command is too long for this host (%s)." % error.strerror) from error
            raise EngineUnavailable("bubblewrap could not be started (%s)." % error.strerror) from error
        finally:
            for descriptor in (status, errors, gate):
                os.close(descriptor)
        process.returncode = 0  # it is to outlive us: we reap it by its pid, and nobody warns that it still runs
        return process.pid

    def _wait_child(self, name: str, there: StepDirectory) -> Optional[Process]:
        deadline = time.monotonic() + _SETUP
        while True:
            pid, _ = there.status()
            if pid is not None:
                return Process.of(pid)
            if self._reap(name) or time.monotonic() > deadline:
                return None
            time.sleep(0.001)

    def _wait_setup(self, name: str, there: StepDirectory, child: Process) -> None:
        """Until the sandbox stands and the command has been executed; raises `StepRefused` where it cannot be."""
        program = os.stat(self._program)
        deadline = time.monotonic() + _SETUP
        while time.monotonic() < deadline:
            try:
                now = os.stat("/proc/%d/exe" % child.pid)
                if child.alive() and (now.st_dev, now.st_ino) != (program.st_dev, program.st_ino):
                    return
            except PermissionError:
                return  # not ours to look at any more, so not bwrap any more
            except OSError:
                pass  # it has ended; whether the command ever began, is told by its exit code
            if not child.alive() and self._reap(name):
                said = refusal(there.stderr()) if there.status()[1] is None else None
                if said is None:
                    return  # it ran, or it was killed from outside: `inspect` tells
                raise StepRefused(said)
            time.sleep(0.001)

    # -- ending

    def _discard(self, name: str) -> None:
        there = self._directory(name)
        record = there.record()
        doomed: List[Process] = []
        if record is not None and record.of_this_boot:
            doomed = [record.child, record.monitor]
        elif record is None:
            # Who died between fork and record left a bwrap (and perhaps its child) that waits at the gate; who wiped
            # the directory left one that runs. The child has lost the variable: it is known by its parent.
            pids = find_by_environment("%s=%s" % (STEP_VARIABLE, there.path), program=self._program)
            pids += [child for pid in pids for child in children_of(pid)]
            doomed = [process for process in map(Process.of, pids) if process is not None]
        for process in doomed:
            process.send(signal.SIGKILL)
        for process in doomed:
            if not process.wait(_DYING):
                raise EngineUnavailable("The step %s does not die; a file system it uses may hang." % name)
        self._reap(name)
        self._children.pop(name, None)
        if not self._cgroups.remove(name):
            raise EngineUnavailable("The cgroup of the step %s still has processes." % name)
        if there.exists():
            shutil.rmtree(there.path)

    def _reap(self, name: str) -> bool:
        """Take leave of our own child bwrap; True if it has ended (or is not our child)."""
        pid = self._children.get(name)
        if pid is None:
            return True
        try:
            done, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            done = pid
        if done:
            self._children.pop(name, None)
        return bool(done)

    def _directory(self, name: str) -> StepDirectory:
        return StepDirectory(self._state, name)

    def _lock_of(self, name: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())
