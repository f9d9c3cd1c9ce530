"""The FastAPI application, put together from the routers."""

from __future__ import annotations

from fastapi import FastAPI

from tesgate import __version__
from tesgate.api.context import ApiContext
from tesgate.api.docs import install_docs
from tesgate.api.errors import install_error_handlers
from tesgate.api.internal import InternalContext, internal_routes
from tesgate.api.logs import logs_router
from tesgate.api.meta import meta_router
from tesgate.api.middleware import install_middleware
from tesgate.api.tes import TesRoutes

__all__ = ["build_app"]


def build_app(context: ApiContext, internal: InternalContext | None = None) -> FastAPI:
    """All routes. Without `internal` (an export of the documents) there are none for runners."""
    app = FastAPI(
        title="tesgate",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(meta_router(context))
    if "api" in context.settings.roles:
        app.router.routes.append(TesRoutes(context))
        app.include_router(logs_router(context))
    if internal is not None:
        app.router.routes.extend(internal_routes(lambda request: internal))
    if "api" in context.settings.roles:
        install_docs(app)
    install_error_handlers(app)
    install_middleware(app, context)
    return app
