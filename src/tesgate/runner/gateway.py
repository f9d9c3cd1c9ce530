"""The runner's HTTP client of the gateway's ``/internal/v1``."""

from __future__ import annotations

import functools
import json
import logging
import random
import socket
import threading
from typing import Any, Callable, Dict, List, Optional, Set, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError

from . import wire
from .access import AccessAnswer, AccessRequest
from .plan import Plan
from .report import (
    AgentFacts,
    Answer,
    AttemptRef,
    Drained,
    DrainRequest,
    PollAnswer,
    PollRequest,
    Registered,
    Report,
)

__all__ = ["Backoff", "Conflict", "GatewayClient", "GatewayFault", "Gone", "Unauthorized", "Unavailable"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_CONNECT = 5.0
_READ = 30.0


class GatewayFault(Exception):
    """The gateway did not do what was asked; one sentence.

    Drawn: GatewayFault > Gone (410) | Conflict (409) | Unauthorized (401, 403) | Unavailable (all else: try again).
    """

    status: Optional[int] = None
    """That of HTTP, where the gateway answered at all and it was none of those above."""


class Gone(GatewayFault):
    """Not ours any more: an old session, a closed or unknown attempt. Stop and remove, quietly."""


class Conflict(GatewayFault):
    """Not now: another attempt's publish lease lives, or a lease is needed first. Ask again in a second.

    Of a log: a hole would come about; `offset` says where to go on.
    """

    offset: Optional[int] = None


class Unauthorized(GatewayFault):
    """The token is not taken. Somebody must see to it; meanwhile ask again, slowly."""


class Unavailable(GatewayFault):
    """No gateway, or one in trouble, or an answer that cannot be understood. Ask again."""


class Backoff:
    """Growing pauses with jitter: at most 2 s at first, so that a restarted gateway is found fast, later 5 s."""

    def __init__(self, *, first: float = 0.2, early: float = 2.0, late: float = 5.0) -> None:
        self._first, self._early, self._late = first, early, late
        self._count = 0

    def reset(self) -> None:
        """Begin anew after a success."""
        self._count = 0

    def next(self) -> float:
        """Return the seconds to wait before the next try."""
        cap = self._early if self._count < 20 else self._late
        pause = min(cap, self._first * 2.0 ** min(self._count, 10))
        self._count += 1
        return pause * random.uniform(0.5, 1.0)


class GatewayClient:
    """Speaks for the agent (token from a file, read again at each 401) and for attempts (token of the plan).

    urllib3 in threads, connections kept alive. A call that has begun is not abandoned when its caller is cancelled
    (its answer counts), except the held poll, whose answer is dropped. Tokens never reach a log line.
    """

    def __init__(
        self,
        *,
        url: str,
        token_file: str,
        ca_file: Optional[str] = None,
        certificate: Optional[str] = None,
        key: Optional[str] = None,
        concurrency: int = 16,
    ) -> None:
        """The files of TLS are read again for every new connection."""
        self._base = url.rstrip("/") + "/internal/v1"
        self._token_file = token_file
        self.ca_file = ca_file
        self.instance_of: Callable[[], str] = str
        """Which scratch speaks, for questions about storage; set when the scratch is known."""
        self._token = ""
        self._sockets = _Sockets()
        files = {"ca_certs": ca_file, "cert_file": certificate, "key_file": key}
        options: Dict[str, Any] = {name: file for name, file in files.items() if file is not None}
        self._pool = urllib3.PoolManager(
            num_pools=4,
            maxsize=concurrency + 8,
            block=False,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            headers={"user-agent": "tesgate-runner"},
            **options,
        )
        self._pool.pool_classes_by_scheme = _pool_classes(self._sockets)
        self._messages = anyio.CapacityLimiter(concurrency)
        self._logs = anyio.CapacityLimiter(4)
        self._polls = anyio.CapacityLimiter(2)
        self._back = anyio.Event()
        self.reachable = True

    # -- for the agent -----------------------------------------------------------------------------------------

    async def register(self, facts: AgentFacts) -> Registered:
        """Open a session. Raises `GatewayFault`."""
        value = await self._as_agent("/agents", wire.encode(facts), _READ, self._messages)
        return _decoded(Registered, value)

    async def poll(self, request: PollRequest) -> PollAnswer:
        """Hold a poll for up to ``request.wait`` seconds. A plan that cannot be read is left out and logged."""
        value = await self._as_agent(
            "/agents/poll", wire.encode(request), request.wait + 10.0, self._polls, abandon=True
        )
        starts: List[Plan] = []
        if isinstance(value, dict):
            for plan in value.pop("start", None) or []:
                try:
                    starts.append(wire.decode(Plan, plan, "plan"))
                except wire.WireError as exc:
                    _log.error("a plan of the gateway cannot be read: %s", exc)
        answer = _decoded(PollAnswer, value)
        answer.start = starts
        return answer

    async def drain(self, request: DrainRequest) -> Drained:
        """Take an agent out, or back in. Raises `GatewayFault`."""
        return _decoded(Drained, await self._as_agent("/agents/drain", wire.encode(request), _READ, self._messages))

    # -- for one attempt ---------------------------------------------------------------------------------------

    async def send(self, ref: AttemptRef, token: str, message: str, report: Report) -> Answer:
        """Send ``report``, ``publish``, ``finish``, ``failed`` or ``stopped``. Raises `GatewayFault`."""
        path = "/attempts/%s/%d/%s" % (quote(ref.task, safe=""), ref.attempt, message)
        body = _body(wire.encode(report))
        call = functools.partial(self._exchange, "POST", path, body, token, _READ, "application/json")
        return _decoded(Answer, await self._run(call, self._messages))

    async def put_log(self, ref: AttemptRef, token: str, step: int, stream: str, offset: int, data: bytes) -> Answer:
        """Store a piece of an executor's stream at its offset; repeatable. Raises `GatewayFault`."""
        path = "/attempts/%s/%d/logs/%d/%s?offset=%d" % (quote(ref.task, safe=""), ref.attempt, step, stream, offset)
        call = functools.partial(self._exchange, "PUT", path, data, token, _READ, "application/octet-stream")
        return _decoded(Answer, await self._run(call, self._logs))

    def access(self, ref: AttemptRef, token: str, request: AccessRequest) -> AccessAnswer:
        """Ask about storage; blocking, for threads of transfers. Raises `GatewayFault`.

        The instance is filled in here.
        """
        request.instance = request.instance or self.instance_of()
        path = "/attempts/%s/%d/access" % (quote(ref.task, safe=""), ref.attempt)
        body = _body(wire.encode(request))
        return _decoded(AccessAnswer, self._exchange("POST", path, body, token, _READ, "application/json"))

    async def pause(self, seconds: float) -> None:
        """Sleep before another try; ends early when the gateway was away and answers somebody again."""
        with anyio.move_on_after(seconds):
            await self._back.wait()

    def close(self) -> None:
        """Break all connections (a held poll too); idempotent, and safe from any thread."""
        self._sockets.shut()
        self._pool.clear()

    # -- inside ------------------------------------------------------------------------------------------------

    async def _as_agent(
        self, path: str, value: Any, timeout: float, limiter: anyio.CapacityLimiter, abandon: bool = False
    ) -> Any:
        body = _body(value)
        for fresh in (False, True):
            if fresh or not self._token:
                self._token = self._read_token()
            used = self._token
            call = functools.partial(self._exchange, "POST", path, body, used, timeout, "application/json")
            try:
                return await self._run(call, limiter, abandon)
            except Unauthorized:
                if fresh or self._read_token() == used:
                    raise
        raise AssertionError("unreachable")

    def _read_token(self) -> str:
        try:
            with open(self._token_file, encoding="ascii") as file:
                token = file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise Unauthorized(
                "the token file %s cannot be read (%s)" % (self._token_file, type(exc).__name__)
            ) from exc
        if not token or not token.isprintable():
            raise Unauthorized("the token file %s holds no token" % self._token_file)
        return token

    async def _run(self, call: Callable[[], Any], limiter: anyio.CapacityLimiter, abandon: bool = False) -> Any:
        try:
            value = await anyio.to_thread.run_sync(call, abandon_on_cancel=abandon, limiter=limiter)
        except Unavailable:
            self.reachable = False
            raise
        except GatewayFault:
            self._found()
            raise
        self._found()
        return value

    def _found(self) -> None:
        if not self.reachable:
            self.reachable = True
            # Wakes who waits now; later pauses are for other reasons and take their time.
            self._back.set()
            self._back = anyio.Event()

    def _exchange(self, method: str, path: str, body: bytes, token: str, timeout: float, content_type: str) -> Any:
        headers = {
            "authorization": "Bearer " + token,
            "content-type": content_type,
            "accept": "application/json",
            "user-agent": "tesgate-runner",
        }
        limits = urllib3.Timeout(connect=_CONNECT, read=timeout)
        for last in (False, True):
            try:
                answer = self._pool.request(
                    method, self._base + path, body=body, headers=headers, timeout=limits, redirect=False, retries=False
                )
                status, data = answer.status, answer.data
                break
            except ProtocolError as exc:
                # A kept connection that the gateway closed meanwhile: everything is repeatable, so once more at once.
                if last or self._sockets.closed:
                    raise Unavailable("the gateway broke the connection") from exc
            except (HTTPError, OSError, ValueError) as exc:
                raise Unavailable("the gateway cannot be reached: %s" % _reason(exc)) from exc
        if status == 200:
            try:
                return json.loads(data.decode("utf-8"))
            except ValueError as exc:
                raise Unavailable("the gateway's answer is no JSON") from exc
        sentence = "the gateway answered %d to %s %s%s" % (status, method, path.split("?")[0], _message(data))
        if status == 410:
            raise Gone(sentence)
        if status == 409:
            conflict = Conflict(sentence)
            offset = answer.headers.get("upload-offset", "")
            conflict.offset = int(offset) if offset.isdecimal() else None
            raise conflict
        if status in (401, 403):
            raise Unauthorized(sentence)
        fault = Unavailable(sentence)
        fault.status = status
        raise fault


def _decoded(cls: "type[T]", value: Any) -> T:
    try:
        return wire.decode(cls, value, "answer")
    except wire.WireError as exc:
        raise Unavailable("the gateway's answer cannot be understood: %s" % exc) from exc


def _body(value: Any) -> bytes:
    text = json.dumps(value)
    if "\\u0000" in text or "\\ud" in text:
        text = json.dumps(_storable(value))
    return text.encode("utf-8")


def _storable(value: Any) -> Any:
    """Replace what no database stores as text: NUL and lone surrogates (from names that are no UTF-8)."""
    if isinstance(value, str):
        whole = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return whole.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    return value


def _message(data: bytes) -> str:
    try:
        value = json.loads(data.decode("utf-8"))
        text = value.get("msg") if isinstance(value, dict) else None
    except ValueError:
        return ""
    return ": %s" % text[:300] if isinstance(text, str) else ""


def _reason(exc: BaseException) -> str:
    return "%s: %s" % (type(exc).__name__, str(exc)[:300])


class _Sockets:
    """The sockets in use, so that a thread that waits in a held poll can be woken at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Set[socket.socket] = set()
        self.closed = False

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            self._open = {known for known in self._open if known.fileno() >= 0}
            self._open.add(sock)

    def shut(self) -> None:
        with self._lock:
            self.closed = True
            open_now, self._open = self._open, set()
        for sock in open_now:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def _pool_classes(sockets: _Sockets) -> Dict[str, Any]:
    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                sockets.add(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                sockets.add(self.sock)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
