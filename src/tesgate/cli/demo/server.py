"""The two servers of the demo: the gateway as a process of its own, and a small web server with the data."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
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

from tesgate.cli.client import TesClient, Unreachable
from tesgate.cli.failure import Exit, Failure

__all__ = ["Gateway", "free_port", "web_server"]

_START_SECONDS = 60.0


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


def free_port(preferred: int = 8000) -> int:
    """A free loopback port; `preferred` if it is free."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise Failure("No port is free on 127.0.0.1.", Exit.SYSTEM_ERROR)


class Gateway:
    """``tesgate serve`` as a process of its own, with its log in a file."""

    def __init__(
        self, *, home: Path, files: Path, runtime: str, hosts: Sequence[str], port: int, environment: Mapping[str, str]
    ) -> None:
        """`hosts`: ``host:port`` of servers on loopback that tasks may use. `environment`: settings besides."""
        self.url = f"http://127.0.0.1:{port}"
        self.log = home / "gateway.log"
        self.arguments = [
            *("serve", "--host", "127.0.0.1", "--port", str(port), "--runtime", runtime),
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
        return shlex.join([self.program, *self.arguments])

    def start(self) -> None:
        """Start it and wait until it answers. Raises `Failure` with the end of its log."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tesgate.cli", *self.arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the gateway in order
            )
        deadline = time.monotonic() + _START_SECONDS
        with TesClient(self.url, timeout=5.0) as client:
            while True:
                if self._process.poll() is not None:
                    raise Failure(f"The gateway ended at its start; its log {self.log} says:\n{self.tail()}", 3)
                try:
                    client.service_info()
                    return
                except Unreachable:
                    if time.monotonic() > deadline:
                        raise Failure(
                            f"The gateway did not answer within {_START_SECONDS:g} s; its log {self.log} says:\n"
                            f"{self.tail()}",
                            3,
                        ) from None
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
