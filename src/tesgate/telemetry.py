"""What the gateway tells about itself: structured logs without secrets, and Prometheus metrics."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["Metrics", "configure_logging", "redact", "redact_url"]

_SECRET_NAMES = re.compile(r"(?i)(token|password|passwd|secret|authorization|cookie|credential|api_?key)")
_TOKENS = re.compile(r"\btg[uat]_[A-Za-z0-9_.~-]+")
_SCHEMES = re.compile(r"\b((?i:bearer|basic))\s+(?=\S*[0-9A-Z=_])[A-Za-z0-9+/=_.~-]{6,}")
_URL = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)([^\s\"'<>/?#@]*@)?([^\s\"'<>?#]*)(\?[^\s\"'<>#]*)?")


def _url(match: re.Match[str]) -> str:
    userinfo = "***@" if match[2] else ""
    query = "?***" if match[4] else ""
    return f"{match[1]}{userinfo}{match[3]}{query}"


def redact_url(text: str) -> str:
    """Hide userinfo and query of every URL in `text` (presigned requests carry their right in the query)."""
    return _URL.sub(_url, text) if "://" in text else text


def redact(text: str) -> str:
    """Hide tokens, credentials and the telling parts of URLs."""
    without = _SCHEMES.sub(lambda match: f"{match[1]} ***", redact_url(text))
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
    for name in ("httpx", "httpcore", "asyncio", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """All that Prometheus can ask for, in a registry of its own (two gateways in one process do not mix)."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    tasks_submitted: Counter = field(init=False)
    """Tasks stored by this replica."""
    tasks_total: Counter = field(init=False)
    """Tasks that reached a state, by ``state`` and ``backend``."""
    tasks: Gauge = field(init=False)
    """Tasks that have not ended, by ``state`` and ``backend`` of the current attempt (``none`` before one)."""
    queue_age: Gauge = field(init=False)
    """Age of the oldest waiting task (seconds)."""
    attempts_total: Counter = field(init=False)
    """Attempts that ended, by ``verdict`` and ``backend``."""
    loop_lag: Gauge = field(init=False)
    """How late the event loop is (seconds)."""
    loop_errors: Counter = field(init=False)
    """Iterations of a control loop that failed, by ``loop``."""
    http_seconds: Histogram = field(init=False)
    """Duration of requests, by ``method``, ``route`` and ``status``."""
    http_open: Gauge = field(init=False)
    """Requests that are being answered."""
    pool_connections: Gauge = field(init=False)
    """Connections to PostgreSQL, by ``state`` (``used``, ``idle``)."""
    agents: Gauge = field(init=False)
    """Agents, by ``pool`` and ``state``."""
    room: Gauge = field(init=False)
    """What agents offer and what is taken, by ``pool``, ``kind`` (``cpu_cores``, ``ram_bytes``, ``disk_bytes``) and
    ``use`` (``capacity``, ``used``)."""

    def __post_init__(self) -> None:
        def put(name: str, made: Counter | Gauge | Histogram) -> None:
            object.__setattr__(self, name, made)

        to = self.registry
        put("tasks_submitted", Counter("tesgate_tasks_submitted", "Tasks stored by this replica", registry=to))
        put("tasks_total", Counter("tesgate_tasks", "Tasks that reached a state", ["state", "backend"], registry=to))
        put("tasks", Gauge("tesgate_tasks_now", "Tasks now", ["state", "backend"], registry=to))
        put("queue_age", Gauge("tesgate_queue_age_seconds", "Age of the oldest waiting task", registry=to))
        put("attempts_total", Counter("tesgate_attempts", "Attempts that ended", ["verdict", "backend"], registry=to))
        put("loop_lag", Gauge("tesgate_loop_lag_seconds", "How late the event loop is", registry=to))
        put("loop_errors", Counter("tesgate_loop_errors", "Iterations that failed", ["loop"], registry=to))
        put(
            "http_seconds",
            Histogram(
                "tesgate_http_request_seconds",
                "Duration of requests",
                ["method", "route", "status"],
                buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
                registry=to,
            ),
        )
        put("http_open", Gauge("tesgate_http_requests_open", "Requests that are being answered", registry=to))
        put("pool_connections", Gauge("tesgate_database_connections", "Connections", ["state"], registry=to))
        put("agents", Gauge("tesgate_agents", "Agents", ["pool", "state"], registry=to))
        put("room", Gauge("tesgate_room", "What agents offer and what is taken", ["pool", "kind", "use"], registry=to))

    def render(self) -> tuple[bytes, str]:
        """The page for Prometheus, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
