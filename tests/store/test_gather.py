"""Calls of one moment in one statement."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence

import anyio
import pytest
import pytest_asyncio

from tesgate.store.errors import DatabaseUnavailable
from tesgate.store.gather import Gather


class Statements:
    """A ``run_batch`` that a test holds up and lets go, batch by batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most_under_way = 0
        self.unacceptable: set[int] = set()
        self.fault: Exception | None = None

    async def run(self, batch: list[int]) -> Sequence[int | Exception]:
        self.batches.append(batch)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.fault:
            raise self.fault
        if self.unacceptable & set(batch):
            raise ValueError("a bad row")
        return [number * 10 for number in batch]

    async def reached(self, batches: int) -> None:
        """Until so many batches were begun."""
        with anyio.fail_after(60):
            while len(self.batches) < batches:
                await anyio.sleep(0)


@pytest_asyncio.fixture
async def statements() -> AsyncGenerator[Statements]:
    made = Statements()
    yield made
    made.gate.set()


async def all_of(gather: Gather[int, int], numbers: Sequence[int]) -> list[int | BaseException]:
    return await asyncio.gather(*(gather.call(number) for number in numbers), return_exceptions=True)


async def test_one_call_goes_alone_and_at_once(statements: Statements) -> None:
    gather = Gather(statements.run)
    assert await gather.call(1) == 10
    assert statements.batches == [[1]]


async def test_calls_of_one_moment_go_together(statements: Statements) -> None:
    gather = Gather(statements.run, concurrency=1)
    assert await all_of(gather, range(50)) == [number * 10 for number in range(50)]
    assert statements.batches == [list(range(50))]


async def test_calls_that_arrive_meanwhile_wait_for_the_next_statement(statements: Statements) -> None:
    gather = Gather(statements.run, concurrency=2)
    statements.gate.clear()
    async with asyncio.TaskGroup() as group:
        group.create_task(gather.call(1))
        await statements.reached(1)
        group.create_task(gather.call(2))
        await statements.reached(2)
        for number in (3, 4, 5):
            group.create_task(gather.call(number))
        for _ in range(10):
            await anyio.sleep(0)
        assert statements.batches == [[1], [2]]
        statements.gate.set()
    assert statements.batches == [[1], [2], [3, 4, 5]]
    assert statements.most_under_way == 2


async def test_no_batch_is_larger_than_agreed(statements: Statements) -> None:
    gather = Gather(statements.run, max_batch=3, concurrency=2)
    assert await all_of(gather, range(10)) == [number * 10 for number in range(10)]
    assert max(len(batch) for batch in statements.batches) == 3
    assert sorted(number for batch in statements.batches for number in batch) == list(range(10))


async def test_nothing_is_answered_before_the_batch_returned(statements: Statements) -> None:
    gather = Gather(statements.run)
    statements.gate.clear()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(gather.call(1))
        await statements.reached(1)
        for _ in range(10):
            await anyio.sleep(0)
        assert not call.done()
        statements.gate.set()
    assert call.result() == 10


@pytest.mark.parametrize("bad", [{0}, {7}, {49}, {3, 4, 30}])
async def test_a_bad_row_does_not_fail_its_neighbours(statements: Statements, bad: set[int]) -> None:
    statements.unacceptable = bad
    gather = Gather(statements.run, concurrency=1)
    answers = await all_of(gather, range(50))
    for number, answer in enumerate(answers):
        if number in bad:
            assert isinstance(answer, ValueError)
        else:
            assert answer == number * 10
    assert len(statements.batches) < 50  # halves, not one by one


async def test_an_exception_as_a_result_is_its_callers_alone() -> None:
    async def run(batch: list[int]) -> Sequence[int | Exception]:
        return [KeyError(number) if number % 2 else number for number in batch]

    answers = await all_of(Gather(run, concurrency=1), range(4))
    assert answers[::2] == [0, 2]
    assert all(isinstance(answer, KeyError) for answer in answers[1::2])


async def test_a_database_that_is_away_is_everybodys_at_once(statements: Statements) -> None:
    statements.fault = DatabaseUnavailable("away")
    gather = Gather(statements.run, concurrency=1)
    answers = await all_of(gather, range(20))
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
    assert len(statements.batches) == 1
    statements.fault = None
    assert await gather.call(1) == 10


async def test_who_has_not_waited_long_goes_along_again(statements: Statements) -> None:
    now = [0.0]
    gather = Gather(statements.run, concurrency=1, patience=20, clock=lambda: now[0])
    statements.fault = DatabaseUnavailable("away")
    statements.gate.clear()
    async with asyncio.TaskGroup() as group:
        early = group.create_task(outcome(gather.call(1)))
        await statements.reached(1)
        now[0] = 15.0
        late = [group.create_task(outcome(gather.call(number))) for number in (2, 3)]
        await anyio.sleep(0)
        now[0] = 25.0  # the first batch took so long to find out
        statements.gate.set()
        while not early.done():
            await anyio.sleep(0.001)
        statements.fault = None
    assert isinstance(early.result(), DatabaseUnavailable)
    assert [task.result() for task in late] == [20, 30], "they were not told of a fault that passed"
    # In their order, behind nobody.
    assert statements.batches[0] == [1]
    assert all(batch == [2, 3] for batch in statements.batches[1:])


async def test_a_full_disk_is_not_waited_for(statements: Statements) -> None:
    statements.fault = DatabaseUnavailable("no space left")
    statements.fault.passing = False
    gather = Gather(statements.run, concurrency=1, patience=600)
    with anyio.fail_after(60):
        answers = await all_of(gather, range(5))
    assert all(isinstance(answer, DatabaseUnavailable) for answer in answers)
    assert len(statements.batches) == 1


async def outcome(call: Awaitable[int]) -> int | Exception:
    try:
        return await call
    except Exception as error:
        return error


async def test_a_batch_with_too_few_results_is_an_error_for_all() -> None:
    async def run(batch: list[int]) -> Sequence[int | Exception]:
        return batch[:-1]

    answers = await all_of(Gather(run, concurrency=1), range(3))
    assert all(isinstance(answer, RuntimeError) for answer in answers)


async def test_a_cancelled_caller_takes_nobody_along(statements: Statements) -> None:
    gather = Gather(statements.run, concurrency=1)
    statements.gate.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(gather.call(1))
        second = group.create_task(gather.call(2))
        await statements.reached(1)
        first.cancel()
        waiting = group.create_task(gather.call(3))
        dropped = group.create_task(gather.call(4))
        await anyio.sleep(0)
        dropped.cancel()
        await anyio.sleep(0)
        statements.gate.set()
    assert first.cancelled()
    assert dropped.cancelled()
    assert (second.result(), waiting.result()) == (20, 30)
    assert statements.batches == [[1, 2], [3]]  # 4 was cancelled before it left


async def test_a_deadline_of_a_caller_holds(statements: Statements) -> None:
    gather = Gather(statements.run)
    statements.gate.clear()
    with anyio.move_on_after(0.01) as scope:
        await gather.call(1)
    assert scope.cancelled_caught
    statements.gate.set()
    await gather.aclose()
    assert await gather.call(2) == 20


async def test_close_waits_for_what_was_asked(statements: Statements) -> None:
    gather = Gather(statements.run, concurrency=1)
    statements.gate.clear()
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(gather.call(number)) for number in range(3)]
        await statements.reached(1)
        closing = group.create_task(gather.aclose())
        await anyio.sleep(0)
        assert not closing.done()
        statements.gate.set()
    assert [call.result() for call in calls] == [0, 10, 20]


async def test_a_thousand_callers_in_a_few_statements(statements: Statements) -> None:
    gather = Gather(statements.run, max_batch=500, concurrency=2)
    assert await all_of(gather, range(1000)) == [number * 10 for number in range(1000)]
    assert len(statements.batches) <= 3


def test_a_loop_that_ends_leaves_nobody_waiting() -> None:
    async def run(batch: list[int]) -> Sequence[int | Exception]:
        await asyncio.Event().wait()
        return []

    gather: Gather[int, int] = Gather(run, concurrency=1)

    async def main() -> asyncio.Task[int]:
        call = asyncio.get_running_loop().create_task(gather.call(1))
        await anyio.sleep(0)
        await anyio.sleep(0)
        return call

    assert asyncio.run(main()).cancelled()


async def test_a_locked_row_is_found_by_halving() -> None:
    async def run(batch: list[int]) -> Sequence[int | Exception]:
        if 3 in batch:
            fault = DatabaseUnavailable("locked")
            fault.locked = True
            raise fault
        return [number * 10 for number in batch]

    answers = await all_of(Gather(run, max_batch=10), range(6))
    assert isinstance(answers.pop(3), DatabaseUnavailable)
    assert answers == [0, 10, 20, 40, 50]
