"""The FastAPI application, put together from the routers."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tesgate import __version__
from tesgate.api.agents import agents_router
from tesgate.api.context import ApiContext
from tesgate.api.docs import install_docs
from tesgate.api.errors import install_error_handlers
from tesgate.api.internal import InternalContext, InternalRoutes
from tesgate.api.logs import logs_router
from tesgate.api.meta import meta_router
from tesgate.api.middleware import guarded
from tesgate.api.tes import TesRoutes

__all__ = ["build_app"]


class Application(FastAPI):
    """FastAPI behind layers of ours, which see every request first; the lean routes never reach FastAPI."""

    front: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.front is None or scope["type"] != "http":
            await super().__call__(scope, receive, send)
        else:
            await self.front(scope, receive, send)


def build_app(context: ApiContext, internal: InternalContext | None = None) -> FastAPI:
    """All routes. Without `internal` (an export of the documents) there are none for runners."""
    app = Application(
        title="tesgate",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(meta_router(context))
    if "api" in context.settings.roles:
        app.include_router(logs_router(context))
        app.include_router(agents_router(context))
    if internal is not None:
        app.router.routes.append(InternalRoutes(internal))
    if "api" in context.settings.roles:
        install_docs(app)
    install_error_handlers(app)
    routes: ASGIApp = super(Application, app).__call__
    if "api" in context.settings.roles:
        routes = TesRoutes(routes, context)
    app.front = guarded(routes, context)
    return app
