"""One connection of a client: what uvicorn leaves open to those who mean no good, or are just slow.

Uvicorn bounds neither the time in which a request must arrive nor the size of its head, adds the trailers of a chunked
body to the headers, loses the body of a request that asks for an upgrade, answers what it cannot read as text, and does
so in front of the answer to an earlier request. Here a head and a body have their time, a head has a size, a host is
named once, and every refusal has the one shape.

All times are seconds of the loop's clock. One look a second at every connection (`Connection.look`) replaces timers.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections import deque
from collections.abc import Sized
from http import HTTPStatus
from typing import Any, NoReturn

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tesgate.app.endings import RATE, Taking, refusal, reset, write_end
from tesgate.app.guests import LINGERING, SILENCE, Bounds, Guest, make_room

__all__ = ["Connection"]

_MAX_HEAD = 64 << 10
_MAX_HEADERS = 256
_MAX_LOST = 64 << 20
"""Of a body whose request was answered before it came to its end, so much is read and thrown away."""
_MAX_AHEAD = 100
"""Requests that wait for the answer to the one before them."""
_LINGER = 2.0
"""So long a refused client may go on sending, so that it reads the refusal and not a reset."""

_ONCE = frozenset({b"host", b"authorization", b"content-type", b"content-encoding", b"origin", b"idempotency-key"})
"""Of two, a proxy in front may have looked at the other one."""

_FRAMING = (b"content-length", b"transfer-encoding")

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")


class _Part(enum.Enum):
    """What is expected to come in next."""

    HEAD = enum.auto()
    BODY = enum.auto()
    NOTHING = enum.auto()
    """A whole request has come in (it may be under way, or answered)."""
    REFUSED = enum.auto()
    """Whatever comes is thrown away."""


_INVALID = "This is not a request of HTTP/1.1; correct its first line, its headers or the framing of its body."
_FULL = "The gateway has as many connections as it takes; send the same request again."


class _Flow(FlowControl):
    """Reads no further while whole requests wait: uvicorn reads on after each answer, and keeps all that comes."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Read on, if there is nothing left to answer."""
        if not self._waiting:
            super().resume_reading()


class Connection(HttpToolsProtocol, Guest):
    """A client's connection, read with suspicion."""

    bounds: Bounds
    has_room = False
    """Room was made for it when it was accepted, before TLS."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._part = _Part.HEAD
        self.since = self.loop.time()
        self._came = 0
        """Bytes since `since`."""
        self._unread = 0
        """Bytes since the parser last found the end of a head, a piece of body or the end of a message."""
        self._silent = True
        """Nothing that begins a request has ever come."""
        self._lost = 0
        self._head = 0
        self._fields = 0
        self._seen: set[bytes] = set()
        """Headers of `_ONCE`."""
        self._upgrade = False
        """The parser stopped in front of the body, and calls it the end of the message."""
        self._replayed = False
        """A fresh parser is being told what a former one has read."""
        self._reason: tuple[HTTPStatus, str] | None = None
        """Why a callback of ours stopped the parser."""
        self._asked: deque[RequestResponseCycle] = deque()
        """What is not answered yet, oldest first: uvicorn loses sight of all but the newest."""
        self._gone = False
        self._closing: float | None = None
        """Since when a TLS connection is being closed."""
        self._taking = Taking()

    # of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the client in, or refuse it where there are too many that are busy."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        if self.has_room or len(self.connections) <= self.bounds.connections:
            return
        if make_room(self.connections):
            return
        self._part = _Part.REFUSED
        transport.write(refusal(HTTPStatus.SERVICE_UNAVAILABLE, _FULL))
        if len(self.connections) <= self.bounds.connections + LINGERING:
            write_end(transport)
        else:
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Read on, unless the client was refused."""
        self._came += len(data)
        if self._part is _Part.REFUSED:
            return
        self._unset_keepalive_if_required()
        size = len(data)
        self._unread += size
        try:
            while data:
                data = self._fed(data)
        except httptools.HttpParserError:
            self._refuse(*(self._reason or (HTTPStatus.BAD_REQUEST, _INVALID)))
            return
        if self._unread > _MAX_HEAD + size:
            # A head, a trailer or a chunk's extension without end: the parser holds it, and tells us at its end only.
            what = f"The request has more than {_MAX_HEAD} bytes outside of its body; send fewer and shorter headers."
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, what)

    def _fed(self, data: bytes) -> bytes:
        """Have the parser read, and return what it left: it stops at an upgrade, in front of the body.

        No upgrade is offered here, so it is an ordinary request with an ordinary body (Java's client asks for HTTP/2 in
        this way with every first POST). Another parser reads on, which is told the framing of the body.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            framing = [b"%b: %b\r\n" % pair for pair in self.headers if pair[0] in _FRAMING]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._replayed = True
            self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *framing, b"\r\n"]))
            return data[upgrade.args[0] :]
        return b""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that is under way."""
        self._gone = True
        for cycle in self._asked:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        """The client has taken what it was sent."""
        super().resume_writing()
        self._taking.all()

    # of the parser

    def on_message_begin(self) -> None:
        """A head begins."""
        if self._replayed:
            return
        super().on_message_begin()
        self._silent = False
        self._part, self.since, self._came = _Part.HEAD, self.loop.time(), 0
        self._head = self._fields = self._lost = 0
        self._seen.clear()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's address."""
        if self._replayed:
            return
        self._head += len(url)
        if self._head > _MAX_HEAD:
            self._reject(HTTPStatus.REQUEST_URI_TOO_LONG, f"The address has more than {_MAX_HEAD} bytes; shorten it.")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer behind a chunked body, which is none, and would come after the checks of headers."""
        if self._replayed:
            return
        self._head += len(name) + len(value)
        self._fields += 1
        if self._head > _MAX_HEAD or self._fields > _MAX_HEADERS:
            self._reject(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The head has more than {_MAX_HEAD} bytes or {_MAX_HEADERS} headers; send fewer and shorter ones.",
            )
        if self._part is not _Part.HEAD:
            return
        super().on_header(name, value)
        name = self.headers[-1][0]  # in lower case
        if name in _ONCE:
            if name in self._seen:
                self._reject(HTTPStatus.BAD_REQUEST, f"The header {name.decode()} stands twice; send it once.")
            self._seen.add(name)
            if name == b"host" and _HOST.fullmatch(value.strip()) is None:
                self._reject(HTTPStatus.BAD_REQUEST, "The header Host is not the name of a host; correct it.")

    def on_headers_complete(self) -> None:
        """The request can begin."""
        if self._replayed:
            self._replayed = self._upgrade = False
            return
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._reject(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if b"host" not in self._seen and version == "1.1":
            self._reject(HTTPStatus.BAD_REQUEST, "A request must have the header Host; send it.")
        if len(self.pipeline) >= _MAX_AHEAD:
            self._reject(HTTPStatus.TOO_MANY_REQUESTS, f"More than {_MAX_AHEAD} requests wait for their answers.")
        super().on_headers_complete()
        self._asked.append(self.cycle)
        self._upgrade = self.parser.should_upgrade()
        self._unread = 0
        self._part, self.since, self._came = _Part.BODY, self.loop.time(), 0

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._unread = 0
        if self.cycle.response_complete:
            self._lost += len(body)
            if self._lost > _MAX_LOST:
                self._reject(HTTPStatus(413), "This was answered, and is not read any further.")
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come in as a whole."""
        if self._upgrade:
            return
        self._unread = 0
        self._part, self.since = _Part.NOTHING, self.loop.time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin with what waits; read on when that is the last."""
        self._asked.popleft()
        if self._part is _Part.NOTHING:
            self.since = self.loop.time()
        super().on_response_complete()
        self.flow.resume_reading()

    def _reject(self, status: HTTPStatus, msg: str) -> NoReturn:
        """Stop the parser from within one of its callbacks."""
        self._reason = (status, msg)
        raise ValueError(msg)

    # refusals

    def _refuse(self, status: HTTPStatus, msg: str) -> None:
        """Answer in the one shape and close; but what was asked before, in good form, is answered first."""
        broken = self.cycle if self._part is _Part.BODY else None
        self._part, self.since, self._came = _Part.REFUSED, self.loop.time(), 0
        if self.transport.is_closing():
            return
        if broken is not None and not broken.response_complete:
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()
            self._asked.remove(broken)
            # To the application its client has gone.
            broken.disconnected = True
            broken.message_event.set()
            if broken.response_started:
                self.transport.close()
                return
        if self._asked:
            # This refusal must not be taken for its answer: that one is sent, and the connection closed behind it.
            self._asked[-1].keep_alive = False
            return
        if broken is None or not broken.response_started:
            self.transport.write(refusal(status, msg))
        # Closed while something lies unread, TCP would reset, and the client might never see the answer.
        write_end(self.transport)

    # once a second

    def look(self, now: float) -> None:
        """Let go of a client that keeps us waiting for too long."""
        if self._is_left(now):
            self.transport.abort()
        elif self._taking.is_stuck(now, self.transport.get_write_buffer_size(), self.bounds.patience):
            reset(self.transport)
        elif self._part is _Part.REFUSED:
            if not self._asked and now - self.since > _LINGER:
                reset(self.transport)
        elif self._part is _Part.NOTHING:
            # Uvicorn's own timer is gone where something came that was no request.
            if not self._asked and now - self.since > self.timeout_keep_alive + 1:
                self.transport.close()
        elif self.flow.read_paused or (self._asked and self._asked[-1].waiting_for_100_continue):
            # It is we who do not read.
            self.since, self._came = now, 0
        elif now - self.since > self.bounds.patience:
            self._late(now)

    def _is_left(self, now: float) -> bool:
        """Whether it is being closed and the client does not answer the end of TLS: an idle one hardly ever does."""
        if not self.transport.is_closing() or self.transport.get_extra_info("ssl_object") is None:
            return False
        self._closing = now if self._closing is None else self._closing
        return now - self._closing > _LINGER / 2

    def shutdown(self) -> None:
        """The server ends: nobody ticks any more, so it looks after itself."""
        super().shutdown()
        if self.transport.get_extra_info("ssl_object") is not None:
            self._look_until_gone()

    def _look_until_gone(self) -> None:
        if self._gone:
            return
        self.look(self.loop.time())
        self.loop.call_later(0.2, self._look_until_gone)

    def _late(self, now: float) -> None:
        cycle: RequestResponseCycle | None = self.cycle  # none before the first head
        answered = cycle is None or cycle.response_complete
        if self._part is _Part.BODY and self._came >= RATE * self.bounds.patience:
            self.since, self._came = now, 0
        elif self._silent:
            self.transport.close()
        elif self._part is _Part.BODY and answered:
            reset(self.transport)
        else:
            words = f"The request did not arrive within {self.bounds.patience:g} s; send it again, faster."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, words)

    def is_idle(self) -> bool:
        """Whether the client is between two requests, or has had its time to ask for something."""
        if self.transport.is_closing():
            return False
        if self._silent:
            return self.loop.time() - self.since > SILENCE
        return self._part is _Part.NOTHING and not self._asked

    def let_go(self) -> None:
        """Close; whose socket stays open for an answer to the end of TLS counts until it is gone."""
        if self.transport.get_extra_info("ssl_object") is None:
            self.transport.close()
        elif self.loop.time() - self.since > SILENCE:
            self.transport.abort()
        else:
            # It may not have been sent all of its answer yet.
            self.transport.close()
            return
        self.connections.discard(self)
