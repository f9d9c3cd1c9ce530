"""A proxy before PostgreSQL that loses connections at the worst moments: around a statement, before its answer."""

from __future__ import annotations

import contextlib
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

__all__ = ["Cutting"]


class Cutting:
    """Stands before the server of one URL; `url` leads through it. Threads, since its users are processes."""

    def __init__(self, upstream: str, directory: Path, rng: random.Random) -> None:
        parts = urlsplit(upstream)
        self._upstream = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.{parts.port or 5432}"
        user = f"{parts.username}:{parts.password or ''}@" if parts.username else ""
        self.url = f"postgresql://{user}/{parts.path.lstrip('/')}?host={directory}&port=5432"
        self._rng = rng
        self.answers_lost = 0.0
        """How probable it is that what is sent is carried out and its answer is lost with the connection."""
        self.statements_lost = 0.0
        """How probable it is that what is sent never arrives."""
        self.cuts = 0
        self._flows = threading.Event()
        self._flows.set()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(directory / ".s.PGSQL.5432"))
        self._server.listen(64)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._thread(self._accept)

    def _thread(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    @classmethod
    @contextlib.contextmanager
    def before(cls, upstream: str, rng: random.Random) -> Iterator[Cutting]:
        with tempfile.TemporaryDirectory(prefix="tg-cut-") as directory:
            proxy = cls(upstream, Path(directory), rng)
            try:
                yield proxy
            finally:
                proxy.close()

    def close(self) -> None:
        """Cut everything, and leave no thread behind."""
        self.flow()
        for one in (self._server, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._server.close()

    def hang(self) -> None:
        """Pass nothing on from now, and cut nothing."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on again."""
        self._flows.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                down, _ = self._server.accept()
                up = socket.socket(socket.AF_UNIX)
                try:
                    up.connect(self._upstream)
                except OSError:
                    down.close()
                    up.close()
                    continue
                doomed = threading.Event()
                self._sockets += [down, up]
                self._thread(self._pump, down, up, True, doomed)
                self._thread(self._pump, up, down, False, doomed)

    def _pump(self, source: socket.socket, sink: socket.socket, is_client: bool, doomed: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if is_client:
                    chance = self._rng.random()
                    if chance < self.statements_lost:
                        self.cuts += 1
                        break
                    if chance < self.statements_lost + self.answers_lost:
                        doomed.set()
                elif doomed.is_set():
                    self.cuts += 1
                    break
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()  # the other direction closes the other one
