"""One shape for every answer that is not 2xx: ``{"msg": …, "status_code": …}``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tesgate.errors import ClientError, Unavailable
from tesgate.store.errors import DatabaseUnavailable

__all__ = ["answer_to", "error_body", "error_response", "install_error_handlers"]

_LOGGER = "tesgate.api"

_NOT_FOUND = "Nothing lives at this path. TES is at /ga4gh/tes/v1, its description at /docs."


def error_body(status_code: int, msg: str) -> bytes:
    """The one shape, as JSON."""
    return to_json({"msg": msg, "status_code": int(status_code)})


def error_response(status_code: int, msg: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with the one shape."""
    body = error_body(status_code, msg)
    return Response(body, status_code=status_code, media_type="application/json", headers=dict(headers or {}))


async def _client_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ClientError)
    return error_response(error.status_code, error.msg, error.headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses."""
    assert isinstance(error, HTTPException)
    msg = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        msg = _NOT_FOUND
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        msg = f"{request.method} is not possible here; use {(error.headers or {}).get('Allow', 'GET')}."
    return error_response(error.status_code, msg, error.headers)


async def _validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    words = [f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors()[:5]]
    return error_response(400, "; ".join(words) or "The request is not valid.")


async def _disconnected(_request: Request, error: Exception) -> Response:
    """Nobody reads this, and it is no fault of ours."""
    structlog.get_logger(_LOGGER).debug("client went away", fault=str(error))
    return error_response(400, "The connection was closed before the body was complete.")


async def _database_unavailable(_request: Request, error: Exception) -> Response:
    structlog.get_logger(_LOGGER).warning("database unavailable", fault=str(error))
    fault = Unavailable("The gateway's database does not answer at the moment; send the same request again.")
    return error_response(fault.status_code, fault.msg, fault.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    structlog.get_logger(_LOGGER).error("request failed", method=request.method, path=request.url.path, exc_info=error)
    return error_response(500, "Something went wrong inside the gateway; its log says more. Try again later.")


async def answer_to(request: Request, error: Exception) -> Response:
    """The answer of lean routes to what they raised: the same as that of the application's handlers."""
    if isinstance(error, ClientError):
        return await _client_error(request, error)
    if isinstance(error, DatabaseUnavailable):
        return await _database_unavailable(request, error)
    return await _unexpected(request, error)


def install_error_handlers(app: FastAPI) -> None:
    """Every error of every route, and of no route at all, gets the one shape."""
    app.add_exception_handler(ClientError, _client_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ClientDisconnect, _disconnected)
    app.add_exception_handler(DatabaseUnavailable, _database_unavailable)
    app.add_exception_handler(Exception, _unexpected)
