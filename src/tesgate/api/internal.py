"""``/internal/v1``: what agents and runners say. It accepts their scoped tokens and nothing else.

Lean routes: these are the hot path of every task, and their bodies are the runner's own dataclasses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from tesgate.api.body import storable
from tesgate.api.middleware import ROUTE
from tesgate.errors import BadRequest, MethodNotAllowed, TooLarge, Unauthorized
from tesgate.runner.access import AccessAnswer, AccessRequest
from tesgate.runner.report import AgentFacts, Answer, Drained, DrainRequest, PollRequest, Report
from tesgate.runner.wire import WIRE, WireError, decode, encode
from tesgate.services.access import AccessService
from tesgate.services.agents import Agents
from tesgate.services.attempts import AttemptService
from tesgate.storage.workspace import Stream

__all__ = ["InternalContext", "InternalRoutes"]

MAX_BODY = 64 << 20
MAX_LOG_CHUNK = 4 << 20

_NUMBER = re.compile(r"[0-9]{1,15}")
"""Longer ones mean nothing here, and from 4,301 digits on Python refuses them with an error."""

T = TypeVar("T")


class InternalContext(Protocol):
    """What these routes need."""

    attempt_service: AttemptService
    access_service: AccessService
    agents: Agents

    async def pool_of(self, token: str) -> str | None:
        """The pool that an agent token belongs to; None: no such token."""
        ...

    def is_attempt_token(self, token: str, task_id: str, number: int) -> bool:
        """Whether the token speaks for this attempt."""
        ...

    async def write_log(self, task_id: str, number: int, step: str, stream: Stream, offset: int, data: bytes) -> None:
        """Write a piece of a log at its offset; repeatable. Raises `ClientError`."""
        ...


_PATHS = re.compile(
    r"/internal/v1/(?:(?P<register>agents)|(?P<poll>agents/poll)|(?P<drain>agents/drain)"
    r"|attempts/(?P<task>[^/]+)/(?P<number>[0-9]{1,9})/"
    r"(?:(?P<message>report|publish|finish|failed|stopped|access)|logs/(?P<step>[0-9]{1,9})/(?P<stream>stdout|stderr)))"
)


class InternalRoutes(BaseRoute):
    """All routes of agents and runners, as one route of the application."""

    def __init__(self, context: InternalContext) -> None:
        self._context = context

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Full for every path that exists, whatever the method."""
        if scope["type"] != "http" or not scope["path"].startswith("/internal/"):
            return Match.NONE, {}
        found = _PATHS.fullmatch(scope["path"])
        return (Match.NONE, {}) if found is None else (Match.FULL, {"tesgate.internal": found})

    def url_path_for(self, name: str, /, **path_params: Any) -> Any:
        """Lean routes have no names."""
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; errors go up to the application's handlers."""
        found: re.Match[str] = scope["tesgate.internal"]
        message, stream = found["message"], found["stream"]
        scope[ROUTE] = "/internal/v1/" + (
            f"attempts/{message}"
            if message
            else "attempts/logs"
            if stream
            else found["register"] or found["poll"] or found["drain"]
        )
        expected = "PUT" if stream else "POST"
        if scope["method"] != expected:
            raise MethodNotAllowed(scope["method"], [expected])
        request = Request(scope, receive)
        answer: Any
        if message == "access":
            answer = await self._access(request, found["task"], int(found["number"]))
        elif message:
            answer = await self._message(request, found["task"], int(found["number"]), message)
        elif stream:
            answer = await self._log(request, found["task"], int(found["number"]), found["step"], stream)
        elif found["poll"]:
            pool = await _pool(self._context, request)
            answer = await self._context.attempt_service.poll(pool, await _body(PollRequest, request))
        elif found["drain"]:
            pool, asked = await _pool(self._context, request), await _body(DrainRequest, request)
            told = await self._context.agents.drain_own(pool, asked.agent, asked.drain)
            answer = Drained(hosts=[host for _, host in told])
        else:
            pool = await _pool(self._context, request)
            answer = await self._context.attempt_service.register(pool, await _body(AgentFacts, request))
        body = to_json(encode(answer))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _message(self, request: Request, task_id: str, number: int, name: str) -> Answer:
        _check_token(self._context, request, task_id, number)
        report = await _body(Report, request)
        service = self._context.attempt_service
        say: dict[str, Callable[[str, int, Report], Awaitable[Answer]]] = {
            "report": service.report,
            "publish": service.publish,
            "finish": service.finish,
            "failed": service.failed,
            "stopped": service.stopped,
        }
        return await say[name](task_id, number, report)

    async def _access(self, request: Request, task_id: str, number: int) -> AccessAnswer:
        _check_token(self._context, request, task_id, number)
        return await self._context.access_service.answer(task_id, number, await _body(AccessRequest, request))

    async def _log(self, request: Request, task_id: str, number: int, step: str, stream: str) -> Answer:
        _check_token(self._context, request, task_id, number)
        word = request.query_params.get("offset", "0")
        if _NUMBER.fullmatch(word) is None:
            raise BadRequest("offset must be a number of bytes")
        offset = int(word)
        data = await _bytes(request, MAX_LOG_CHUNK)
        await self._context.write_log(task_id, number, step, "stdout" if stream == "stdout" else "stderr", offset, data)
        return Answer()


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("agents and runners need their own bearer token here")
    return token.strip()


async def _pool(context: InternalContext, request: Request) -> str:
    pool = await context.pool_of(_token(request))
    if pool is None:
        raise Unauthorized("this is not a valid agent token; make one with `tesgate token create --kind agent`")
    return pool


def _check_token(context: InternalContext, request: Request, task_id: str, number: int) -> None:
    if not context.is_attempt_token(_token(request), task_id, number):
        raise Unauthorized(f"this token does not speak for attempt {number} of task {task_id[:64]}")


async def _bytes(request: Request, limit: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
    return bytes(data)


async def _body(cls: type[T], request: Request) -> T:
    try:
        data = await _bytes(request, MAX_BODY)
        # A report that could not be stored would be sent again for ever.
        value = storable(data, json.loads(data.decode("utf-8"), parse_constant=_constant))
        if isinstance(value, dict) and isinstance(wire := value.get("wire", WIRE), int) and wire > WIRE:
            raise BadRequest(f"the message speaks wire {wire}, this gateway {WIRE}: upgrade the gateways first")
        return decode(cls, value)
    except (ValueError, RecursionError) as error:
        detail = error if isinstance(error, WireError) else "not JSON"
        raise BadRequest(f"a message of the wire was expected: {detail}") from None


def _constant(word: str) -> Any:
    raise WireError(f"{word} is no number")
