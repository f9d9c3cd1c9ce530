"""HTTP connections that only reach allowed addresses, and that a stop wakes wherever they wait.

The name is resolved once, every address is checked, and the connection goes to a checked address: there is no moment in
which a name could change its mind (DNS rebinding). Host header, SNI and certificate stay those of the name.
"""

from __future__ import annotations

import errno
import functools
import os
import queue
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple, TypeVar, Union

import urllib3
import urllib3.connection
import urllib3.exceptions

from .policy import AddressPolicy
from .threads import Stop

if TYPE_CHECKING:
    from typing_extensions import override
else:
    _F = TypeVar("_F", bound=Callable[..., Any])

    def override(method: _F) -> _F:
        """Do nothing: `typing.override` is younger than the Python that runners promise."""
        return method


__all__ = ["Guard", "HttpSettings", "Unresolved", "connect_again", "connect_any", "make_pools"]

_SLICE = 0.1
_Place = Tuple[int, int, int, str, Tuple[Any, ...]]
_Resolved = List[_Place]


@dataclass(frozen=True)
class HttpSettings:
    """How patient downloads are. Spans are seconds."""

    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    """Longest silence of a server in the middle of an answer."""
    tries: int = 6
    """Failures in a row (without a new byte) after which a download is given up."""
    first_pause: float = 0.5
    max_pause: float = 30.0
    max_redirects: int = 10
    ca_file: Optional[str] = None
    """Certificates to trust besides the system's."""


class Unresolved(Exception):
    """A host name that has no address. `passing`: the resolver itself had a problem."""

    def __init__(self, host: str, passing: bool) -> None:
        super().__init__(host)
        self.host = host
        self.passing = passing


def _resolve(host: str, port: int, stop: Stop, timeout: float) -> _Resolved:
    """Resolve a name in a thread of its own: getaddrinfo cannot be interrupted, but it can be left behind."""
    answer: queue.Queue[Union[_Resolved, OSError, UnicodeError]] = queue.Queue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            answer.put(error)

    threading.Thread(target=ask, name="tesgate-resolve", daemon=True).start()
    deadline = time.monotonic() + timeout
    while True:
        stop.check()
        try:
            result = answer.get(timeout=_SLICE)
        except queue.Empty:
            if time.monotonic() > deadline:
                raise Unresolved(host, True) from None
            continue
        if isinstance(result, UnicodeError):
            raise Unresolved(host, False)
        if isinstance(result, socket.gaierror):
            raise Unresolved(host, result.errno not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)))
        if isinstance(result, OSError):
            raise result
        return result


def _connect(address: _Place, options: Any, stop: Stop, timeout: float) -> socket.socket:
    family, kind, protocol, _, place = address
    sock = socket.socket(family, kind, protocol)
    try:
        for option in options or ():
            sock.setsockopt(*option)
        sock.setblocking(False)
        code = sock.connect_ex(place)
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        while code in (errno.EINPROGRESS, errno.EAGAIN, errno.EINTR):
            stop.check()
            if poll.poll(_SLICE * 1000):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            elif time.monotonic() > deadline:
                code = errno.ETIMEDOUT
        if code:
            raise OSError(code, os.strerror(code))
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


class Guard:
    """Shuts a connection down when a stop comes, from whichever thread, without touching its TLS state."""

    def __init__(self, sock: socket.socket, stop: Stop) -> None:
        self._twin = sock.dup()
        self._stop = stop
        try:
            self._number = stop.add(self._shutdown)
        except BaseException:
            self._twin.close()
            raise

    def _shutdown(self) -> None:
        try:
            self._twin.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more: nobody waits on it

    def close(self) -> None:
        self._stop.remove(self._number)
        self._twin.close()


def connect_any(
    host: str,
    port: int,
    stop: Stop,
    timeout: float,
    *,
    check: Optional[Callable[[List[str]], None]] = None,
    options: Any = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
) -> socket.socket:
    """Connect to the first address of a name that answers; `check` is shown all of them before.

    Raises `Unresolved`, OSError, `Stopped`, what `check` raises.
    """
    addresses = _resolve(host, port, stop, timeout)
    if check is not None:
        check([str(address[4][0]) for address in addresses])
    fault = OSError(errno.EADDRNOTAVAIL, "no address")
    for address in addresses:
        try:
            return _connect(address, options, stop, timeout)
        except OSError as error:
            fault = error
    raise fault


def connect_again(place: Tuple[Any, ...], family: int, port: int, stop: Stop, timeout: float) -> socket.socket:
    """Connect to another port of an address that was checked before (`getpeername`). Raises OSError, `Stopped`."""
    return _connect((family, socket.SOCK_STREAM, 0, "", (place[0], port, *place[2:])), (), stop, timeout)


def make_pools(
    policy: AddressPolicy, stop: Stop, settings: HttpSettings, *, patience: Optional[Callable[[], float]] = None
) -> urllib3.PoolManager:
    """Make connection pools bound to one policy and one stop. Proxies of the environment are ignored.

    `patience`: seconds in which the next piece of a body must have gone; else that of an answer.
    """

    def connect(connection: urllib3.connection.HTTPConnection) -> Tuple[socket.socket, Guard]:
        host, port = connection.host.strip("[]"), connection.port
        timeout = settings.connect_timeout

        def check(addresses: List[str]) -> None:
            policy.check(host, port, addresses)

        try:
            sock = connect_any(host, port, stop, timeout, check=check, options=connection.socket_options)
        except OSError as error:
            raise urllib3.exceptions.NewConnectionError(connection, str(error.strerror or "no address")) from None
        try:
            return sock, Guard(sock, stop)
        except BaseException:
            sock.close()
            raise

    def patient(connection: urllib3.connection.HTTPConnection) -> None:
        # A body is sent with the patience that an answer has, not with that of a connection to be made.
        if connection.sock is not None:
            connection.sock.settimeout(settings.read_timeout if patience is None else patience())

    class Plain(urllib3.connection.HTTPConnection):
        _guard: Optional[Guard] = None

        @override
        def _new_conn(self) -> socket.socket:
            sock, self._guard = connect(self)
            return sock

        @override
        def send(self, data: Any) -> None:
            patient(self)
            super().send(data)

        @override
        def close(self) -> None:
            if self._guard is not None:
                self._guard.close()
                self._guard = None
            super().close()

    class Secure(urllib3.connection.HTTPSConnection):
        _guard: Optional[Guard] = None

        @override
        def _new_conn(self) -> socket.socket:
            sock, self._guard = connect(self)
            return sock

        @override
        def send(self, data: Any) -> None:
            patient(self)
            super().send(data)

        @override
        def close(self) -> None:
            if self._guard is not None:
                self._guard.close()
                self._guard = None
            super().close()

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    @functools.lru_cache(maxsize=None)
    def context() -> ssl.SSLContext:
        # Reading the system's certificates takes longer than a small download: only who needs them waits for that.
        made = ssl.create_default_context()
        if settings.ca_file is not None:
            made.load_verify_locations(settings.ca_file)
        return made

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **{**more, "ssl_context": context()})

    pools = urllib3.PoolManager(num_pools=32, maxsize=8, retries=False)
    pools.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return pools
