"""What the gateway tells about itself: structured logs without secrets, and (`tesgate.metrics`) numbers."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from tesgate.metrics import Metrics

__all__ = ["Metrics", "configure_logging", "redact", "redact_url"]

_SECRET_NAMES = re.compile(r"(?i)(token|password|passwd|secret|authorization|cookie|credential|api_?key)")
_TOKENS = re.compile(r"\btg[uat]_[A-Za-z0-9_.~-]+")
_SCHEMES = re.compile(r"\b((?i:bearer|basic))\s+(?=\S*[0-9A-Z=_])[A-Za-z0-9+/=_.~-]{6,}")
# A user and a password end at the last @ of the authority. A colon before it is a port's or a password's, and a
# password that somebody did not encode has anything in it: then the last @ of the word counts.
_URL = re.compile(
    r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)((?:[^\s\"'<>/?#@:]*:[^\s\"'<>]{0,2000}|[^\s\"'<>/?#]*)@)?"
    r"([^\s\"'<>?#]*)(\?[^\s\"'<>#]*)?"
)
_SIGNED = re.compile(r"(?i)\b((?:X-Amz-)?(?:Signature|Credential|Security-Token)=)[^\s&\"'<>]+")


def _url(match: re.Match[str]) -> str:
    userinfo = "***@" if match[2] else ""
    query = "?***" if match[4] else ""
    return f"{match[1]}{userinfo}{match[3]}{query}"


def redact_url(text: str) -> str:
    """Hide userinfo and query of every URL in `text` (presigned requests carry their right in the query)."""
    return _URL.sub(_url, text) if "://" in text else text


def redact(text: str) -> str:
    """Hide tokens, credentials and the telling parts of URLs."""
    without = _SIGNED.sub(r"\1***", redact_url(text))
    without = _SCHEMES.sub(lambda match: f"{match[1]} ***", without)
    return _TOKENS.sub(lambda match: match[0][:4] + "***", without)


def _clean(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, bytes):
        return redact(value.decode("utf-8", "replace"))
    if depth < 6:
        if isinstance(value, Mapping):
            return {
                key: "***" if isinstance(key, str) and _SECRET_NAMES.search(key) else _clean(item, depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [_clean(item, depth + 1) for item in value]
    return value if isinstance(value, int | float | bool | None) else redact(str(value))


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key in ("exc_info", "_record", "_from_structlog"):
            continue
        event[key] = "***" if key != "event" and _SECRET_NAMES.search(key) and value else _clean(value)
    return event


def configure_logging(
    *,
    form: Literal["auto", "json", "console"] = "auto",
    level: Literal["debug", "info", "warning", "error"] = "info",
    stream: TextIO | None = None,
) -> None:
    """Send our own logs and those of libraries through one chain to `stream` (stderr).

    Called once, by the process's entry point; libraries' records are redacted as ours are.
    """
    target = stream if stream is not None else sys.stderr
    as_json = form == "json" or (form == "auto" and not target.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        # A traceback is text before it is redacted: exceptions quote URLs and headers.
        shared.append(structlog.processors.format_exc_info)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=target.isatty())
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact_event,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # One line for each request is what metrics are for.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    # Its pool writes a traceback for each attempt to connect; the store says in a line that the database is away.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    # botocore and aiohttp tell more than that when they debug: keys, signatures, what STS answered.
    for name in ("httpx", "httpcore", "asyncio", "urllib3", "botocore", "aiobotocore", "aiohttp"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
