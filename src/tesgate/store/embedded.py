"""A private PostgreSQL for a gateway that was given no database: made, started, shared, adopted, stopped.

The server has its own session and outlives whoever started it, so Ctrl-C in the terminal and ``kill -9`` of the
gateway leave it running and the next start adopts it. Every process that uses it holds a shared lock on
``<data-dir>/postgres.users``; the last one that leaves in good order stops it. Starting and stopping are
serialized by ``<data-dir>/postgres.lock``. There is no TCP: the socket stands in a directory of mode 0700.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

from tesgate.store.embedded_place import (
    Binaries,
    ServerUser,
    choose_socket_directory,
    find_binaries,
    find_server_user,
    place_cluster,
)
from tesgate.store.embedded_postmaster import Postmaster, clear_stale_locks
from tesgate.store.errors import EmbeddedPostgresError

__all__ = ["EmbeddedPostgres"]

logger = logging.getLogger(__name__)

NAME = "tesgate"
"""Of the database and of its role."""
LOG_BYTES = 16 * 1024 * 1024
"""A longer log is moved to ``postgres.log.1``."""
POLL_SECONDS = 0.02

CLUSTER_SETTINGS = {
    # Written into postgresql.conf when the cluster is made, where an operator may change them.
    "shared_buffers": "96MB",
    "max_connections": "100",
    "max_wal_size": "1GB",
    "min_wal_size": "80MB",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
    # Short statements on few rows: a parallel plan would only cost.
    "max_parallel_workers_per_gather": "0",
    # Files instead of /dev/shm, which is small in containers and emptied by logind when an ordinary user logs out.
    "dynamic_shared_memory_type": "mmap",
    # The tables are small and much updated.
    "autovacuum_naptime": "15s",
}


class EmbeddedPostgres:
    """The private PostgreSQL of one data directory; ``async with EmbeddedPostgres(data_dir) as pg: pg.dsn``."""

    def __init__(
        self,
        data_directory: Path,
        *,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = 60,
        stop_timeout: float = 30,
    ) -> None:
        """Nothing happens before `start`.

        `settings` go to the server's command line, over what its configuration file says; the timeouts are seconds.
        """
        self._data_directory = data_directory.absolute()
        self._settings = dict(settings or {})
        self._start_timeout = start_timeout
        self._stop_timeout = stop_timeout
        self._log_path = self._data_directory / "postgres.log"
        self._cluster = self._data_directory / "postgres"
        self._user: ServerUser | None = None
        self._binaries: Binaries | None = None
        self._dsn = ""
        self._users_lock: int | None = None

    @property
    def dsn(self) -> str:
        """The URL to connect to. Raises `EmbeddedPostgresError` before `start`."""
        if not self._dsn:
            raise EmbeddedPostgresError("The embedded PostgreSQL was not started.")
        return self._dsn

    @property
    def binaries(self) -> Path:
        """The directory of ``psql``, ``pg_dump`` and the like."""
        if self._binaries is None:
            raise EmbeddedPostgresError("The embedded PostgreSQL was not started.")
        return self._binaries.directory

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Make the cluster if there is none, and start the server or adopt the living one.

        Raises `EmbeddedPostgresError` with one sentence to show. May be called again. A cancellation is
        followed when the server stands (or failed to), and leaves nothing of ours running.
        """
        try:
            await anyio.to_thread.run_sync(self._start)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Leave the server, and stop it if nobody else uses it. Idempotent; takes its time even when cancelled."""
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._stop)

    async def keep(self, *, interval: float = 1) -> None:
        """Start the server again whenever it went away (say, by the kernel's out-of-memory killer); never returns."""
        while True:
            await anyio.sleep(interval)
            try:
                await anyio.to_thread.run_sync(self._revive)
            except EmbeddedPostgresError as exc:
                logger.error("%s", exc)
            except Exception:
                # Such as no memory for a process, of which the server has just died: another look may do better.
                logger.exception("the embedded PostgreSQL could not be looked after")

    # ---- in a thread from here on ----

    def _start(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        try:
            self._data_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock(deadline):
                self._user = find_server_user()
                self._binaries = find_binaries(user=self._user)
                self._cluster, self._user = place_cluster(self._data_directory, user=self._user)
                self._ensure_running(self._binaries, deadline)
                if self._users_lock is None:
                    self._users_lock = self._open("postgres.users")
                    # Exclusive only while somebody under `postgres.lock`, which we hold, looks whether he is the last.
                    fcntl.flock(self._users_lock, fcntl.LOCK_SH)
        except OSError as exc:
            raise EmbeddedPostgresError(_explain(exc.errno, str(exc), self._data_directory)) from exc

    def _stop(self) -> None:
        users_lock, self._users_lock, self._dsn = self._users_lock, None, ""
        if users_lock is None:
            return
        try:
            with self._lock(time.monotonic() + self._stop_timeout):
                try:
                    fcntl.flock(users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return
                self._shut_down()
        finally:
            os.close(users_lock)

    def _revive(self) -> None:
        self._trim_log()
        server = Postmaster.read(self._cluster)
        if self._users_lock is None or self._binaries is None or (server and server.answers()):
            return
        deadline = time.monotonic() + self._start_timeout
        try:
            with self._lock(deadline):
                self._ensure_running(self._binaries, deadline)
        except OSError as exc:
            raise EmbeddedPostgresError(_explain(exc.errno, str(exc), self._data_directory)) from exc

    @contextlib.contextmanager
    def _lock(self, deadline: float) -> Iterator[None]:
        """Alone with the cluster among all processes that start or stop it."""
        descriptor = self._open("postgres.lock")
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise EmbeddedPostgresError(
                            f"Another process has been starting or stopping the PostgreSQL in {self._data_directory} "
                            "for too long: see what holds postgres.lock there."
                        ) from None
                    time.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _open(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_APPEND
        return os.open(self._data_directory / name, flags, 0o600)

    def _ensure_running(self, binaries: Binaries, deadline: float) -> None:
        if not (self._cluster / "PG_VERSION").exists():
            self._make_cluster(binaries)
        self._check_version(binaries)
        self._trim_log()
        while time.monotonic() < deadline:
            server = Postmaster.read(self._cluster)
            if server and server.answers():
                self._dsn = f"postgresql://{NAME}@/{NAME}?host={server.socket_directory}&port=5432"
                return
            if server and server.is_alive(self._cluster):
                time.sleep(POLL_SECONDS)  # starting, recovering, or still stopping
                continue
            self._launch(binaries, deadline)
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL did not answer within {self._start_timeout:.0f} seconds; "
            f"it may still be recovering: see {self._log_path} and start again."
        )

    def _make_cluster(self, binaries: Binaries) -> None:
        """Under a temporary name and renamed when whole, so that one that exists is complete."""
        if self._cluster.is_dir() and any(self._cluster.iterdir()):
            raise EmbeddedPostgresError(
                f"The directory {self._cluster} holds something else than a PostgreSQL cluster: "
                "move it away, or choose another data directory."
            )
        for left_over in self._cluster.parent.glob(f"{self._cluster.name}.new-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        new = self._cluster.with_name(f"{self._cluster.name}.new-{secrets.token_hex(4)}")
        new.mkdir(mode=0o700)
        if self._user:
            os.chown(new, self._user.uid, self._user.gid)
        settings = CLUSTER_SETTINGS | self._settings
        command = [binaries["initdb"], "--pgdata", str(new), f"--username={NAME}", "--encoding=UTF8", "--locale=C"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        command += ["--auth-local=trust", "--auth-host=reject"]
        command += [] if settings["fsync"] == "on" else ["--no-sync"]
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        single = [binaries["postgres"], "--single", "-D", str(new), "postgres"]
        try:
            self._carry_out(command)
            self._carry_out(single, f"CREATE DATABASE {NAME};\n")
            new.rename(self._cluster)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _carry_out(self, command: list[str], text: str = "") -> None:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            **self._as_user(),
        )
        if done.returncode or "ERROR" in done.stderr:
            raise EmbeddedPostgresError(self._reason(done.stderr, "could not be set up"))

    def _as_user(self) -> dict[str, Any]:
        # PG* variables of the caller's shell mean other servers.
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
        if self._user is None:
            return {"env": environment, "umask": 0o077}
        user = self._user
        return {"env": environment, "umask": 0o077, "user": user.uid, "group": user.gid, "extra_groups": []}

    def _check_version(self, binaries: Binaries) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        if found == str(binaries.major):
            return
        raise EmbeddedPostgresError(
            f"The database in {self._cluster} was made by PostgreSQL {found}, and this tesgate carries PostgreSQL "
            f"{binaries.major}. Either run the tesgate that made it, dump with its pg_dump, move the directory away "
            f"and restore with psql here; or run {binaries['pg_upgrade']} with --old-bindir of a PostgreSQL {found} "
            f"and --old-datadir {self._cluster}."
        )

    def _launch(self, binaries: Binaries, deadline: float) -> None:
        """Start the server and wait until it answers, ends, or the deadline has passed."""
        sockets = choose_socket_directory(self._cluster, user=self._user)
        clear_stale_locks(self._cluster, sockets)
        fixed = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
            "port": "5432",
            "logging_collector": "off",
            "log_destination": "stderr",
        }
        command = [binaries["postgres"], "-D", str(self._cluster)]
        for name, value in (self._settings | fixed).items():
            command += ["-c", f"{name}={value}"]
        log = self._open(self._log_path.name)
        try:
            offset = os.fstat(log).st_size
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the gateway, which stops the server when it has done with it
                **self._as_user(),
            )
        finally:
            os.close(log)
        # Whoever is its parent must reap it, however long it lives and whoever stops it.
        threading.Thread(target=process.wait, name="embedded-postgres", daemon=True).start()
        while time.monotonic() < deadline:
            server = Postmaster.read(self._cluster)
            if server and server.pid == process.pid and server.answers():
                return
            if process.poll() is not None:
                said = self._log_since(offset)
                if "still in use" not in said:  # otherwise children of a killed server are about to end: again
                    raise EmbeddedPostgresError(self._reason(said, "did not start"))
                time.sleep(POLL_SECONDS * 10)
                return
            time.sleep(POLL_SECONDS)

    def _shut_down(self) -> None:
        server = Postmaster.read(self._cluster)
        if server is None or not server.is_alive(self._cluster):
            return
        for number in (signal.SIGINT, signal.SIGQUIT):  # fast, then at once (and recovery at the next start)
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, number)
            deadline = time.monotonic() + self._stop_timeout
            while time.monotonic() < deadline:
                if not server.is_alive(self._cluster):
                    return
                time.sleep(POLL_SECONDS / 2)
            logger.warning("the embedded PostgreSQL (process %d) does not stop", server.pid)

    def _trim_log(self) -> None:
        """Bound the log: the server appends through its own descriptor, so the content is copied and then cut."""
        with contextlib.suppress(OSError):
            if self._log_path.stat().st_size > LOG_BYTES:
                shutil.copyfile(self._log_path, self._log_path.with_name("postgres.log.1"))
                os.truncate(self._log_path, 0)

    def _log_since(self, offset: int) -> str:
        with self._log_path.open("rb") as log:
            log.seek(offset)
            return log.read(65536).decode(errors="replace")

    def _reason(self, said: str, what: str) -> str:
        """One sentence from what a program of PostgreSQL printed."""
        if "No space left on device" in said:
            return _explain(errno.ENOSPC, "", self._cluster)
        if "Read-only file system" in said:
            return _explain(errno.EROFS, "", self._cluster)
        marks = ("FATAL:", "PANIC:", "error:", "ERROR:")
        lines = [line for line in said.strip().splitlines() if any(mark in line for mark in marks)]
        line = (lines or said.strip().splitlines() or ["it said nothing"])[-1].strip()
        return f"The embedded PostgreSQL {what} ({line[:300]}): see {self._log_path}."


def _explain(number: int | None, text: str, place: Path) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {place} is full: free some space and start again."
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"The data directory {place} cannot be written to: choose another one, or change its owner or mode."
    if number == errno.ENOLCK:
        return f"The file system of {place} has no file locks: choose a data directory on a local disk."
    return f"The embedded PostgreSQL cannot use {place}: {text}."
