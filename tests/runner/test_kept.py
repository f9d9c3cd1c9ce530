"""Kept attempts, between an engine that counts containers and a real scratch: nothing runs on, nothing leaks."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List

import anyio
import pytest

from tesgate.runner import attempt as attempts
from tesgate.runner.attempt import Attempt
from tesgate.runner.kept import Kept
from tesgate.runner.plan import Executor, Keep, Plan
from tesgate.runner.record import Final, Record
from tesgate.runner.scratch import Scratch
from tesgate.runner.transfer.stage import Stager
from tesgate.runner.work import Tools

NAME = "tg-test-t1-1"


class Engine:
    """Containers by name, and whether they run."""

    name = "docker"

    def __init__(self, *running: str) -> None:
        self.containers: Dict[str, bool] = dict.fromkeys(running, True)

    async def stop(self, name: str, grace: float) -> None:
        if name in self.containers:
            self.containers[name] = False

    async def keep(self, name: str) -> None:
        if name in self.containers:
            self.containers["kept-" + name] = self.containers.pop(name)

    async def remove(self, name: str) -> None:
        self.containers.pop(name, None)

    async def names(self, prefix: str) -> List[str]:
        return [name for name in self.containers if name.startswith(prefix)]


def _failed(scratch: Scratch, engine: Engine, kept: Kept) -> Attempt:
    """One whose first executor was asked for and whose second never was, and that the gateway has forgotten."""
    plan = Plan(
        task="t1",
        attempt=1,
        external_name=NAME,
        executors=[Executor("i", ["true"]), Executor("i", ["true"])],
        token="secret",
        keep=Keep(seconds=3600.0),
    )
    made = scratch.begin(plan)
    assert made is not None
    path, journal = made
    journal.append("starting", executor=0)
    Record(plan=plan, journal=journal, metadata={}).final(Final("failed", cause="The engine did not answer in time."))
    journal.append("settled", message="failed")
    journal.append("forgotten")
    nothing: Any = SimpleNamespace()
    tools = Tools(
        client=nothing,
        runtime=engine,  # type: ignore[arg-type]  # what is not there is not asked for
        watch=nothing,
        exec_path="",
        stager=lambda plan: Stager(roots=[], policy=plan.url_policy),
        host="",
        kept=kept,
        removals=anyio.CapacityLimiter(1),
    )
    log = logging.getLogger("test")
    return Attempt(plan=plan, path=path, journal=journal, scratch=scratch, tools=tools, agent="", log=log)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(attempts, "SETTLE", 0.0)
    made = Scratch(str(tmp_path))
    yield made
    made.close()


async def test_a_command_that_runs_although_its_start_failed_is_stopped(scratch: Scratch) -> None:
    engine = Engine(NAME + "-0")
    await _failed(scratch, engine, Kept(scratch, engine)).run()  # type: ignore[arg-type]
    assert engine.containers == {"kept-%s-0" % NAME: False}
    assert scratch.kept() == [NAME]


async def test_what_cannot_be_kept_is_removed_by_both_names(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(NAME + "-0", "tg-test-t2-1-0")
    kept = Kept(scratch, engine)  # type: ignore[arg-type]

    def full(plan: Plan) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(kept, "_move", full)
    await _failed(scratch, engine, kept).run()
    assert engine.containers == {"tg-test-t2-1-0": True}
    assert (scratch.kept(), os.listdir(scratch.attempts)) == ([], [])


async def test_a_death_while_it_was_being_kept_costs_no_container(scratch: Scratch) -> None:
    mine, lost, damaged = "kept-%s-0" % NAME, "kept-tg-test-t2-1-0", "kept-tg-test-t3-1-0"
    engine = Engine(mine, lost, damaged)
    kept = Kept(scratch, engine)  # type: ignore[arg-type]
    attempt = _failed(scratch, engine, kept)
    os.makedirs(os.path.join(scratch.root, "kept", "tg-test-t3-1"))
    nonsense = Path(scratch.root, "kept", "tg-test-t4-1")
    nonsense.mkdir()
    (nonsense / "kept.json").write_text('{"at": [], "until": "soon"}')
    async with anyio.create_task_group() as group:
        group.start_soon(kept.run)
        with anyio.fail_after(20):
            while len(engine.containers) > 1 or scratch.kept():
                await anyio.sleep(0.01)
        assert list(engine.containers) == [mine]
        await attempt.run()
        group.cancel_scope.cancel()
    assert list(engine.containers) == [mine]
    assert scratch.kept() == [NAME]
