"""An agent as a process of its own against the scripted gateway, and plans for it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from tesgate.runner.plan import Executor, Input, Mount, Output, Plan
from tests.runner.gateway_fake import AGENT_TOKEN, FakeGateway, Key, wait_for

__all__ = ["Bench"]

_numbers = itertools.count(1)


class Bench:
    """Scratch, a shared root, a gateway, and agents that are started and killed."""

    def __init__(self, directory: Path, runtime: str, *, image: str = "busybox", options: Optional[List[str]] = None):
        self.directory, self.runtime, self.image = directory, runtime, image
        self.scratch, self.root = directory / "scratch", directory / "root"
        self.root.mkdir()
        self.token_file = directory / "token"
        self.token_file.write_text(AGENT_TOKEN + "\n")
        self.options = list(options or [])
        self.python = [sys.executable, "-W", "error"]
        self.program: Optional[List[str]] = None
        """How to call the runner, where it is not this Python's module."""
        self.python_path = [path for path in sys.path if path]
        self.gateway = FakeGateway()
        self.gateway.start()
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.log_path = directory / "agent.log"

    # -- agents ------------------------------------------------------------------------------------------------

    def start(self, crash_at: Optional[str] = None, *more: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self.python_path)}
        environment.pop("TESGATE_TEST_CRASH_AT", None)
        if crash_at is not None:
            environment["TESGATE_TEST_CRASH_AT"] = crash_at
        program = self.program or [*self.python, "-m", "tesgate.runner"]
        command = [*program, "agent", "--url", self.gateway.url]
        command += ["--token-file", str(self.token_file), "--scratch", str(self.scratch), "--runtime", self.runtime]
        command += ["--root", "data=%s" % self.root, *self.options, *more]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        return self.process

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_killed(self, seconds: float = 30.0) -> None:
        """Wait until the agent has died at its crash point."""
        assert self.process is not None
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError("the agent did not reach its crash point\n" + self.log()) from None
        assert code == -signal.SIGKILL, (code, self.log())

    def terminate(self, seconds: float = 60.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-8000:] if self.log_path.exists() else ""

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.gateway.stop()

    # -- plans -------------------------------------------------------------------------------------------------

    def plan(self, *scripts: str, attempt: int = 1, task: Optional[str] = None, **more: Any) -> Plan:
        """One executor a shell script, all with /work in common, which each can count its runs in."""
        task = task or "t%d%05d" % (os.getpid(), next(_numbers))
        executors: List[Executor] = more.pop("executors", None) or [
            Executor(image=self.image, command=["/bin/sh", "-c", script], workdir="/work") for script in scripts
        ]
        return Plan(
            task=task,
            attempt=attempt,
            external_name="tg-test-%s-%d" % (task, attempt),
            executors=executors,
            token="tgt_%s.%d" % (task, attempt),
            deployment="test",
            mounts=more.pop("mounts", [Mount(source="rw/work", target="/work")]),
            network="none",
            **more,
        )

    def counted(self, steps: int = 2, **more: Any) -> Plan:
        """Executors that each leave one line a run in an output, and print it; those `held` go on until `release`."""
        held = more.pop("held", ())
        scripts = ["echo run-%d | tee -a /work/count.txt" % n for n in range(steps)]
        for n in held:
            scripts[n] += "; until [ -e /work/go-%d ]; do sleep 0.1; done" % n
        outputs = [Output(path="/work/count.txt", url=(self.root / "count.txt").as_uri())]
        inputs = [Input(path="/work/in.txt", place="rw/work/in.txt", content="hello", writable=True)]
        return self.plan(*scripts, outputs=outputs, inputs=inputs, **more)

    def release(self, step: int) -> None:
        """Let executor `step` of a `held` plan end."""
        for name in self.attempts():
            (self.scratch / "attempts" / name / "rw" / "work" / ("go-%d" % step)).touch()

    def output(self, name: str) -> str:
        return (self.root / name).read_text()

    # -- what must hold at the end -----------------------------------------------------------------------------

    def attempts(self) -> List[str]:
        directory = self.scratch / "attempts"
        return sorted(os.listdir(directory)) if directory.exists() else []

    def nothing_left(self, key: Key) -> None:
        """Wait until the attempt is forgotten, and its directory, containers and temporaries are gone."""
        self.gateway.gone_from_have(key)
        wait_for(lambda: not self.attempts(), "the scratch to be empty (%s)" % self.attempts())
        assert not self.steps(), "containers are left"
        assert not [name for name in os.listdir(self.root) if name.startswith(".tesgate")]
        assert os.listdir(self.scratch / "tombstones") == []
        assert self.gateway.violations == [], self.gateway.violations

    def steps(self) -> List[str]:
        """Names of all containers or sandboxes of this scratch."""
        if self.runtime == "bubblewrap":
            directory = self.scratch / "bubblewrap"
            return sorted(os.listdir(directory)) if directory.exists() else []
        if self.runtime == "docker":
            label = "label=tesgate.scratch=%s" % os.path.realpath(self.scratch)
            found = subprocess.run(
                ["docker", "ps", "-a", "--filter", label, "--format", "{{.Names}}"],
                capture_output=True,
                text=True,
                check=True,
            )
            return found.stdout.split()
        return []

    def remove_containers(self) -> None:
        """Remove what an agent that was killed on purpose has left."""
        for name in self.steps():
            subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False)

    def reports(self, key: Key) -> List[Dict[str, Any]]:
        return self.gateway.of(key, "report")
