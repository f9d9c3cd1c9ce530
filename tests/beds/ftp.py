"""FTP servers: vsftpd of Debian (plain, with explicit and with implicit TLS), its pure-ftpd (plain and with explicit
TLS), and pyftpdlib, which misbehaves."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.beds import BedUnavailable, cache_directory
from tests.beds.s3 import _free_ports

__all__ = ["PASSWORD", "Faulty", "Servers", "Site", "serving"]

PACKAGES = {"vsftpd": ("vsftpd", "libwrap0"), "pure-ftpd": ("pure-ftpd", "libsodium23")}
"""Unpacked, not installed: installed ones would serve this machine's files on port 21."""
PASSWORD = "swordfish-%7-in the deep"
REQUIREMENTS = Path(__file__).parent / "requirements/ftp.txt"
MAKE_SECONDS = 300
START_SECONDS = 20


@dataclass(frozen=True)
class Site:
    """One running vsftpd or pure-ftpd. Its login directory holds ``pub``, where who knows the password may write."""

    port: int
    root: Path
    """What ``pub`` is on disk."""
    scheme: str = "ftp"
    user: str = "anonymous"
    password: str = PASSWORD

    def url(self, path: str) -> str:
        """The URL of what lies below ``pub``."""
        return f"{self.scheme}://localhost:{self.port}/pub/{path}"


class Faulty:
    """One running pyftpdlib; users ``lab`` (password ``lab:secret/1``) and anonymous."""

    def __init__(self, process: subprocess.Popen[str], root: Path) -> None:
        self.process = process
        self.root = root
        self.port: int = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BedUnavailable("the server of pyftpdlib ended.")
        return line

    def _say(self, message: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def set(self, **faults: Any) -> None:
        """Replace its faults; see ``ftp_server.py``."""
        assert self._say({"set": faults}) == "ok"

    def log(self) -> list[str]:
        """Commands since the last time."""
        return list(self._say({"log": 1}))

    def url(self, path: str, scheme: str = "ftp") -> str:
        return f"{scheme}://localhost:{self.port}/{path}"


@dataclass
class Servers:
    """The bed. Servers are started when they are first asked for, and stay."""

    base: Path
    certificate: Path
    """Of ``localhost`` and 127.0.0.1; it is its own authority."""
    vsftpd: Callable[..., Site]
    """``vsftpd(tls, **settings)``: tls is empty, ``explicit`` or ``implicit``."""
    pure: Callable[..., Site]
    """``pure(tls, *options)`` starts pure-ftpd; tls is empty or ``explicit``."""
    faulty: Callable[..., Faulty]
    """``faulty(tls=False, home="")``: `home` is lab's login directory below the root."""


@contextmanager
def serving() -> Generator[Servers]:
    """Unpack and install (the first time, some seconds) and start what is asked for."""
    if os.geteuid() != 0:
        raise BedUnavailable("vsftpd needs root.")
    if shutil.which("openssl") is None:
        raise BedUnavailable("openssl is not installed (apt-get install openssl).")
    cache = cache_directory()
    with (cache / "ftp.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        programs = {name: _unpacked(cache, name) for name in PACKAGES}
        python = _environment(cache)
    with ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tesgate-ftp-")))
        base.chmod(0o755)
        certificate = _certificate(base)
        sites: dict[str, Site] = {}
        faulties: dict[str, Faulty] = {}

        def stand(key: str, start: Callable[[Path], Site]) -> Site:
            if key not in sites:
                there = base / f"server-{len(sites)}"
                try:
                    sites[key] = start(there)
                except BedUnavailable:
                    # Somebody else may have taken a port that was free when it was looked for.
                    sites[key] = start(there.with_suffix(".again"))
            return sites[key]

        def vsftpd(tls: str = "", **settings: str) -> Site:
            return stand(
                json.dumps([tls, settings], sort_keys=True),
                lambda there: _start_vsftpd(programs["vsftpd"], there, certificate, tls, settings, stack),
            )

        def pure(tls: str = "", *options: str) -> Site:
            return stand(
                json.dumps(["pure", tls, options]),
                lambda there: _start_pure(programs["pure-ftpd"], there, certificate, tls, options, stack),
            )

        def faulty(*, tls: bool = False, home: str = "") -> Faulty:
            key = f"{tls}/{home}"
            if key not in faulties:
                root = base / f"faulty-{len(faulties)}"
                (root / home).mkdir(parents=True)
                program = [str(python), str(Path(__file__).with_name("ftp_server.py")), str(root), home]
                process = subprocess.Popen(
                    [*program, str(certificate) if tls else ""],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                stack.callback(_stop, process)
                faulties[key] = Faulty(process, root)
            faulties[key].set()
            faulties[key].log()
            return faulties[key]

        yield Servers(base, certificate, vsftpd, pure, faulty)


def _unpacked(cache: Path, name: str) -> Path:
    target = cache / f"ftp-{name}"
    if (target / "usr/sbin" / name).exists():
        return target
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise BedUnavailable(f"{name} is of Debian, and there is no apt-get.")
    with tempfile.TemporaryDirectory(prefix=f"ftp-{name}.", dir=cache) as directory:
        download = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", *PACKAGES[name]]
        try:
            _run(download, Path(directory))
        except BedUnavailable:
            _run(["apt-get", "update", "-qq"], Path(directory))
            _run(download, Path(directory))
        new = Path(directory) / "root"
        new.mkdir()
        for package in Path(directory).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(new)], Path(directory))
        new.chmod(0o755)
        new.rename(target)
    return target


def _environment(cache: Path) -> Path:
    words = f"{sys.executable} {sys.version}\n".encode() + REQUIREMENTS.read_bytes()
    target = cache / f"ftp-{hashlib.sha256(words).hexdigest()[:12]}"
    if not (target / ".made").exists():
        shutil.rmtree(target, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(target)], cache)
        install = [str(target / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "--no-deps", "--requirement", str(REQUIREMENTS)], cache)
        (target / ".made").touch()
    return target / "bin/python"


def _run(command: list[str], directory: Path, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=MAKE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BedUnavailable(f"{command[0]} did not end within {MAKE_SECONDS} seconds.") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise BedUnavailable(f"{command[0]} failed: {lines[-1][:300]}")


def _certificate(base: Path) -> Path:
    both, key = base / "certificate.pem", base / "key.pem"
    _run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(both)),
        ],
        base,
    )
    both.write_text(both.read_text() + key.read_text())
    return both


def _start_vsftpd(
    programs: Path, base: Path, certificate: Path, tls: str, settings: dict[str, str], stack: ExitStack
) -> Site:
    user = pwd.getpwnam("daemon")  # any but root whose home exists
    root = base / "root/pub"
    root.mkdir(parents=True)
    (base / "empty").mkdir()
    os.chown(root, user.pw_uid, user.pw_gid)
    (base / "passwords").write_text(PASSWORD + "\n")
    (port,) = _free_ports(1)
    lines = {
        "listen": "YES",
        "listen_address": "127.0.0.1",
        "listen_port": str(port),
        "background": "NO",
        "anonymous_enable": "YES",
        "local_enable": "NO",
        "ftp_username": user.pw_name,
        "anon_root": str(base / "root"),
        "secure_chroot_dir": str(base / "empty"),
        "secure_email_list_enable": "YES",
        "email_password_file": str(base / "passwords"),
        "write_enable": "YES",
        "anon_upload_enable": "YES",
        "anon_mkdir_write_enable": "YES",
        "anon_other_write_enable": "YES",
        "anon_umask": "022",
        "seccomp_sandbox": "NO",
        "xferlog_enable": "NO",
        "delay_failed_login": "0",
    }
    if tls:
        names = ("ssl_enable", "allow_anon_ssl", "force_anon_data_ssl", "force_anon_logins_ssl", "require_ssl_reuse")
        lines.update(dict.fromkeys(names, "YES"))
        lines.update(rsa_cert_file=str(certificate), ssl_ciphers="HIGH")
        lines["implicit_ssl"] = "YES" if tls == "implicit" else "NO"
    lines.update(settings)
    configuration = base / "vsftpd.conf"
    configuration.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    _launch([str(programs / "usr/sbin/vsftpd"), str(configuration)], programs, base, port, stack)
    return Site(port, root, "ftps" if tls == "implicit" else "ftp")


def _start_pure(
    programs: Path, base: Path, certificate: Path, tls: str, options: tuple[str, ...], stack: ExitStack
) -> Site:
    user = pwd.getpwnam("daemon")
    root = base / "root/pub"
    root.mkdir(parents=True)
    os.chown(root, user.pw_uid, user.pw_gid)
    # Not by `pure-pw useradd`: its hashes take a second and more of each login.
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
    ).stdout.strip()
    account = f"lab:{hashed}:{user.pw_uid}:{user.pw_gid}::{root.parent}/./" + ":" * 12
    (base / "passwords").write_text(account + "\n")
    made = [str(programs / "usr/bin/pure-pw"), "mkdb", str(base / "users.pdb"), "-f", str(base / "passwords")]
    _run(made, base, _environment_of(programs))
    (port,) = _free_ports(1)
    words = ["-S", f"127.0.0.1,{port}", "-l", f"puredb:{base}/users.pdb", "-E", "-A", "-H", "-u", "1"]
    words += ["-g", str(base / "pid"), *(("-Y", "2", "-2", str(certificate)) if tls else ("-Y", "0"))]
    _launch([str(programs / "usr/sbin/pure-ftpd"), *words, *options], programs, base, port, stack)
    return Site(port, root, user="lab")


def _environment_of(programs: Path) -> dict[str, str]:
    places = dict.fromkeys(str(path.parent) for path in programs.glob("**/lib*.so.*"))
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(places)}


def _launch(command: list[str], programs: Path, base: Path, port: int, stack: ExitStack) -> None:
    name = Path(command[0]).name
    log: IO[bytes] = stack.enter_context((base / "server.log").open("wb"))
    process = subprocess.Popen(command, env=_environment_of(programs), stdout=log, stderr=log)
    stack.callback(_stop, process)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            answers = True
        except OSError:
            answers = False
        # Where it ended, somebody else's server answers at its port.
        ended = process.poll() is not None
        if answers and not ended:
            return
        if ended or time.monotonic() > deadline:
            said = (base / "server.log").read_text(errors="replace").strip()
            raise BedUnavailable(f"{name} does not answer: {said[-300:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[Any]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
