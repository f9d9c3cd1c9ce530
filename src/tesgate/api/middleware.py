"""Around every request: duration, count, and a refusal of bodies that announce themselves as too large.

Raw ASGI, because every request passes here. A body that does not say its size is bounded where it is read
(`tesgate.api.body`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import anyio
from fastapi.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tesgate.api.body import too_large
from tesgate.api.context import ApiContext
from tesgate.api.errors import error_response
from tesgate.errors import Unavailable

__all__ = ["ROUTE", "Gate", "guarded"]

ROUTE = "tesgate.route"
"""Key of the scope under which lean routes leave their template, for metrics."""

_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]
"""On every answer: no browser may guess another kind, show it inside somebody's page, or tell where it came from."""

_DRAINED = 4
"""A body up to so many times the limit is read and thrown away, so that the client sees the refusal at all."""


_OWN_LIMITS = "/internal/"
"""What runners send has bounds of its own: a tight limit for clients must not cut reports off."""


class Gate:
    """The outermost application of ours."""

    def __init__(self, app: ASGIApp, *, context: ApiContext, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app = app
        self._context = context
        self._clock = clock
        self._series: dict[tuple[str, str, int], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = self._clock()

        begun = False

        async def noted(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), *_ALWAYS]
            await send(message)

        metrics = self._context.metrics
        metrics.http_open.inc()
        try:
            limit = self._context.settings.limits.max_body_bytes
            size = _content_length(scope)
            if size is not None and size > limit and not scope["path"].startswith(_OWN_LIMITS):
                fault = too_large(limit)
                headers = {"connection": "close"} if size > limit * _DRAINED else {}
                await error_response(fault.status_code, fault.msg, headers)(scope, receive, noted)
            else:
                await self._app(scope, receive, noted)
        except anyio.get_cancelled_exc_class():
            # Only the server cancels: it ends, and its grace is over.
            if begun:
                raise
            with anyio.CancelScope(shield=True):
                ending = Unavailable("The gateway is ending; send the same request again.")
                await error_response(ending.status_code, ending.msg, ending.headers)(scope, receive, noted)
        finally:
            metrics.http_open.dec()
            self._observe(scope, status, self._clock() - started)

    def _observe(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get(ROUTE) or getattr(scope.get("route"), "path", None) or "none"
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"
        key = (method, route, status)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = self._context.metrics.http_seconds.labels(method, route, str(status))
        series.observe(seconds)


def _content_length(scope: Scope) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else None
    return None


def guarded(app: ASGIApp, context: ApiContext) -> ASGIApp:
    """Put `Gate` around everything, and CORS (if configured) inside it."""
    cors = context.settings.cors
    if cors.allow_origins:
        app = CORSMiddleware(
            app,
            allow_origins=cors.allow_origins,
            allow_credentials=cors.allow_credentials,
            allow_methods=["GET", "HEAD", "POST", "OPTIONS"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Range"],
            expose_headers=["Content-Range", "Accept-Ranges"],
            max_age=cors.max_age,
        )
    return Gate(app, context=context)
