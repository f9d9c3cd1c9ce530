"""The engine's event stream as an endless iterator of names, whatever happens to the engine."""

from __future__ import annotations

import threading
import time
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List, Optional

import anyio
import anyio.to_thread
from urllib3.exceptions import HTTPError

from .base import RuntimeFault
from .engine import Engine, EngineError, Stream

__all__ = ["ended_containers"]

_IDLE = 300.0
"""Seconds after which a silent stream is opened anew, should the engine have died without a word."""
_OVERLAP = 2
"""Seconds of the past that are asked for: the engine answers a little before it begins to listen."""
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0


class _Events:
    """One event stream. Its blocking methods run in a thread that a cancel leaves behind, which then closes it."""

    def __init__(self, engine: Engine, labels: List[str]) -> None:
        self._engine = engine
        self._labels = labels
        self._stream: Stream = engine.stream(_IDLE)
        self._lines: Optional[Iterator[Any]] = None
        self._use = threading.Lock()

    def open(self) -> None:
        """Connect; raises when the engine does not answer."""
        # Podman answers with "die", but is to be asked for "died"; either engine passes over the word of the other.
        filters = {"type": ["container"], "event": ["die", "died"], "label": self._labels}
        query = {"since": str(int(time.time()) - _OVERLAP), "filters": filters}
        with self._use:
            try:
                self._engine.open(self._stream, "GET", "/events", query)
                self._lines = self._stream.lines()
            finally:
                if self._stream.aborted:
                    self._stream.close()

    def next(self) -> Optional[Dict[str, Any]]:
        """Wait for an event; None at the end of the stream."""
        with self._use:
            assert self._lines is not None
            try:
                return next(self._lines, None)
            finally:
                if self._stream.aborted:
                    self._stream.close()

    def close(self) -> None:
        """Cut it; the thread that waits on it, if there is one, closes it."""
        self._stream.abort()
        if self._use.acquire(blocking=False):
            try:
                self._stream.close()
            finally:
                self._use.release()


async def ended_containers(engine: Engine, labels: List[str], connected: Callable[[], None]) -> AsyncIterator[str]:
    """Names of containers with these `labels` that ended, and ``""`` after each (re)connection.

    `connected` is called each time before ``""`` is yielded: it may be another engine than before.
    """
    # One thread waits here all the time, so it must be none of those that calls use.
    limiter = anyio.CapacityLimiter(1)
    wait = _FIRST_WAIT
    while True:
        events = _Events(engine, labels)
        try:
            await anyio.to_thread.run_sync(events.open, limiter=limiter, abandon_on_cancel=True)
            connected()
            wait = _FIRST_WAIT
            yield ""
            while True:
                event = await anyio.to_thread.run_sync(events.next, limiter=limiter, abandon_on_cancel=True)
                if event is None:
                    break
                yield str((event.get("Actor") or {}).get("Attributes", {}).get("name", ""))
        except (RuntimeFault, EngineError, HTTPError, OSError, ValueError):
            wait = min(wait * 2, _LONGEST_WAIT)  # `start` and `inspect` say what is wrong to those who must know
        finally:
            events.close()
        await anyio.sleep(wait)
