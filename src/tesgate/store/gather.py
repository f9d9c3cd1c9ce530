"""Calls of one moment in one statement.

Calls that arrive while statements are under way wait for the next one and go together; an idle gateway waits for
nothing. Each caller gets its answer after the batch returned (after the commit), so nothing is promised early.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from tesgate.store.errors import DatabaseUnavailable

__all__ = ["Gather", "one_of_each"]

Request = TypeVar("Request")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

PAUSE_SECONDS = 0.1
"""Before a batch that found the database away is sent again."""

_Entry = tuple[Request, asyncio.Future[Result], float]
"""What is asked, who waits for it, and since when."""


class Gather(Generic[Request, Result]):
    """Gathers the calls of one kind.

    A caller that has waited less than `patience` seconds goes into the next batch when its batch finds the database
    away (`DatabaseUnavailable`): a fault that passes is not worth an error. What is asked must then be harmless to ask
    twice.

    `run_batch` gets one to `max_batch` requests and returns one result for each, in order; an `Exception` in that list
    is raised to its caller alone. If it raises, nothing of the batch may have been stored: the batch is halved until
    what fails stands alone, so one bad row does not fail its neighbours. `DatabaseUnavailable` is the exception: it
    says nothing about rows and goes to all of them at once, unless a row was `locked`; then the halves go side by side,
    so that none waits for the other's lock.

    It has no lifetime of its own: a batch runs in a task that lives for as long as there are calls, kept here and not
    in the caller's task, so that a caller who is cancelled takes nobody with him. One instance serves one event loop.
    """

    def __init__(
        self,
        run_batch: Callable[[list[Request]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_batch: int = 500,
        concurrency: int = 2,
        patience: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = patience
        self._clock = clock
        self._run_batch = run_batch
        self._max_batch = max_batch
        self._concurrency = concurrency
        self._waiting: deque[_Entry[Request, Result]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self.calls = 0
        """That went into batches so far."""
        self.batches = 0

    async def call(self, request: Request) -> Result:
        """The result for `request`. A caller who is cancelled before its batch left never takes part in it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((request, future, self._clock()))
        if len(self._under_way) < self._concurrency:
            # Started now, runs at the loop's next turn: the calls of this turn go along.
            task = loop.create_task(self._drain(), name="gather")
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        return await future

    async def aclose(self) -> None:
        """Wait until everything that was asked is answered."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _drain(self) -> None:
        batch: list[_Entry[Request, Result]] = []
        try:
            while batch := self._take():
                await self._answer(batch)
        except BaseException:
            # Only at the end of the event loop: who still waits must not wait for ever.
            for _, future, _ in (*batch, *self._waiting):
                future.cancel()
            self._waiting.clear()
            raise
        finally:
            # In the turn in which the queue was found empty: whoever calls later starts a task of its own.
            self._under_way.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _take(self) -> list[_Entry[Request, Result]]:
        batch: list[_Entry[Request, Result]] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch

    async def _answer(self, batch: list[_Entry[Request, Result]]) -> None:
        self.calls, self.batches = self.calls + len(batch), self.batches + 1
        try:
            results = await self._run_batch([request for request, _, _ in batch])
        except Exception as exc:
            locked = isinstance(exc, DatabaseUnavailable) and exc.locked
            if len(batch) > 1 and (locked or not isinstance(exc, DatabaseUnavailable)):
                middle = len(batch) // 2
                if locked:
                    await asyncio.gather(self._answer(batch[:middle]), self._answer(batch[middle:]))
                    return
                await self._answer(batch[:middle])
                await self._answer(batch[middle:])
                return
            passing = isinstance(exc, DatabaseUnavailable) and exc.passing
            over = self._clock() - self._patience if passing else math.inf
            for _, future, _ in (entry for entry in batch if entry[2] <= over):
                _settle(future, exc)
            if passing and not locked and self._patience > 0:
                # Those behind it have waited for the same database, and would each wait for a fault of their own.
                for _, future, _ in (entry for entry in self._waiting if entry[2] <= over):
                    _settle(future, exc)
            again = [entry for entry in batch if entry[2] > over]
            if again:
                self._waiting.extendleft(reversed(again))
                await asyncio.sleep(PAUSE_SECONDS)
            return
        if len(results) != len(batch):
            results = [RuntimeError(f"a batch of {len(batch)} had {len(results)} results")] * len(batch)
        for (_, future, _), result in zip(batch, results, strict=True):
            _settle(future, result)


async def one_of_each(
    batch: Sequence[Request],
    key: Callable[[Request], Key],
    ask: Callable[[list[Request]], Awaitable[Mapping[Key, Result]]],
) -> list[Result | Exception | None]:
    """The results of a batch by statements that take each key once; None: the statement had no row for it.

    A request whose key is there twice goes into a statement of its own, after the first. Once one was committed nothing
    is raised any more: who was heard is told so.
    """
    results: list[Result | Exception | None] = [None] * len(batch)
    left = list(range(len(batch)))
    while left:
        chosen = {key(batch[index]): index for index in reversed(left)}
        try:
            answers = await ask([batch[index] for index in chosen.values()])
        except Exception as exc:
            if len(left) == len(batch):
                raise
            for index in left:
                results[index] = exc
            return results
        for name, answer in answers.items():
            results[chosen[name]] = answer
        taken = set(chosen.values())
        left = [index for index in left if index not in taken]
    return results


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
