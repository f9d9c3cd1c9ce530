"""For probes and for Prometheus: ``/healthz``, ``/readyz``, ``/metrics``."""

from __future__ import annotations

import anyio
from fastapi import APIRouter, Response

from tesgate.api.context import ApiContext
from tesgate.errors import NotFound, Unavailable

__all__ = ["meta_router"]

_READY_SECONDS = 3.0


def meta_router(context: ApiContext) -> APIRouter:
    """Routes about the process itself; none needs credentials."""
    router = APIRouter(tags=["Process"])

    @router.get("/healthz", summary="The process lives.")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Requests can be answered.", responses={503: {"description": "Not now."}})
    async def readyz() -> dict[str, str]:
        reasons = ["The database did not answer in time."]
        with anyio.move_on_after(_READY_SECONDS):
            reasons = list(await context.readiness())
        if reasons:
            raise Unavailable(" ".join(reasons))
        return {"status": "ok"}

    @router.get("/metrics", summary="Metrics for Prometheus.", response_class=Response)
    async def metrics() -> Response:
        if not context.settings.telemetry.metrics:
            raise NotFound("Metrics are switched off (telemetry.metrics).")
        body, kind = context.metrics.render()
        return Response(body, media_type=kind)

    return router
