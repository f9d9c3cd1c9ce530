"""GA4GH TES 1.1.0 over HTTP: lean ASGI, documented in `tesgate.api.openapi`.

Under ``/ga4gh/tes/v1``, the specification's path, answers are of TES 1.1. Under ``/v1``, where older clients look, they
are of TES 1.0 (`services.dialects`). A doubled slash before ``v1`` is forgiven: an endpoint that ends with a slash
becomes that in some clients.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl

import anyio
from pydantic_core import to_json
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tesgate.api.body import check_media_type, headers_of, parse_json, read_body
from tesgate.api.context import ApiContext
from tesgate.api.errors import answer_to
from tesgate.api.middleware import ROUTE
from tesgate.api.origin import check_browser, check_origin
from tesgate.api.service_info import oldest_service_info, service_info
from tesgate.errors import BadRequest, MethodNotAllowed, TaskNotFound, Unavailable
from tesgate.ga4gh import tes
from tesgate.model.caller import Caller
from tesgate.model.records import View
from tesgate.services.dialects import OldDialect

__all__ = ["OLD_PREFIX", "PREFIX", "TesRoutes"]

PREFIX = "/ga4gh/tes/v1"
OLD_PREFIX = "/v1"
"""TES 1.0."""

_PATHS = re.compile(
    r"//?(?:ga4gh/tes//?)?v1"
    r"(?:(?P<list>/tasks)|(?P<info>/service-info)|(?P<old_info>/tasks/service-info)"
    r"|/tasks/(?P<cancel>[^/]+):cancel|/tasks/(?P<get>[^/]+))"
)
_CANCEL = ":cancel"

DEFAULT_PAGE = 256
MAX_PAGE = 2047
MAX_TAGS = 100

SMALL_BODY = 64 << 10
"""Bytes of a POST that is read at once. Larger ones wait for one of `LARGE_BODIES` places, so that what waits for a
database that is away has a bound in memory: that many times limits.max_body_bytes."""
LARGE_BODIES = 16
LARGE_WAIT_SECONDS = 20.0
CHUNK = 1 << 18
"""Bytes of a long answer that are handed on at once."""

Answer = Callable[["_Call"], Awaitable[bytes | list[bytes]]]

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(slots=True)
class _Call:
    """One request to one of the routes."""

    scope: Scope
    receive: Receive
    headers: Mapping[bytes, bytes]
    id: str = ""
    old: OldDialect | None = None
    """In which the answer is given; None: as it is, in that of TES 1.1."""

    def query(self) -> list[tuple[str, str]]:
        raw = self.scope["query_string"]
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, errors="replace") if raw else []
        for name, value in pairs:
            if "\0" in name or "\0" in value:
                raise BadRequest(f"{name[:40]!r}: holds a NUL character; remove it")
        return pairs


class TesRoutes:
    """All routes of TES, in front of the application that has the others: its layers cost as much as an answer does."""

    def __init__(self, rest: ASGIApp, context: ApiContext) -> None:
        self._rest = rest
        self._context = context
        self._large = anyio.Semaphore(LARGE_BODIES)
        self._new, self._old = self._table(PREFIX), self._table(OLD_PREFIX)

    def _table(self, prefix: str) -> dict[str, tuple[str, dict[str, Answer]]]:
        return {
            "list": (f"{prefix}/tasks", {"GET": self._list, "POST": self._create}),
            "info": (f"{prefix}/service-info", {"GET": self._service_info}),
            "old_info": (f"{prefix}/tasks/service-info", {"GET": self._oldest_service_info}),
            "cancel": (f"{prefix}/tasks/{{id}}:cancel", {"POST": self._cancel}),
            "get": (f"{prefix}/tasks/{{id}}", {"GET": self._get}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer every path of TES, whatever the method; the rest is somebody else's."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        path = scope["path"]
        root = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        match = _PATHS.fullmatch(path)
        if match is None or match.lastgroup is None:
            await self._rest(scope, receive, send)
            return
        try:
            table = self._old if path[1] == "v" or path[2] == "v" else self._new
            body = await self._answer(table, match.lastgroup, match[match.lastgroup], scope, receive, send)
        except Exception as error:
            response = await answer_to(Request(scope), error)
            await response(scope, receive, send)
            return
        if body is not None:
            await _send(body, send, bodiless=scope["method"] == "HEAD")

    async def _answer(
        self,
        table: Mapping[str, tuple[str, dict[str, Answer]]],
        kind: str,
        found: str,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> bytes | list[bytes] | None:
        """The answer's body; None: it was sent already."""
        scope[ROUTE], methods = table[kind]
        method = scope["method"]
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = [name for known in methods for name in ((known, "HEAD") if known == "GET" else (known,))]
            if method != "OPTIONS":
                raise MethodNotAllowed(method, [*allowed, "OPTIONS"])
            allow = ", ".join([*allowed, "OPTIONS"]).encode()
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", allow)]})
            await send({"type": "http.response.body", "body": b""})
            return None
        headers_in = headers_of(scope)
        check_browser(headers_in, self._context.settings)
        if table is self._new:
            return await handler(_Call(scope, receive, headers_in, found))
        old = OldDialect(self._context.settings.dialect.queued_as_initializing)
        return await handler(_Call(scope, receive, headers_in, found, old))

    async def _create(self, call: _Call) -> bytes:
        context = self._context
        caller = await context.authenticator.caller(call.scope["headers"])
        check_origin(call.headers, context.settings)
        check_media_type(call.headers)
        size = call.headers.get(b"content-length", b"")
        if size.isdigit() and int(size) <= SMALL_BODY:
            return await self._store(call, caller)
        with anyio.move_on_after(LARGE_WAIT_SECONDS) as waiting:
            await self._large.acquire()
        if not waiting.cancelled_caught:
            try:
                return await self._store(call, caller)
            finally:
                self._large.release()
        raise Unavailable("Too many large tasks are being stored at the moment; send the same request again.")

    async def _store(self, call: _Call, caller: Caller) -> bytes:
        context = self._context
        body = parse_json(await read_body(call.scope, call.receive, context.settings.limits.max_body_bytes))
        key = call.headers.get(b"idempotency-key")
        inserted = await context.tasks.create(
            caller, body, idempotency_key=None if key is None else key.decode("latin-1").strip()
        )
        if not inserted.existed:
            context.metrics.tasks_submitted.inc()
        return b'{"id":"%b"}' % inserted.id.encode()

    async def _get(self, call: _Call) -> bytes:
        context = self._context
        caller = await context.authenticator.caller(call.scope["headers"])
        if call.id.endswith(_CANCEL):
            raise TaskNotFound(call.id)
        view = _view(call.query()) if call.scope["query_string"] else "MINIMAL"
        if view == "MINIMAL":
            # The route that clients poll: no document is read and none is built.
            state = await context.tasks.state(caller, call.id)
            if call.old is not None:
                state = call.old.state(state)
            return b'{"id":"%b","state":"%b"}' % (call.id.encode(), state.encode())
        return await context.tasks.get(caller, call.id, view, old=call.old)

    async def _list(self, call: _Call) -> list[bytes]:
        context = self._context
        caller = await context.authenticator.caller(call.scope["headers"])
        query = call.query()
        single = {name: value for name, value in query if value}
        return await context.tasks.page(
            caller,
            view=_view(query),
            page_size=_page_size(single.get("page_size")),
            page_token=single.get("page_token"),
            name_prefix=single.get("name_prefix"),
            states=_states(single.get("state"), call.old),
            tags=_tags(query),
            old=call.old,
        )

    async def _cancel(self, call: _Call) -> bytes:
        context = self._context
        caller = await context.authenticator.caller(call.scope["headers"])
        check_origin(call.headers, context.settings)
        await context.tasks.cancel(caller, call.id)
        return b"{}"

    async def _service_info(self, call: _Call) -> bytes:
        # Open to everybody: registries ask without credentials.
        return to_json(service_info(self._context, old=call.old is not None))

    async def _oldest_service_info(self, call: _Call) -> bytes:
        del call
        return to_json(oldest_service_info(self._context))


async def _send(body: bytes | list[bytes], send: Send, *, bodiless: bool) -> None:
    """A long answer goes out in chunks: what a slow client has not taken yet is not copied once more."""
    size = len(body) if isinstance(body, bytes) else sum(map(len, body))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if isinstance(body, list) and not bodiless:
        chunk: list[bytes] = []
        waiting = 0
        for piece in body:
            chunk.append(piece)
            waiting += len(piece)
            if waiting >= CHUNK:
                await send({"type": "http.response.body", "body": b"".join(chunk), "more_body": True})
                chunk, waiting = [], 0
        body = b"".join(chunk)
    await send({"type": "http.response.body", "body": b"" if bodiless else body})


def _choice(kind: type[Choice], name: str, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return kind(value).value
    except ValueError:
        raise BadRequest(f"{name}: {value[:80]!r} is none of {', '.join(kind)}") from None


def _states(text: str | None, old: OldDialect | None) -> tuple[str, ...] | None:
    """States that were asked for; None: any. In the old dialect, all that are shown as that one."""
    state = _choice(tes.State, "state", text)
    if state is None:
        return None
    return (state,) if old is None else old.behind(state)


def _view(query: list[tuple[str, str]]) -> View:
    given = next((value for name, value in reversed(query) if name == "view" and value), None)
    match _choice(tes.View, "view", given):
        case "BASIC":
            return "BASIC"
        case "FULL":
            return "FULL"
        case _:
            return "MINIMAL"


def _page_size(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_PAGE):
        raise BadRequest(f"page_size: must be a whole number from 1 to {MAX_PAGE}, not {text[:40]!r}")
    return int(text)


def _tags(query: list[tuple[str, str]]) -> tuple[tuple[str, str | None], ...]:
    """Keys and values by their position; a missing or empty value matches any value."""
    keys = [value for name, value in query if name == "tag_key"]
    values = [value for name, value in query if name == "tag_value"]
    if len(values) > len(keys):
        raise BadRequest(f"tag_value: {len(values)} values for {len(keys)} keys; give a tag_key for each tag_value")
    if len(keys) > MAX_TAGS:
        raise BadRequest(f"tag_key: at most {MAX_TAGS} tags can be asked for at once, not {len(keys)}")
    return tuple((key, value or None) for key, value in zip(keys, [*values, *[""] * len(keys)], strict=False))
