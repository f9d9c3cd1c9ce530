"""NOTIFY wakes: nothing that it loses is lost for long."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio
import asyncpg
import pytest
import pytest_asyncio

from tesgate.store.database import Database
from tesgate.store.listener import EVERYTHING, Listener, Notifier
from tests.store.proxy import Proxy


class Heard:
    """A subscriber that remembers."""

    def __init__(self) -> None:
        self.payloads: list[str] = []

    def __call__(self, payload: str) -> None:
        self.payloads.append(payload)

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        with anyio.fail_after(60):
            while not condition(self.payloads):
                await anyio.sleep(0.005)


async def send(url: str, channel: str, payload: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SELECT pg_notify($1, $2)", channel, payload)
    await connection.close()


@pytest_asyncio.fixture
async def proxy(empty_database_url: str) -> AsyncGenerator[Proxy]:
    async with Proxy.before(empty_database_url) as made:
        yield made


async def listening(url: str, body: Callable[[Listener, Heard], Awaitable[None]], *, ping: float = 5) -> None:
    listener = Listener(url, channels=["task", "agent"], ping=ping, first_wait=0.02)
    heard = Heard()
    listener.subscribe("task", heard)
    async with anyio.create_task_group() as group:
        await group.start(listener.run)
        await body(listener, heard)
        group.cancel_scope.cancel()


async def test_subscribers_hear_their_channel(empty_database_url: str) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        agents = Heard()
        listener.subscribe("agent", agents)
        await send(empty_database_url, "agent", "a1")
        await send(empty_database_url, "task", "t1,t2")
        await heard.until(lambda payloads: "t1,t2" in payloads)
        assert heard.payloads == [EVERYTHING, "t1,t2"]  # the first after connecting: look at everything
        assert agents.payloads == ["a1"]

    await listening(empty_database_url, body)


async def test_who_left_hears_no_more_and_a_failing_one_disturbs_nobody(empty_database_url: str) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        def fail(payload: str) -> None:
            raise ValueError(payload)

        gone = Heard()
        listener.subscribe("task", fail)
        listener.subscribe("task", gone)()
        after = Heard()
        listener.subscribe("task", after)
        await send(empty_database_url, "task", "x")
        await after.until(lambda payloads: payloads == ["x"])
        assert gone.payloads == []

    await listening(empty_database_url, body)


@pytest.mark.parametrize("how", ["cut", "refuse", "terminate"])
async def test_after_a_lost_connection_everything_is_read_again(
    proxy: Proxy, empty_database_url: str, how: str
) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        await heard.until(lambda payloads: payloads == [EVERYTHING])
        if how == "cut":
            proxy.cut()
        elif how == "refuse":
            await proxy.refuse()
            await send(empty_database_url, "task", "lost")
            await proxy.resume()
        else:
            connection = await asyncpg.connect(empty_database_url)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tesgate listener'"
                " AND datname = current_database()"
            )
            await connection.close()
        await heard.until(lambda payloads: payloads.count(EVERYTHING) == 2)
        await send(empty_database_url, "task", "found")
        await heard.until(lambda payloads: payloads[-1] == "found")
        assert "lost" not in heard.payloads

    await listening(proxy.url, body)


async def test_a_connection_that_says_nothing_is_noticed(proxy: Proxy, empty_database_url: str) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        await heard.until(lambda payloads: payloads == [EVERYTHING])
        proxy.hang()
        accepted = proxy.accepted
        with anyio.fail_after(60):
            while proxy.accepted == accepted:
                await anyio.sleep(0.01)
        proxy.flow()
        await heard.until(lambda payloads: len(payloads) >= 2)

    await listening(proxy.url, body, ping=0.1)


async def test_a_failover_without_a_primary_does_not_end_it(proxy: Proxy) -> None:
    """What asyncpg raises then is none of its database errors; the gateway would end with this loop."""
    listener = Listener(f"{proxy.url}&target_session_attrs=standby", channels=["task"], first_wait=0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        with anyio.fail_after(20):
            while proxy.accepted < 3:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_it_starts_when_the_database_comes(proxy: Proxy) -> None:
    await proxy.refuse()
    heard = Heard()
    listener = Listener(proxy.url, channels=["task"], first_wait=0.01)
    listener.subscribe("task", heard)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        await anyio.sleep(0.05)
        assert heard.payloads == []
        await proxy.resume()
        await heard.until(lambda payloads: payloads == [EVERYTHING])
        group.cancel_scope.cancel()


async def test_what_is_said_in_one_moment_goes_together(database: Database) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        notifier = Notifier(database)
        async with anyio.create_task_group() as group:
            await group.start(notifier.run)
            for number in range(100):
                notifier.notify("task", [f"t{number:02}"])
            await heard.until(lambda payloads: len(payloads) == 2)
            assert heard.payloads[1].split(",") == [f"t{number:02}" for number in range(100)]
            group.cancel_scope.cancel()

    await listening(database.dsn, body)


async def test_there_is_one_notification_in_an_interval(database: Database) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        notifier = Notifier(database, interval=0.1)
        async with anyio.create_task_group() as group:
            await group.start(notifier.run)
            began = anyio.current_time()
            number = 0
            while anyio.current_time() - began < 0.5:
                notifier.notify("task", [f"t{(number := number + 1)}"])
                await anyio.sleep(0.001)
            await heard.until(lambda payloads: f"t{number}" in payloads[-1].split(","))
            sent = len(heard.payloads) - 1
            assert 2 <= sent <= 1 + (anyio.current_time() - began) / 0.1
            assert {name for payload in heard.payloads[1:] for name in payload.split(",")} == {
                f"t{known}" for known in range(1, number + 1)
            }
            group.cancel_scope.cancel()

    await listening(database.dsn, body)


async def test_too_many_ids_are_everything(database: Database) -> None:
    async def body(listener: Listener, heard: Heard) -> None:
        notifier = Notifier(database)
        async with anyio.create_task_group() as group:
            await group.start(notifier.run)
            notifier.notify("task", [f"{number:026}" for number in range(1000)])
            await heard.until(lambda payloads: payloads == [EVERYTHING, EVERYTHING])
            group.cancel_scope.cancel()

    await listening(database.dsn, body)


async def test_this_process_is_woken_at_once_and_without_the_database(proxy: Proxy) -> None:
    async with Database(proxy.url, min_size=1, max_size=1, patience=0.1) as database:
        listener = Listener(proxy.url, channels=["task"])
        heard = Heard()
        listener.subscribe("task", heard)
        await proxy.refuse()
        notifier = Notifier(database, listener=listener)
        notifier.notify("task", ["t1"])
        assert heard.payloads == ["t1"]
        async with anyio.create_task_group() as group:
            await group.start(notifier.run)
            with anyio.fail_after(60):
                while EVERYTHING not in notifier._pending.get("task", ()):  # until it failed once
                    await anyio.sleep(0.005)
            await proxy.resume()
            await group.start(listener.run)
            # What could not be said is not forgotten: the others look at everything.
            await heard.until(lambda payloads: payloads.count(EVERYTHING) >= 2)
            group.cancel_scope.cancel()
