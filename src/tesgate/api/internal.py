"""``/internal/v1``: what agents and runners say. It accepts their scoped tokens and nothing else.

Lean Starlette routes: these are the hot path of every task, and their bodies are the runner's own dataclasses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tesgate.api.body import storable
from tesgate.errors import BadRequest, NotFound, TooLarge, Unauthorized
from tesgate.runner.report import AgentFacts, Answer, PollRequest, Report
from tesgate.runner.wire import WIRE, WireError, decode, encode
from tesgate.services.attempts import AttemptService
from tesgate.storage.workspace import Stream

__all__ = ["InternalContext", "internal_routes"]

MAX_BODY = 64 << 20
MAX_LOG_CHUNK = 4 << 20

_NUMBER = re.compile(r"[0-9]{1,15}")
"""Longer ones mean nothing here, and from 4,301 digits on Python refuses them with an error."""

T = TypeVar("T")


class InternalContext(Protocol):
    """What these routes need."""

    attempt_service: AttemptService

    async def pool_of(self, token: str) -> str | None:
        """The pool that an agent token belongs to; None: no such token."""
        ...

    def is_attempt_token(self, token: str, task_id: str, number: int) -> bool:
        """Whether the token speaks for this attempt."""
        ...

    async def write_log(self, task_id: str, number: int, step: str, stream: Stream, offset: int, data: bytes) -> None:
        """Write a piece of a log at its offset; repeatable. Raises `ClientError`."""
        ...


def internal_routes(context: Callable[[Request], InternalContext]) -> list[Route]:
    """The routes. `context` is taken from the request, so that the routes exist before the gateway has started."""

    async def register(request: Request) -> Response:
        pool = await _pool(context(request), request)
        facts = await _body(AgentFacts, request)
        return _json(await context(request).attempt_service.register(pool, facts))

    async def poll(request: Request) -> Response:
        pool = await _pool(context(request), request)
        asked = await _body(PollRequest, request)
        return _json(await context(request).attempt_service.poll(pool, asked))

    def message(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            task_id, number = _attempt(context(request), request)
            report = await _body(Report, request)
            say: Callable[[str, int, Report], Awaitable[Answer]] = getattr(context(request).attempt_service, name)
            return _json(await say(task_id, number, report))

        return handle

    async def logs(request: Request) -> Response:
        task_id, number = _attempt(context(request), request)
        step, stream = request.path_params["step"], request.path_params["stream"]
        if _NUMBER.fullmatch(step) is None or stream not in ("stdout", "stderr"):
            raise NotFound(f"there is no stream {stream[:20]!r} of step {step[:20]!r}")
        word = request.query_params.get("offset", "0")
        if _NUMBER.fullmatch(word) is None:
            raise BadRequest("offset must be a number of bytes")
        offset = int(word)
        data = await _bytes(request, MAX_LOG_CHUNK)
        await context(request).write_log(task_id, number, step, stream, offset, data)
        return _json(Answer())

    base = "/internal/v1/attempts/{task}/{number}"
    return [
        Route("/internal/v1/agents", register, methods=["POST"]),
        Route("/internal/v1/agents/poll", poll, methods=["POST"]),
        *(
            Route(f"{base}/{name}", message(name), methods=["POST"])
            for name in ("report", "publish", "finish", "failed", "stopped")
        ),
        Route(f"{base}/logs/{{step}}/{{stream}}", logs, methods=["PUT"]),
    ]


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


def _attempt(context: InternalContext, request: Request) -> tuple[str, int]:
    task_id, word = request.path_params["task"], request.path_params["number"]
    if _NUMBER.fullmatch(word) is None:
        raise NotFound("attempts are counted from 1")
    number = int(word)
    if not context.is_attempt_token(_token(request), task_id, number):
        raise Unauthorized(f"this token does not speak for attempt {number} of task {task_id[:64]}")
    return task_id, number


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


def _json(message: Any) -> Response:
    return Response(json.dumps(encode(message), separators=(",", ":")), media_type="application/json")
