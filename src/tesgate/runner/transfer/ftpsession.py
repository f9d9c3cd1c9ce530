"""One session with an FTP server: login, TLS, single commands. Moving bytes is `ftpdata`'s.

Connecting and TLS are ours, not ftplib's: connections go to the checked address only and end with a stop.
RFC 959, 2228, 2389, 2428, 2640, 3659, 4217.
"""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .connect import connect_again, connect_any
from .ftpcontrol import Control
from .ftpfaults import FtpPassing, FtpRefused, code_of
from .ftplogin import FtpLogin
from .ftpsockets import Watch, be_patient
from .ftpurl import FtpUrl
from .policy import AddressPolicy
from .threads import Stop

__all__ = ["FtpSession", "FtpSettings", "Habits", "Trust"]

_UNKNOWN = (500, 501, 502, 503, 504)
"""Answers that mean: this command is not served (so)."""
_MOST_CONTEXTS = 16
_TLS_MEMORY = 60.0
"""Seconds for which a server's TLS counts as broken, or a first failure of it as the last one."""
_KEEP_ALIVE = (("TCP_KEEPIDLE", 45), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8))


@dataclass(frozen=True)
class FtpSettings:
    """How patient transfers are. Spans are seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    """Longest silence of a server, in a reply or in the middle of a file."""
    reply_timeout: float = 30.0
    """For the last word about a file whose bytes are all there: after it, its size is asked in a new session."""
    tries: int = 6
    """Failures in a row (without a new byte) after which a file is given up."""
    first_pause: float = 0.5
    max_pause: float = 30.0


@dataclass
class Habits:
    """What was learned about a server, for later sessions of this agent."""

    epsv: bool = True
    pipelines: Optional[bool] = None
    """It answers commands that come together; None: nobody has tried."""
    tls_failed: Optional[float] = None
    """When its TLS failed last, and has not worked since."""
    plain_until: float = 0.0
    """Its TLS does not work: where it is only taken because it is offered, it is not tried before this moment."""

    def tls_works(self) -> None:
        """Forget what failed before."""
        self.tls_failed = None

    def tls_fails(self, begun: float) -> None:
        """Note a failure of a session that began at `begun`; one alone is no more than a connection that was cut."""
        now = time.monotonic()
        before, self.tls_failed = self.tls_failed, now
        # What was cut together with the first proves nothing.
        if before is not None and before < begun and now - before < _TLS_MEMORY:
            self.plain_until = now + _TLS_MEMORY


class Trust:
    """TLS contexts of one agent: making one reads the system's certificates. Safe in many threads.

    One takes nearly a MiB: those that were used last are kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: OrderedDict[Tuple[bool, Optional[str]], ssl.SSLContext] = OrderedDict()

    def context(self, login: FtpLogin) -> ssl.SSLContext:
        """Raises `FtpRefused` where the gateway's certificates are none."""
        key = (login.tls == "required", login.ca if login.tls == "required" else None)
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(*key)
                while len(self._made) > _MOST_CONTEXTS:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]

    @staticmethod
    def _make(verified: bool, ca: Optional[str]) -> ssl.SSLContext:
        if verified:
            try:
                return ssl.create_default_context(cadata=ca)
            except (ssl.SSLError, ValueError):
                raise FtpRefused("the ca_file of its credential holds no certificates; correct it") from None
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        return made


class FtpSession(Control):
    """One control connection, logged in, for binary transfers. Not for two threads at a time.

    Everything raises what `ftpfaults.explain` knows, and `Stopped` or OSError after a stop.
    """

    def __init__(
        self,
        spot: FtpUrl,
        login: FtpLogin,
        *,
        policy: AddressPolicy,
        settings: FtpSettings,
        habits: Habits,
        trust: Trust,
        stop: Stop,
    ) -> None:
        super().__init__(stop)
        self.settings = settings
        self.patience = settings.read_timeout
        self.login_as = login
        self.habits = habits
        self.context: Optional[ssl.SSLContext] = None
        """Of the data connections too, once they are to be protected."""
        self.features: Dict[str, str] = {}
        self.home = "/"
        self.host_name = spot.host
        self._raw: Optional[socket.socket] = None
        self._watch: Optional[Watch] = None
        try:
            self._begin(spot, login, policy, trust)
        except BaseException:
            self.end()
            raise
        self.broken = False

    def _begin(self, spot: FtpUrl, login: FtpLogin, policy: AddressPolicy, trust: Trust) -> None:
        self._begun = time.monotonic()
        sock = connect_any(
            spot.host,
            spot.port,
            self.stop,
            self.settings.connect_timeout,
            check=lambda addresses: policy.check(spot.host, spot.port, addresses),
        )
        self.sock = sock
        self._raw = sock.dup()
        self._watch = Watch(self._raw, self.stop)
        self._place, self.af = sock.getpeername(), sock.family
        # While a file is under way nothing else goes over this connection, and routers forget what is silent.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        context = None if login.tls == "never" else trust.context(login)
        if context is not None and spot.implicit:
            self._protect(context)
        else:
            self.listen(sock, self._tick_of(), kernel=True)
        self.getresp()
        wanted = login.tls == "required" or self._begun >= self.habits.plain_until
        if context is not None and not spot.implicit and wanted:
            self._upgrade(context, login)
        self._log_in(login)
        if self.context is not None:
            self.voidcmd("PBSZ 0")
            self.voidcmd("PROT P")
        self._learn()

    def _tick_of(self) -> float:
        return min(self.settings.reply_timeout, self.settings.read_timeout)

    def _protect(self, context: ssl.SSLContext) -> None:
        """Go over to TLS. What was read in the clear and not used yet is forgotten: anybody may have put it there."""
        assert self.sock is not None
        self.sock.settimeout(self.settings.read_timeout)
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host_name)
        self.context = context
        self.listen(self.sock, self._tick_of(), kernel=False)

    def _upgrade(self, context: ssl.SSLContext, login: FtpLogin) -> None:
        try:
            self.voidcmd("AUTH TLS")
        except ftplib.error_perm:
            if login.tls == "required":
                raise FtpRefused(
                    "the server has no TLS, and nothing may be sent to it without; the gateway's operator can change "
                    "that in the credential (tls)"
                ) from None
            return
        try:
            self._protect(context)
        except (ssl.SSLError, ConnectionError) as error:
            self.stop.check()  # a stop cuts it too
            if login.tls != "required":
                self.habits.tls_fails(self._begun)
                raise FtpPassing("the server's TLS does not work") from error
            raise
        self.habits.tls_works()

    def _log_in(self, login: FtpLogin) -> None:
        answer = self.sendcmd("USER " + login.user)
        if answer[:1] == "3":
            answer = self.sendcmd("PASS " + login.password)
        if answer[:1] == "3":
            raise FtpRefused("the server asks for an account besides the user, which is not served")

    def _learn(self) -> None:
        with contextlib.suppress(ftplib.error_perm, ftplib.error_temp):
            for line in self.sendcmd("FEAT").splitlines()[1:-1]:
                word, _, more = line.strip().partition(" ")
                self.features[word.upper()] = more
        if "UTF8" in self.features:
            with contextlib.suppress(ftplib.error_perm, ftplib.error_temp):
                self.sendcmd("OPTS UTF8 ON")
        self.voidcmd("TYPE I")
        with contextlib.suppress(ftplib.error_perm, ftplib.error_temp):
            home = self.where()
            self.home = home if home.startswith("/") else "/"

    def can_pipeline(self) -> bool:
        """Whether several commands may be sent together; asked of each server once. Raises what breaks the session."""
        try:
            self.habits.pipelines = self.bears(self.habits.pipelines)
        except FtpPassing as error:
            # What ends a session that was kept may have done so while nobody used it; silence does not.
            if not self.reused or isinstance(error.__cause__, socket.timeout):
                self.habits.pipelines = False
            raise
        return self.habits.pipelines

    # -- questions ---------------------------------------------------------------------------------------------

    def absolute(self, path: str) -> str:
        """Return an absolute path on the server, without a slash at its end."""
        whole = path if path.startswith("/") else self.home.rstrip("/") + "/" + path
        return whole.rstrip("/") or "/"

    def where(self) -> str:
        """Return the current directory, by name of the server."""
        found = re.match(r'257 "((?:[^"]|"")*)"', self.sendcmd("PWD"))
        return found.group(1).replace('""', '"') if found else ""

    def length(self, path: str) -> Optional[int]:
        """Return a file's size in bytes; None where the server cannot tell. Raises 550 for what is no file."""
        try:
            return _length_in(self.sendcmd("SIZE " + path))
        except ftplib.error_perm as error:
            if code_of(error) in _UNKNOWN:
                return None
            raise

    def lengths(self, paths: Sequence[str]) -> List[Optional[int]]:
        """Ask for many sizes in a few round trips; only where `can_pipeline`. None for whatever is no size."""
        replies = self.ask_together(["SIZE " + path for path in paths])
        return [_length_in(reply) if isinstance(reply, str) else None for reply in replies]

    def changed(self, path: str) -> Optional[str]:
        """Return when a file was changed last, as the server writes it (RFC 3659); None where it does not tell."""
        if "MDTM" in self.features:
            command, form = "MDTM ", r"213[ ]+([0-9.]+)\s*$"
        elif "MLST" in self.features:
            command, form = "MLST ", r"(?is)250-.*?[ ;]modify=([0-9.]+);"
        else:
            return None
        try:
            found = re.match(form, self.sendcmd(command + path))
        except ftplib.error_perm:
            return None
        return found.group(1) if found else None

    def enter(self, path: str) -> bool:
        """Make a directory the current one; False where there is none."""
        try:
            self.voidcmd("CWD " + path)
        except ftplib.error_perm:
            return False
        return True

    # -- data connections --------------------------------------------------------------------------------------

    def connect_data(self) -> Tuple[socket.socket, Watch]:
        """Open the data connection of the next command: to the address of the control connection, whatever is said.

        A server behind NAT names an address that nobody reaches; a hostile one names somebody else's.
        """
        port, extended = self._passive()
        try:
            sock = connect_again(self._place, int(self.af), port, self.stop, self.settings.connect_timeout)
        except OSError as error:
            self.stop.check()
            if extended:
                self.habits.epsv = False  # routers that follow PASV may not know EPSV
            raise FtpPassing("the data connection could not be made (%s)" % (error.strerror or "no answer")) from error
        try:
            if self.context is None:
                be_patient(sock, self.settings.read_timeout)
            else:
                sock.settimeout(self.settings.read_timeout)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock, Watch(sock, self.stop)
        except BaseException:
            sock.close()
            raise

    def _passive(self) -> Tuple[int, bool]:
        is_v6 = self.af == socket.AF_INET6
        if self.habits.epsv or is_v6:
            try:
                answer = self.sendcmd("EPSV")
            except (ftplib.error_perm, ftplib.error_temp) as error:
                if is_v6 or code_of(error) not in (*_UNKNOWN, 425, 522, 550):
                    raise
                self.habits.epsv = False
                if self.broken:
                    raise
            except (EOFError, OSError):
                self.stop.check()
                self.habits.epsv = False  # some let it time out, or close the session
                raise
            else:
                extended = re.search(r"\(([!-~])\1\1([0-9]{1,5})\1\)", answer)
                if extended is None or not 0 < int(extended.group(2)) < 65536:
                    raise FtpPassing("the server's answer to EPSV cannot be understood")
                return int(extended.group(2)), True
        found = re.search(r"((?:[0-9]{1,3}\s*,\s*){4})([0-9]{1,3})\s*,\s*([0-9]{1,3})", self.sendcmd("PASV"))
        port = (int(found.group(2)) << 8) + int(found.group(3)) if found else 0
        if not 0 < port < 65536:
            raise FtpPassing("the server's answer to PASV cannot be understood")
        return port, False

    def protect_data(self, sock: socket.socket, watch: Watch) -> socket.socket:
        """Go over to TLS on a data connection, in the same TLS session, which servers ask for (RFC 4217)."""
        if self.context is None:
            return sock
        session: Any = getattr(self.sock, "session", None)
        tls = self.context.wrap_socket(
            sock, server_hostname=self.host_name, session=session, do_handshake_on_connect=False
        )
        try:
            watch.follow(tls)
            tls.do_handshake()
        except BaseException:
            watch.close()
            tls.close()
            raise
        return tls

    # -- its life ----------------------------------------------------------------------------------------------

    def bind(self, stop: Stop) -> None:
        """Have a stop end it from now on. Raises `Stopped`."""
        assert self._raw is not None
        self.stop = stop
        self._watch = Watch(self._raw, stop)

    def unbind(self) -> None:
        """Have no stop end it any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def end(self) -> None:
        """Close it; idempotent, without waiting for anything."""
        self.unbind()
        raw, self._raw = self._raw, None
        if raw is not None:
            if not self.broken:
                with contextlib.suppress(OSError, ValueError):
                    raw.setblocking(False)
                    if self.context is None:
                        raw.send(b"QUIT\r\n")
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_WR)
            raw.close()
        self.broken = True
        with contextlib.suppress(OSError):
            self.close()


def _length_in(answer: str) -> Optional[int]:
    found = re.match(r"213[ ]+([0-9]{1,18})\s*$", answer)
    return int(found.group(1)) if found else None
