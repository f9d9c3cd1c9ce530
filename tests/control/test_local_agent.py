"""The agent that `serve` keeps: in a session of its own, found again, replaced, started more and more slowly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tesgate.control import local_agent
from tesgate.control.local_agent import LocalAgent
from tests.control.loops import until

SLEEP = ("sleep", "300")


class House:
    """A data directory, and every process that was started from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.record = directory / "agent.json"
        self.log = directory / "agent.log"
        self.started: set[int] = set()
        self.agents: list[LocalAgent] = []

    def agent(self, *command: str, identity: str = "1") -> LocalAgent:
        made = LocalAgent(command=command or SLEEP, identity=identity, record=self.record, log_file=self.log)
        self.agents.append(made)
        return made

    async def look(self, agent: LocalAgent) -> int:
        """Look after it once; the recorded process."""
        await agent.once()
        pid = int(json.loads(self.record.read_text())["pid"])
        self.started.add(pid)
        return pid

    def close(self) -> None:
        for pid in self.started:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        for agent in self.agents:
            if agent._child is not None:
                agent._child.wait()


@pytest.fixture
def house(tmp_path: Path) -> Generator[House]:
    made = House(tmp_path)
    yield made
    made.close()


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Seconds go by for the one who looks, and only these: a test process that is held up is none."""
    passed = time.monotonic()

    def go_by(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(local_agent, "time", SimpleNamespace(monotonic=lambda: passed, sleep=time.sleep))
    return go_by


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def dies(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await until("its death", lambda: is_gone(pid))


async def test_it_lives_in_a_session_of_its_own(house: House) -> None:
    agent = house.agent()
    pid = await house.look(agent)
    assert os.getsid(pid) == pid != os.getsid(0)
    assert psutil.Process(pid).cwd() == "/"
    assert await house.look(agent) == pid, "one is enough"
    assert agent.trouble == ""


async def test_neither_ctrl_c_nor_the_death_of_its_gateway_ends_it(house: House, repository: Path) -> None:
    script = (
        "import asyncio, pathlib, sys, time\n"
        "from tesgate.control.local_agent import LocalAgent\n"
        "base = pathlib.Path(sys.argv[1])\n"
        "agent = LocalAgent(command=['sleep', '300'], identity='1',\n"
        "    record=base / 'agent.json', log_file=base / 'log')\n"
        "asyncio.run(agent.once())\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repository / "src")}
    gateway = subprocess.Popen(
        [sys.executable, "-c", script, str(house.directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    with gateway:
        assert gateway.stdout is not None
        while gateway.stdout.readline() != b"ready\n":
            assert gateway.poll() is None
        pid = int(json.loads(house.record.read_text())["pid"])
        house.started.add(pid)
        os.killpg(gateway.pid, signal.SIGINT)
        gateway.wait(10)
    assert not is_gone(pid)
    assert await house.look(house.agent()) == pid, "and the next one finds it"


async def test_a_restarted_gateway_finds_the_living_one(house: House) -> None:
    pid = await house.look(house.agent())
    assert await house.look(house.agent()) == pid


async def test_one_of_another_identity_is_replaced(house: House) -> None:
    old = await house.look(house.agent())
    new = await house.look(house.agent(identity="2"))
    assert new != old
    assert is_gone(old)
    assert not is_gone(new)


async def test_one_that_does_not_end_in_time_is_not_waited_for_longer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = house.agent("sh", "-c", "trap '' TERM; echo trapped; while true; do sleep 0.1; done")
    old = await house.look(stubborn)
    await until("the trap", lambda: house.log.read_bytes() == b"trapped\n")
    monkeypatch.setattr(local_agent, "REPLACE_SECONDS", 0.2)
    agent = house.agent(identity="2")
    assert await house.look(agent) == old, "two at a time would fight for the scratch directory"
    assert str(old) in agent.trouble
    await dies(old)
    new = await house.look(agent)
    assert new != old and not is_gone(new)
    await house.look(agent)
    assert agent.trouble == ""


async def test_a_dead_child_is_reaped_and_replaced(house: House, pass_time: Callable[[float], None]) -> None:
    agent = house.agent()
    old = await house.look(agent)
    pass_time(10)
    await dies(old)
    assert psutil.Process(old).status() == psutil.STATUS_ZOMBIE
    new = await house.look(agent)
    assert new != old, "it had lived for long: at once"
    assert not psutil.pid_exists(old)


async def test_a_zombie_of_somebody_else_is_nobody(house: House) -> None:
    """Where nobody reaps orphans (in a container without an init) a dead agent keeps its pid and its birth."""
    with subprocess.Popen(["sleep", "300"]) as other:
        record = {"pid": other.pid, "born": local_agent._born(other.pid), "identity": "1"}
        house.record.write_text(json.dumps(record))
        agent = house.agent()
        assert await house.look(agent) == other.pid
        other.kill()
        await until("the zombie", lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
        pid = await house.look(agent)
        house.started.discard(other.pid)
        assert pid != other.pid


async def test_one_that_dies_at_once_is_started_more_and_more_slowly(
    house: House, pass_time: Callable[[float], None]
) -> None:
    agent = house.agent("sh", "-c", "echo no scratch >&2; exit 3")
    pauses = []
    pid = await house.look(agent)
    for _ in range(7):
        await until("its end", lambda: is_gone(pid))  # noqa: B023
        assert await house.look(agent) == pid, "not at once"
        assert agent.trouble == f"the one on this host ended with code 3: see {house.log}"
        paused = 0
        while (again := await house.look(agent)) == pid:
            pass_time(1)
            paused += 1
        pauses.append(paused)
        pid = again
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert house.log.read_text() == "no scratch\n" * len(house.started)


async def test_after_a_long_life_it_is_started_at_once_again(house: House, pass_time: Callable[[float], None]) -> None:
    agent = house.agent()
    for _ in range(3):
        pid = await house.look(agent)
        await dies(pid)
        await house.look(agent)
        pass_time(5)
    pid = await house.look(agent)
    pass_time(6)
    await dies(pid)
    assert await house.look(agent) != pid


RECORDS = {
    "another process": {"pid": os.getpid(), "born": "1", "identity": "1"},
    "another process, to be replaced": {"pid": os.getpid(), "born": "1", "identity": "2"},
    "born at no time": {"pid": os.getpid(), "born": None, "identity": "1"},
    "no process": {"pid": 2**22 + 1, "born": "1", "identity": "1"},
    "no number": {"pid": "x", "born": "1"},
    "a part of it": {"pid": os.getpid()},
    "no object": [],
}


@pytest.mark.parametrize(
    "record", [*map(json.dumps, RECORDS.values()), "no JSON", ""], ids=[*RECORDS, "no JSON", "empty"]
)
async def test_a_process_that_has_its_pid_now_is_not_mistaken_for_it(house: House, record: str) -> None:
    house.record.write_text(record)
    pid = await house.look(house.agent())
    assert pid != os.getpid()
    assert not is_gone(pid)


async def test_stop_ends_it(house: House) -> None:
    agent = house.agent()
    pid = await house.look(agent)
    await agent.stop()
    assert is_gone(pid)
    await agent.stop()


async def test_its_log_is_begun_anew_when_it_is_large(house: House, pass_time: Callable[[float], None]) -> None:
    with house.log.open("wb") as file:
        file.truncate((32 << 20) + 1)
    await house.look(house.agent())
    assert house.log.stat().st_size == 0
    assert house.log.with_name("agent.log.1").stat().st_size == (32 << 20) + 1
