"""Whole stdout and stderr of one executor, by byte ranges: an extension beside TES."""

import re
import sys
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse

from tesgate.api.context import ApiContext
from tesgate.api.deps import caller_of
from tesgate.api.tes import PREFIX
from tesgate.errors import RangeNotSatisfiable
from tesgate.ga4gh.common import ErrorBody
from tesgate.model.caller import Caller
from tesgate.storage.workspace import Stream

__all__ = ["logs_router"]

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def _slice(header: str | None) -> tuple[int, int | None] | None:
    """Start and stop of a single range; None where the header is absent or one that may be ignored (RFC 9110)."""
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return (-int(match[2]) or sys.maxsize, None)  # the last 0 bytes are beyond the end
    if not match[2]:
        return (int(match[1]), None)
    first, last = int(match[1]), int(match[2])
    return (first, last + 1) if last >= first else None


def logs_router(context: ApiContext) -> APIRouter:
    """The route of whole logs, for the owner of the task."""
    router = APIRouter(tags=["Logs"])
    caller_dependency = caller_of(context)

    @router.api_route(
        PREFIX + "/tasks/{id}/logs/{attempt}/{executor}/{stream}",
        methods=["GET", "HEAD"],
        include_in_schema=False,
    )
    @router.get(
        PREFIX + "/tasks/{id}/logs/{attempt}/{executor}/{stream}",
        summary="The whole stdout or stderr of one executor, also while it runs.",
        description="`attempt` counts from 1, `executor` from 0. One `Range` of bytes is honoured, so that a client "
        "can follow a log: ask from where you are, and 416 says that nothing new is there.",
        operation_id="GetTaskLog",
        response_class=Response,
        responses={
            200: {"description": "The log.", "content": {"text/plain": {}}},
            206: {"description": "The range.", "content": {"text/plain": {}}},
            400: {"description": "A part of the path is wrong.", "model": ErrorBody},
            401: {"description": "No credentials, or wrong ones.", "model": ErrorBody},
            404: {"description": "No such task or log.", "model": ErrorBody},
            416: {"description": "Nothing is there (yet).", "model": ErrorBody},
        },
    )
    async def get_log(
        request: Request,
        id: Annotated[str, Path(description="Id of the task.")],
        attempt: Annotated[int, Path(ge=1, le=10_000, description="Which attempt, from 1.")],
        executor: Annotated[int, Path(ge=0, le=100_000, description="Which executor, from 0.")],
        stream: Annotated[Stream, Path(description="`stdout` or `stderr`.")],
        caller: Annotated[Caller, Depends(caller_dependency)],
    ) -> Response:
        await context.tasks.state(caller, id)  # raises TaskNotFound, for other people's tasks too
        wanted = _slice(request.headers.get("range"))
        start, stop = wanted or (0, None)
        found = await context.workspace.open_range(id, attempt, executor, stream, start, stop)
        headers = {
            "accept-ranges": "bytes",
            "content-length": str(found.length),
            "cache-control": "no-store",
        }
        if wanted is not None:
            if found.length == 0:
                found.close()
                raise RangeNotSatisfiable(found.size)
            headers["content-range"] = f"bytes {found.start}-{found.start + found.length - 1}/{found.size}"
        if request.method == "HEAD":
            found.close()
            return Response(status_code=206 if wanted else 200, headers=headers, media_type="text/plain; charset=utf-8")
        return StreamingResponse(
            found.chunks(),
            status_code=206 if wanted else 200,
            headers=headers,
            media_type="text/plain; charset=utf-8",
        )

    return router
