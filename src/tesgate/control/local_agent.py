"""The agent on this host: started as a process of its own, found again when it lives, replaced when it is another."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog

__all__ = ["LocalAgent"]

log = structlog.get_logger(__name__)

SOON = 5.0
"""An agent that ended within so many seconds of its start is started again more and more slowly."""
LONGEST_PAUSE = 30.0
REPLACE_SECONDS = 20.0
_OURS = ("TESGATE_", "AWS_", "PG")
"""How names of variables begin that hold the gateway's settings and credentials."""


class LocalAgent:
    """Keeps one agent running in its own session, so that neither Ctrl-C nor our death ends it."""

    def __init__(
        self, *, command: Sequence[str], identity: str, record: Path, log_file: Path, hidden: Collection[str] = ()
    ) -> None:
        """`identity` changes whenever a living agent should be replaced (program version, options).

        `hidden`: environment variables with secrets, besides those that are known to be the gateway's own.
        """
        self._hidden = frozenset(hidden)
        self._command = list(command)
        self._identity = identity
        self._record = record
        self._log_file = log_file
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause = 0.0
        self.trouble = ""
        """Why there is no agent on this host, for people who wait; empty while one lives."""

    async def once(self) -> bool:
        """Look after it."""
        await anyio.to_thread.run_sync(self._look)
        return False

    async def stop(self) -> None:
        """Ask it to end, and wait for that; its containers go on and the next agent takes them up."""
        known = self._known()
        if known is not None:
            await anyio.to_thread.run_sync(self._end, known)

    def _look(self) -> None:
        known = self._known()
        if known is not None and known.get("identity") == self._identity:
            self.trouble = ""
            return
        if known is not None:
            log.info("replacing the agent", process=known["pid"])
            self._end(known)
            if self._known() is not None:
                # Another one beside it would find the scratch directory locked, and its record would be lost.
                self.trouble = f"the one on this host (process {known['pid']}) is to be replaced and does not end"
                log.warning("the agent does not end", process=known["pid"])
                return
        if self._child is not None:
            lived = time.monotonic() - self._started_at
            self._pause = min(LONGEST_PAUSE, max(1.0, self._pause * 2)) if lived < SOON else 0.0
            self.trouble = f"the one on this host ended with code {self._child.returncode}: see {self._log_file}"
            log.warning("the agent has ended", code=self._child.returncode, log=str(self._log_file))
            self._child = None
        if time.monotonic() - self._started_at >= self._pause:
            self._start()

    def _start(self) -> None:
        self._trim_log()
        with open(self._log_file, "ab") as output:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                cwd="/",
                env={name: value for name, value in os.environ.items() if not self._is_ours(name)},
            )
        self._started_at = time.monotonic()
        pid = self._child.pid
        content = json.dumps({"pid": pid, "born": _born(pid), "identity": self._identity})
        fresh = self._record.with_name(self._record.name + ".new")
        fresh.write_text(content, "utf-8")
        fresh.replace(self._record)
        log.info("agent started", process=pid)

    def _is_ours(self, name: str) -> bool:
        """Settings and credentials of the gateway: nothing for a process beside which other people's commands run."""
        return name.startswith(_OURS) or name in self._hidden

    def _known(self) -> dict[str, Any] | None:
        """The recorded agent, if that very process lives."""
        if self._child is not None:
            self._child.poll()
        try:
            known: dict[str, Any] = json.loads(self._record.read_text("utf-8"))
            pid, born = int(known["pid"]), known["born"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return known if born is not None and _born(pid) == born else None

    def _end(self, known: dict[str, Any]) -> None:
        pid = int(known["pid"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + REPLACE_SECONDS
        pause = 0.02
        while self._known() is not None and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)

    def _trim_log(self) -> None:
        with contextlib.suppress(OSError):
            if self._log_file.stat().st_size > 32 << 20:
                self._log_file.replace(self._log_file.with_name(self._log_file.name + ".1"))


def _born(pid: int) -> str | None:
    """When the process was started, in the kernel's ticks: a pid alone may be somebody else's by now.

    None: there is no such process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "unknown"
    # A zombie is nobody.
    return None if fields[0] in ("Z", "X") else fields[19]
