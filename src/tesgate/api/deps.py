"""Dependencies of FastAPI routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from tesgate.api.body import headers_of
from tesgate.api.context import ApiContext
from tesgate.api.origin import check_browser, check_origin
from tesgate.model.caller import Caller

__all__ = ["caller_of"]


def caller_of(context: ApiContext) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that gives the caller, or 401; 403 where somebody else's web page asks for more than to read."""

    async def caller(request: Request) -> Caller:
        headers = headers_of(request.scope)
        check_browser(headers, context.settings)
        if request.method not in ("GET", "HEAD"):
            check_origin(headers, context.settings)
        return await context.authenticator.caller(request.scope["headers"])

    return caller
