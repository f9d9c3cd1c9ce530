"""The two servers of the demo: the gateway as a process of its own, and a small web server with the data."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tesgate.cli.failure import Exit, Failure

__all__ = ["Gateway", "said", "web_server"]

_START_SECONDS = 60.0
_PORT = 8000


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """Serve a directory on loopback; gives ``host:port``."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def said(log: Path, pattern: str) -> str | None:
    """The first group of a pattern in what a server has written.

    A server that takes its port itself says so there. A port that was found free and given to it may be another's by
    then, and that other would answer for it.
    """
    with contextlib.suppress(OSError):
        if found := re.search(pattern, log.read_text("utf-8", "replace")):
            return found[1]
    return None


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


class Gateway:
    """``tesgate serve`` as a process of its own, with its log in a file."""

    def __init__(
        self, *, home: Path, files: Path, runtime: str, hosts: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """`hosts`: ``host:port`` of servers on loopback that tasks may use. `environment`: settings besides."""
        self.url = ""
        """Where it listens, once it has started."""
        self.log = home / "gateway.log"
        self._arguments = [
            *("serve", "--host", "127.0.0.1", "--runtime", runtime),
            *("--data-dir", str(home / "gateway"), "--file-root", f"demo={files}"),
        ]
        # Settings of the user's own gateway must not reach this one.
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("TESGATE_")}
        self._environment["TESGATE_URL_POLICY__ALLOWED_HOSTS"] = ",".join(hosts)
        self._environment.update(environment)
        self._environment["TESGATE_AGENT__IDLE_EXIT"] = "5"
        self._process: subprocess.Popen[bytes] | None = None
        # `make demo` runs in a virtual environment that the person's shell has not entered.
        self.program = "tesgate" if shutil.which("tesgate") else str(Path(sys.executable).with_name("tesgate"))

    @property
    def command(self) -> str:
        """For people: how to start it again."""
        return shlex.join([self.program, *self._arguments, "--port", self.url.rpartition(":")[2]])

    def start(self) -> None:
        """Start it at the usual port, or at another where that is taken. Raises `Failure` with the end of its log."""
        if _is_free(_PORT) and self._start(_PORT):
            return
        # Whoever was faster has the usual port now.
        if not self._start(0):
            raise Failure(f"The gateway ended at its start; its log {self.log} says:\n{self.tail()}", Exit.SYSTEM_ERROR)

    def _start(self, port: int) -> bool:
        """Whether it listens. Raises `Failure` where it does neither that nor end."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tesgate.cli", *self._arguments, "--port", str(port)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the gateway in order
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            ended = self._process.poll() is not None
            if url := said(self.log, r"(?m)^tesgate \S+ listens on (http://\S+) "):
                self.url = url
                return True
            if ended:
                return False
            if time.monotonic() > deadline:
                raise Failure(
                    f"The gateway did not listen within {_START_SECONDS:g} s; its log {self.log} says:\n{self.tail()}",
                    Exit.SYSTEM_ERROR,
                )
            time.sleep(0.05)

    def wait(self) -> int:
        """Until it ends by itself."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """End it in order; by force after a while. Harmless where it does not run."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""
