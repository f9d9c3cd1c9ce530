"""The client of /internal/v1 over real sockets, the reporter on top of it, and the lease's arithmetic."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Iterator, List, Type

import anyio
import pytest

from tesgate.runner.gateway import Backoff, Conflict, GatewayClient, GatewayFault, Gone, Unauthorized, Unavailable
from tesgate.runner.journal import Journal
from tesgate.runner.plan import Executor, Plan
from tesgate.runner.report import (
    AgentFacts,
    Answer,
    AttemptRef,
    ExecutorReport,
    PollRequest,
    Report,
    Resources,
    Snapshot,
)
from tesgate.runner.reporter import Lease, Reporter
from tests.runner.gateway_fake import AGENT_TOKEN, FakeGateway

REF = AttemptRef("t1", 1)
FACTS = AgentFacts(instance="i", host="h", version="v", capacity=Resources())


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    made = FakeGateway()
    made.start()
    made.max_wait = 0.2
    made.plans["t1", 1] = Plan(task="t1", attempt=1, external_name="tg-t1-1", executors=[], token="tgt_t1.1")
    yield made
    made.stop()


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(AGENT_TOKEN)
    return path


def _client(gateway: FakeGateway, token_file: Path) -> GatewayClient:
    return GatewayClient(url=gateway.url + "/", token_file=str(token_file))


def _report(version: int, text: str = "") -> Report:
    executors = [ExecutorReport(start_time="now", stdout=text)]
    return Report(version=version, instance="i", snapshot=Snapshot(executors=executors))


def test_register_and_poll(gateway: FakeGateway, token_file: Path) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        registered = await client.register(FACTS)
        gateway.plans["t2", 1] = Plan("t2", 1, "tg-t2-1", [Executor("i", ["x"])], "tgt_t2")
        gateway.acknowledged.add(("t1", 1))
        answer = await client.poll(PollRequest(agent=registered.agent, session=registered.session))
        assert [plan.external_name for plan in answer.start] == ["tg-t2-1"]
        with pytest.raises(Gone):
            await client.poll(PollRequest(agent=registered.agent, session=registered.session - 1))
        client.close()

    anyio.run(main)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Unauthorized),
        (404, Unavailable),
        (409, Conflict),
        (410, Gone),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
def test_statuses_are_told_apart(gateway: FakeGateway, token_file: Path, status: int, kind: Type[GatewayFault]) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        gateway.refuse["report"] = [status]
        with pytest.raises(kind) as caught:
            await client.send(REF, "tgt_t1.1", "report", _report(1))
        assert type(caught.value) is kind
        assert str(status) in str(caught.value)
        assert "tgt_" not in str(caught.value)
        assert (await client.send(REF, "tgt_t1.1", "report", _report(2))).stop is False
        client.close()

    anyio.run(main)


def test_no_gateway_is_unavailable_and_its_return_wakes_those_who_wait(gateway: FakeGateway, token_file: Path) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        gateway.stop()
        with pytest.raises(Unavailable):
            await client.register(FACTS)
        assert not client.reachable
        gateway.start()
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(client.pause, 3600.0)
                await anyio.sleep(0.05)
                await client.register(FACTS)
        assert client.reachable
        # From now on a pause is a pause again: a 409 or a 401 must not turn into a busy loop.
        with anyio.move_on_after(0.2) as scope:
            await client.pause(3600.0)
        assert scope.cancelled_caught
        client.close()

    anyio.run(main)


def test_a_connection_that_was_kept_too_long_is_tried_once_more(gateway: FakeGateway, token_file: Path) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        await client.register(FACTS)
        gateway.stop()
        gateway.start()
        await client.register(FACTS)
        client.close()

    anyio.run(main)


def test_closing_wakes_a_held_poll(gateway: FakeGateway, token_file: Path) -> None:
    gateway.max_wait = 30.0
    gateway.plans.clear()

    async def main() -> None:
        client = _client(gateway, token_file)
        registered = await client.register(FACTS)
        began = time.monotonic()
        with pytest.raises(Unavailable):  # noqa: PT012 - what is raised comes out of a task group
            async with anyio.create_task_group() as group:

                async def close() -> None:
                    while not gateway.polls:
                        await anyio.sleep(0.01)
                    client.close()

                group.start_soon(close)
                try:
                    await client.poll(PollRequest(agent=registered.agent, session=registered.session))
                except Unavailable as exc:
                    fault = exc
            raise fault
        assert time.monotonic() - began < 20  # of 30

    anyio.run(main)


def test_what_no_database_stores_is_replaced(gateway: FakeGateway, token_file: Path) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        await client.send(REF, "tgt_t1.1", "report", _report(1, "a\0b\udc80c\U0001f600 \\u0000"))
        stored = gateway.of(("t1", 1), "report")[0]["snapshot"]["executors"][0]["stdout"]
        assert "\0" not in stored
        assert stored.startswith("a\ufffdb")
        assert stored.endswith("c\U0001f600 \\u0000")
        stored.encode("utf-8")
        client.close()

    anyio.run(main)


def test_one_bad_plan_does_not_hide_the_others(gateway: FakeGateway, token_file: Path) -> None:
    async def main() -> None:
        client = _client(gateway, token_file)
        registered = await client.register(FACTS)
        gateway.plans["t2", 1] = Plan("t2", 1, "tg-t2-1", [Executor("i", "no list")], "t")  # type: ignore[arg-type]
        answer = await client.poll(PollRequest(agent=registered.agent, session=registered.session))
        assert [plan.task for plan in answer.start] == ["t1"]
        client.close()

    anyio.run(main)


def test_backoff_stays_short_at_first() -> None:
    backoff = Backoff()
    first = [backoff.next() for _ in range(20)]
    later = [backoff.next() for _ in range(50)]
    assert max(first) <= 2.0
    assert 2.0 < max(later) <= 5.0
    backoff.reset()
    assert backoff.next() <= 0.2


def test_the_lease_counts_from_before_it_was_asked_for() -> None:
    now = 1000.0
    lease = Lease(clock=lambda: now)
    assert lease.left() <= 0
    lease.granted(990.0, 30.0)
    assert lease.left() == 18.0
    lease.granted(985.0, 30.0)
    assert lease.left() == 18.0, "an older answer that comes late shortens nothing"
    lease.granted(1000.0, 0.0)
    assert lease.left() == 18.0
    now = 1018.5
    assert lease.left() < 0
    lease.granted(1018.0, 30.0)
    assert lease.left() == 27.5


def test_versions_rise_over_restarts_and_clocks_that_go_back(
    gateway: FakeGateway, token_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "journal")
    answers: List[Answer] = []

    async def one(client: GatewayClient) -> None:
        journal = Journal(path)
        reporter = Reporter(
            client=client,
            ref=REF,
            token="tgt_t1.1",
            instance="i",
            journal=journal,
            snapshot=Snapshot(),
            answered=answers.append,
            gone=lambda: None,
            log=logging.LoggerAdapter(logging.getLogger("test"), {}),
        )
        await reporter.send("report")
        await reporter.send("report")
        journal.close()

    async def main() -> None:
        client = _client(gateway, token_file)
        for now in (2_000_000_000.0, 2_000_000_000.0, 1_000_000_000.0, 2_100_000_000.0):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            await one(client)
        client.close()

    anyio.run(main)
    versions = [body["version"] for body in gateway.of(("t1", 1), "report")]
    assert len(versions) == 8
    assert versions == sorted(set(versions))
    assert versions[-1] < 2**53
    assert len(answers) == 8
