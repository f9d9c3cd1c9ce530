"""All that Prometheus can ask for: names, labels and units in one place.

Every label has few values that we choose (states, verdicts, loops, route templates, pools); none comes from a client. A
scrape reads numbers that are there: nothing is asked of the database, and no time grows with the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

__all__ = ["Metrics", "Sample"]

LONG = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
"""Buckets (seconds) of what tasks go through: from a tenth of a second to a week."""
REQUEST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LATE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

Sample = tuple[str, str, float]
"""Name without the prefix (a counter ends in ``_total``), help, value."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """In a registry of its own: two gateways in one process do not mix."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    tasks_submitted: Counter = field(init=False)
    tasks_total: Counter = field(init=False)
    tasks: Gauge = field(init=False)
    queue_age: Gauge = field(init=False)
    queue_seconds: Histogram = field(init=False)
    start_seconds: Histogram = field(init=False)
    task_seconds: Histogram = field(init=False)
    phase_seconds: Histogram = field(init=False)
    attempts_total: Counter = field(init=False)
    retries_total: Counter = field(init=False)
    agents: Gauge = field(init=False)
    agents_lost: Counter = field(init=False)
    room: Gauge = field(init=False)
    leases: Gauge = field(init=False)
    loop_lag: Gauge = field(init=False)
    loop_delay: Histogram = field(init=False)
    loop_errors: Counter = field(init=False)
    loop_success: Gauge = field(init=False)
    http_seconds: Histogram = field(init=False)
    http_open: Gauge = field(init=False)
    log_bytes: Counter = field(init=False)
    disk_free: Gauge = field(init=False)
    disk_size: Gauge = field(init=False)
    pool_connections: Gauge = field(init=False)

    def __post_init__(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tesgate_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"tesgate_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"tesgate_{name}", text, labels, buckets=buckets, registry=self.registry)

        made: dict[str, Counter | Gauge | Histogram] = {
            "tasks_submitted": counter("tasks_submitted", "Tasks stored by this replica"),
            "tasks_total": counter("tasks", "Tasks that ended through this replica", "state", "backend"),
            "tasks": gauge("tasks_now", "Tasks that have not ended, of the deployment", "state", "backend"),
            "queue_age": gauge("queue_age_seconds", "Age of the oldest waiting task"),
            "queue_seconds": histogram("queue_seconds", "From the POST to the first assignment", LONG),
            "start_seconds": histogram("task_start_seconds", "From the POST to the first executor's start", LONG),
            "task_seconds": histogram("task_seconds", "From the POST to the terminal state", LONG, "state"),
            "phase_seconds": histogram("attempt_phase_seconds", "Parts of attempts that finished", LONG, "phase"),
            "attempts_total": counter("attempts", "Attempts that ended", "verdict", "backend"),
            "retries_total": counter("retries", "Ended attempts that a further one follows", "verdict"),
            "agents": gauge("agents", "Agents", "pool", "state"),
            "agents_lost": counter("agents_lost", "Agents that this replica declared lost"),
            "room": gauge("room", "What agents offer and what is taken", "pool", "kind", "use"),
            "leases": gauge("publish_leases", "Attempts that may store outputs now, of the deployment"),
            "loop_lag": gauge("loop_lag_seconds", "How late the event loop was when last looked at"),
            "loop_delay": histogram("loop_delay_seconds", "How late the event loop is, twice a second", LATE),
            "loop_errors": counter("loop_errors", "Iterations of a loop that failed", "loop"),
            "loop_success": gauge("loop_last_success_timestamp_seconds", "When a loop last ran well", "loop"),
            "http_seconds": histogram(
                "http_request_seconds", "Duration of requests", REQUEST, "method", "route", "status"
            ),
            "http_open": gauge("http_requests_open", "Requests that are being answered"),
            "log_bytes": counter("log_bytes", "Bytes of tasks' streams that came in"),
            "disk_free": gauge("disk_free_bytes", "Free space where this replica writes", "place"),
            "disk_size": gauge("disk_size_bytes", "Size of the file system where this replica writes", "place"),
            "pool_connections": gauge("database_connections", "Connections of this replica's pool", "state"),
        }
        for name, metric in made.items():
            object.__setattr__(self, name, metric)

    def add_source(self, read: Callable[[], Iterable[Sample]]) -> None:
        """`read` is called at each scrape and answers at once; a name that ends in ``_total`` is a counter."""
        self.registry.register(_Source(read))

    def render(self) -> tuple[bytes, str]:
        """The page for Prometheus, and its media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class _Source(Collector):
    """Numbers that live elsewhere, read when somebody asks."""

    def __init__(self, read: Callable[[], Iterable[Sample]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        for name, text, value in self._read():
            if name.endswith("_total"):
                yield CounterMetricFamily(f"tesgate_{name.removesuffix('_total')}", text, value=value)
            else:
                yield GaugeMetricFamily(f"tesgate_{name}", text, value=value)
