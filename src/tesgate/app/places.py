"""The data directory: its lock, its keys, and the names that outlive the process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from tesgate.config import Settings
from tesgate.errors import ConfigError

__all__ = ["DataDir"]

log = structlog.get_logger(__name__)


class DataDir:
    """Files of one gateway process; 0700, and every secret in it 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.agent_token = path / "agent.token"
        self.agent_log = path / "agent.log"
        self.logs = path / "workspace"

    def make(self) -> None:
        """Create it. Raises `ConfigError` with the way out."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise ConfigError(self._unusable(error)) from None

    def fault(self) -> str:
        """Why `make` would fail, without making anything; empty where it would not."""
        above = next((path for path in (self.path, *self.path.absolute().parents) if path.exists()), Path("/"))
        if not above.is_dir():
            return self._unusable(NotADirectoryError(errno.ENOTDIR, ""))
        if not os.access(above, os.W_OK | os.X_OK):
            return self._unusable(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        return ""

    def _unusable(self, error: OSError) -> str:
        other = "give another one with --data-dir"
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            return f"data_dir: {self.path} is not a directory, or lies below a file; {other}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"data_dir: the disk that holds {self.path} is full; free some space, or {other}"
        if error.errno in (errno.EACCES, errno.EPERM):
            return (
                f"data_dir: {self.path} cannot be written by {_whoami()} ({error.strerror}); run tesgate as its owner, "
                f"change its owner or mode, or {other}"
            )
        return f"data_dir: {self.path} cannot be written ({error.strerror}); {other}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One gateway a data directory. The lock goes with the process, however that ends."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"data_dir: another gateway (process {os.pread(descriptor, 20, 0).decode().strip() or '?'}) uses "
                    f"{self.path}; stop it, or give another one with --data-dir"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def check_original(self) -> None:
        """Refuse a copy: it would be the same replica of the same deployment with the same agent, a second time.

        To be called under the lock. Raises `ConfigError` with the way out.
        """
        path = self.path / "original"
        if not path.exists() or not path.stat().st_size:  # empty: the host died before it was on the disk
            fresh = path.with_name("original.new")
            try:
                self.write_private(fresh, "")
                with fresh.open("w", encoding="ascii") as file:
                    file.write(f"{os.fstat(file.fileno()).st_ino}\n")
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(path)
            except OSError as exc:
                if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                fresh.unlink(missing_ok=True)
                return  # a full disk must not keep a gateway from starting; the next start writes it
        if path.read_text("ascii").strip() != str(path.stat().st_ino):
            raise ConfigError(
                f"data_dir: {self.path} is a copy of another gateway's data directory, and both together would run "
                f"tasks twice; give another --data-dir (or, if the original is gone for good, remove {path})"
            )

    def replica_id(self) -> str:
        """The name of this replica: it outlives the process, so that a restart takes over its own tasks at once."""
        return self._once("replica.id", lambda: uuid.uuid4().hex[:12]).decode().strip()

    def secret_key(self, settings: Settings) -> bytes:
        """The deployment's key: the configured file, or one made here at the first start."""
        if settings.secret_key_file is None:
            return self._once("secret.key", lambda: secrets.token_hex(32)).strip()
        try:
            key = settings.secret_key_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"secret_key_file: {settings.secret_key_file} cannot be read ({error.strerror}); correct the path"
            ) from None
        if len(key) < 32:
            raise ConfigError(
                f"secret_key_file: {settings.secret_key_file} has {len(key)} bytes and needs at least 32; "
                f"make one with: openssl rand -hex 32 > {settings.secret_key_file}"
            )
        return key

    def warn_of_open_secrets(self, settings: Settings) -> None:
        """Files with secrets that every user of this machine may read: said, and left to the operator."""
        named = {"auth.tokens_file": settings.auth.tokens_file, "secret_key_file": settings.secret_key_file}
        for name, path in named.items():
            if path is not None and path.exists() and path.stat().st_mode & 0o007:
                log.warning(
                    f"{name} is open to every user of this machine; close it with `chmod o= FILE`", file=str(path)
                )

    def write_private(self, path: Path, content: str) -> None:
        """Replace a file of ours, readable for us alone, in one step."""
        fresh = path.with_name(path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        fresh.replace(path)

    def _once(self, name: str, make: Callable[[], str]) -> bytes:
        """A file that is made once; of several processes that meet here at the first start one wins for all."""
        path = self.path / name
        if not path.exists():
            fresh = path.with_name(f"{name}.{os.getpid()}.{secrets.token_hex(4)}")
            self.write_private(fresh, make())
            try:
                with contextlib.suppress(FileExistsError):
                    os.link(fresh, path)
            finally:
                fresh.unlink()
        return path.read_bytes()


def _whoami() -> str:
    return f"user {os.geteuid()}" if os.geteuid() else "root"
