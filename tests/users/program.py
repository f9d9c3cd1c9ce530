"""The program ``tesgate`` as a person meets it, many times over: forked from one process that has imported it already.

``python -m tests.users.program`` reads requests (JSON lines) and runs ``main()`` in a fresh child for each of them,
with its own environment, user, limits and standard streams: the import, which takes most of a second, is paid once.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Done", "Program", "programs"]

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Done:
    """How it ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What the person is told, without log lines; the program must have ended with one."""
        assert self.code not in (0, 1), self
        assert "Traceback" not in self.err, self.err
        head, found, sentence = ("\n" + self.err).rpartition("\ntesgate: ")
        assert found and "\ntesgate: " not in head, self.err
        return sentence.strip()


class Program:
    """Runs it."""

    def __init__(self, process: subprocess.Popen[str], home: Path) -> None:
        self._process = process
        self.home = home

    def __call__(self, *arguments: str, seconds: float = 60, **more: Any) -> Done:
        """`more`: ``environment`` (added), ``uid``, ``files`` (limit), ``cwd``."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"arguments": arguments, "seconds": seconds, **more}) + "\n")
        self._process.stdin.flush()
        readable, _, _ = select.select([self._process.stdout], [], [], seconds + 30)
        assert readable, f"no answer about {arguments}"
        return Done(**json.loads(self._process.stdout.readline()))


@contextlib.contextmanager
def programs(*, mounts: str = "") -> Generator[Program]:
    """`mounts`: shell commands that mount what the tests need, in a mount namespace of its own."""
    home = Path(tempfile.mkdtemp(prefix="tesgate-users-"))
    home.chmod(0o755)
    command = [sys.executable, "-m", "tests.users.program"]
    if mounts:
        # As an ordinary user in a user namespace, and back to the own user id before the program starts.
        back = f"unshare -U --map-user={os.geteuid()} --map-group={os.getegid()} " if os.geteuid() else ""
        shell = f'{mounts} && exec {back}"$@"'
        command = ["unshare", *(["-U", "-r"] if os.geteuid() else []), "-m", "sh", "-ec", shell, "sh", *command]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TESGATE_")}
    environment["HOME"] = str(home)
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**environment, "USERS_HOME": str(home)},
    )
    try:
        yield Program(process, home)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(30)
        assert process.stdout
        process.stdout.close()
        shutil.rmtree(home, ignore_errors=True)


def _child(request: dict[str, Any], out: int, err: int) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.update(request.get("environment", {}))
    if files := request.get("files"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if (uid := request.get("uid")) is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.chdir(request.get("cwd", os.environ["USERS_HOME"]))
    sys.argv = ["tesgate", *request["arguments"]]
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    code: Any = 0
    try:
        from tesgate.cli.main import main

        main()
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _serve() -> None:
    # Everything that a child would import later: as another user it may not reach these files any more.
    import concurrent.futures.thread  # noqa: F401
    import traceback  # noqa: F401

    import uvloop  # noqa: F401

    import tesgate.app
    import tesgate.cli.main  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _child(request, out.fileno(), err.fileno())
            signal.signal(signal.SIGALRM, lambda *_, pid=pid: os.kill(pid, signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, request["seconds"])
            _, status = os.waitpid(pid, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        done = {"code": os.waitstatus_to_exitcode(status), "out": texts[0], "err": texts[1]}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
