"""A gateway of a benchmark's own in a temporary directory: embedded PostgreSQL, an agent on this host."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import tree

__all__ = ["Standing", "standing"]


@dataclass
class Standing:
    """A gateway that answers and an agent that has a session."""

    host: str
    port: int
    data: Path
    files: Path
    """A directory below the agent's file root, for inputs and outputs."""
    gateway: int
    """Process id."""

    @property
    def agent(self) -> int:
        found = json.loads((self.data / "agent.json").read_text())
        return int(found["pid"])

    @property
    def postgres(self) -> int:
        """Process id of the postmaster."""
        pids = [int(path.read_text().split()[0]) for path in self.data.rglob("postmaster.pid")]
        return pids[0]

    def agent_log(self) -> str:
        return (self.data / "agent.log").read_text(errors="replace")[-4000:]


@contextmanager
def standing(
    *, settings: Mapping[str, Any], options: Sequence[str] = (), directory: str | None = None
) -> Iterator[Standing]:
    """Start `serve` with these settings (as in its YAML file) and end it with its agent at the end."""
    with tempfile.TemporaryDirectory(prefix="tesgate-bench-", dir=directory) as made:
        os.chmod(made, 0o711)  # the embedded server's own user has to pass
        data, files, config = Path(made) / "data", Path(made) / "files", Path(made) / "tesgate.yaml"
        files.mkdir()
        config.write_text(json.dumps(settings))
        command = [sys.executable, "-m", "tesgate.cli", "serve", "--port", "0", "--config", str(config)]
        command += ["--data-dir", str(data), "--file-root", f"files={files}", *options]
        with (
            (Path(made) / "gateway.log").open("w+") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
        ):
            found: Standing | None = None
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    listens = re.search(r"listens on http://([^:/]+):(\d+)", line)
                    if listens:
                        found = Standing(listens[1], int(listens[2]), data, files, process.pid)
                        break
                if found is None:
                    log.seek(0)
                    raise SystemExit("the gateway did not start:\n" + log.read()[-4000:])
                _until_agent(found)
                yield found
            finally:
                agent = None
                if found is not None and (data / "agent.json").exists():
                    agent = found.agent
                process.send_signal(signal.SIGTERM)
                process.wait(60)
                if agent is not None:
                    _end(agent)


def _until_agent(found: Standing) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found.data / "agent.json").exists() and "session" in found.agent_log():
            return
        time.sleep(0.05)
    raise SystemExit("no agent has registered:\n" + found.agent_log())


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and tree(pid):
        time.sleep(0.05)
