"""One step of bubblewrap as it lies on disk, so that whoever comes after us knows what was started and how it ended."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

from .processes import Process, boot_id

__all__ = ["STEP_NAME", "Record", "StepDirectory"]

STEP_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,200}")
"""What `check_spec` takes: below a directory it names an entry of that directory and nothing else."""


@dataclass(frozen=True)
class Record:
    """Both processes of a step: bwrap, which waits and writes the exit code, and the first one inside."""

    boot: str
    monitor: Process
    child: Process

    @property
    def of_this_boot(self) -> bool:
        """Its pids still mean something."""
        return self.boot == boot_id()


class StepDirectory:
    """The directory of one step.

    ``status`` (bwrap writes the child's pid and at last its exit code there, whether we live or not), ``gate`` (a FIFO
    at which the sandbox waits), ``record`` (durable **before** the gate opens), ``stderr`` (of bwrap) and ``etc/``. So
    a directory without a record is a step that never ran, and one with a record is never started again.
    """

    def __init__(self, state: str, name: str) -> None:
        """Raises ValueError for what is no name: the directory is removed one day, with all below it."""
        if not STEP_NAME.fullmatch(name):
            raise ValueError("%r cannot be the name of a step" % name)
        self.path = os.path.join(state, name)

    def exists(self) -> bool:
        """Somebody has begun to start the step, and nobody has removed it."""
        return os.path.isdir(self.path)

    def make(self, etc: Dict[str, str]) -> None:
        """Make it with the files of ``etc/`` and the gate."""
        os.makedirs(self.etc, mode=0o700)
        for name, content in etc.items():
            with open(os.path.join(self.etc, name), "w", encoding="ascii") as stream:
                stream.write(content)
        os.mkfifo(self.path + "/gate", 0o600)

    @property
    def etc(self) -> str:
        """Files that the sandbox has in /etc."""
        return self.path + "/etc"

    def open_for_append(self, name: str) -> int:
        """A descriptor for ``status`` or ``stderr``."""
        return os.open(self.path + "/" + name, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)

    def gate(self) -> int:
        """A descriptor of the gate, to wait at.

        Opened to read *and* write: so it always has a writer, and the sandbox waits for a byte even if we die.
        """
        return os.open(self.path + "/gate", os.O_RDWR | os.O_CLOEXEC)

    def open_gate(self) -> None:
        """Let the sandbox run; once more does no harm."""
        gate = os.open(self.path + "/gate", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(gate, b"x")
        finally:
            os.close(gate)

    def write_record(self, monitor: Process, child: Process) -> None:
        """From here on the step counts as started, even if the power fails."""
        path = self.path + "/record"
        content = {"boot": boot_id(), "monitor": [monitor.pid, monitor.ticks], "child": [child.pid, child.ticks]}
        with open(path + ".new", "w", encoding="ascii") as stream:
            json.dump(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(path + ".new", path)
        for directory in (self.path, os.path.dirname(self.path)):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def record(self) -> Optional[Record]:
        """What `write_record` wrote."""
        try:
            with open(self.path + "/record", encoding="ascii") as stream:
                found = json.load(stream)
            return Record(found["boot"], Process(*found["monitor"]), Process(*found["child"]))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def status(self) -> Tuple[Optional[int], Optional[int]]:
        """The child's pid and the exit code, as far as bwrap has written them."""
        pid: Optional[int] = None
        code: Optional[int] = None
        try:
            with open(self.path + "/status", encoding="ascii") as stream:
                text = stream.read().lstrip()
        except OSError:
            return None, None
        decoder = json.JSONDecoder()
        while text:
            try:
                entry, end = decoder.raw_decode(text)
            except ValueError:
                break  # still being written
            text = text[end:].lstrip()
            pid = entry.get("child-pid", pid)
            code = entry.get("exit-code", code)
        return pid, code

    def stderr(self) -> str:
        """What bwrap said."""
        try:
            with open(self.path + "/stderr", encoding="utf-8", errors="replace") as stream:
                return stream.read(4096)
        except OSError:
            return ""
