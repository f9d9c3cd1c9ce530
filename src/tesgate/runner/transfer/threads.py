"""Runs blocking transfers in a bounded number of threads and stops them promptly when they are cancelled."""

from __future__ import annotations

import itertools
import threading
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from .faults import Stopped, passing

__all__ = ["WAITING", "Call", "Stop", "parallel", "retrying", "run_all", "run_one"]

T = TypeVar("T")


class Stop:
    """A wish to stop that threads look at between chunks, and that wakes those which sleep or wait for a socket."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._wakers: Dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count()

    def set(self) -> None:
        """Stop everything; each waker is called once."""
        with self._lock:
            self._event.set()
            wakers = list(self._wakers.values())
            self._wakers.clear()
        for wake in wakers:
            wake()

    def is_set(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Stopped` once somebody wants to stop."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> None:
        """Sleep; raises `Stopped` at once when somebody wants to stop."""
        if self._event.wait(seconds):
            raise Stopped

    def add(self, wake: Callable[[], None]) -> int:
        """Have `wake` called on `set`; the number is for `remove`. Raises `Stopped` when it is too late."""
        with self._lock:
            if self._event.is_set():
                raise Stopped
            number = next(self._numbers)
            self._wakers[number] = wake
            return number

    def remove(self, number: int) -> None:
        with self._lock:
            self._wakers.pop(number, None)


Call = Callable[[Stop], T]

WAITING = 12
"""Threads of one `run_all` that has calls which mostly wait."""


async def run_all(
    calls: Sequence[Call[T]], *, concurrency: int, stop: Optional[Stop] = None, waiting: Sequence[Call[T]] = ()
) -> List[T]:
    """Run blocking calls, at most `concurrency` at a time; results in their order, those of `waiting` at the end.

    `waiting`: calls that mostly wait for a server: `WAITING` of all together.
    The first error stops the others and is raised. A cancel stops all; it is delivered when the threads have ended,
    which takes as long as one chunk. With a `stop` of the caller's, that is what they look at.
    """
    if not calls and not waiting:
        return []
    wish = stop if stop is not None else Stop()
    finished = False
    lock = threading.Lock()
    busy: Iterator[Tuple[int, Call[T]]] = iter(enumerate(calls))
    idle: Iterator[Tuple[int, Call[T]]] = iter(enumerate(waiting, len(calls)))
    # Busy ones first, but no more than `concurrency` of them: the other threads take of the second kind alone.
    first = itertools.chain(busy, idle)
    results: Dict[int, T] = {}
    errors: List[BaseException] = []

    def take(queue: Iterator[Tuple[int, Call[T]]]) -> Optional[Tuple[int, Call[T]]]:
        with lock:
            return next(queue, None)

    def run(queue: Iterator[Tuple[int, Call[T]]]) -> None:
        while not wish.is_set():
            item = take(queue)
            if item is None:
                return
            number, call = item
            try:
                result = call(wish)
            except Stopped:
                return
            except BaseException as error:  # handed over to the caller below
                with lock:
                    errors.append(error)
                wish.set()
                return
            with lock:
                results[number] = result

    count = max(1, min(concurrency, len(calls) + len(waiting)))
    more = max(0, min(WAITING - count, len(waiting) - max(0, count - len(calls))))
    limiter = anyio.CapacityLimiter(count + more)

    async def one(queue: Iterator[Tuple[int, Call[T]]]) -> None:
        await anyio.to_thread.run_sync(run, queue, abandon_on_cancel=False, limiter=limiter)

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if not finished:
                wish.set()

    async with anyio.create_task_group() as outer:
        outer.start_soon(watch)
        if count + more == 1:
            await one(first)
        else:
            async with anyio.create_task_group() as inner:
                for queue in [first] * count + [idle] * more:
                    inner.start_soon(one, queue)
        finished = True
        outer.cancel_scope.cancel()
    # The threads' own way of ending must not hide that we were cancelled (waiting for a thread is shielded).
    await anyio.lowlevel.checkpoint_if_cancelled()
    if errors:
        raise errors[0]
    wish.check()
    return [results[number] for number in range(len(calls) + len(waiting))]


async def run_one(call: Call[T]) -> T:
    """Run one blocking call in a thread; cancels as `run_all` does."""
    return (await run_all([call], concurrency=1))[0]


def parallel(calls: Iterable[Callable[[], None]], *, concurrency: int, stop: Stop) -> None:
    """Run blocking calls from a thread, at most `concurrency` at a time, taken from `calls` one by one as they begin.

    `calls` may be a generator that knows the next ones only later. The first error ends the taking, and is raised when
    all that had begun have ended; they look at `stop` as ever. Raises `Stopped` when somebody wants to stop.
    """
    queue = iter(calls)
    lock = threading.Lock()
    errors: List[BaseException] = []

    def take() -> Optional[Callable[[], None]]:
        with lock:
            return None if errors or stop.is_set() else next(queue, None)

    def run() -> None:
        try:
            while (call := take()) is not None:
                call()
        except BaseException as error:  # handed over to the caller below
            errors.append(error)

    threads = [threading.Thread(target=run, name="transfer", daemon=True) for _ in range(concurrency - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    stop.check()


def retrying(call: Callable[[], T], stop: Stop, *, tries: int = 4, first_pause: float = 0.2) -> T:
    """Call again, with growing pauses, on an `OSError` that may pass; each other error is raised at once."""
    pause = first_pause
    for attempt in itertools.count(1):
        stop.check()
        try:
            return call()
        except OSError as error:
            if attempt >= tries or not passing(error):
                raise
        stop.wait(pause)
        pause *= 3
    raise AssertionError("unreachable")
