"""Many small files in a few sessions: few round trips for each, and no promise less than for one."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tesgate.runner.plan import UrlPolicy
from tesgate.runner.transfer.faults import LeaseLost, StagingError
from tesgate.runner.transfer.ftpfaults import FtpPassing
from tesgate.runner.transfer.ftplogin import FtpLogin
from tesgate.runner.transfer.ftpmany import rename_many
from tesgate.runner.transfer.ftprename import FtpItem
from tesgate.runner.transfer.ftpsession import FtpSession, FtpSettings, Habits, Trust
from tesgate.runner.transfer.ftpurl import read_url
from tesgate.runner.transfer.policy import AddressPolicy
from tesgate.runner.transfer.runs import SMALL, runs
from tesgate.runner.transfer.threads import Stop
from tests.beds.ftp import Faulty, Servers
from tests.transfer.ftp_world import World

COUNT = 24


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.ftp = dataclasses.replace(world.ftp, reply_timeout=2.0)
    yield world
    world.servers.drop()
    assert world.servers.count() == 0


@pytest.fixture
def patient(world: World) -> World:
    """For what counts commands: a server that is only slow must not be asked again."""
    world.ftp = dataclasses.replace(world.ftp, read_timeout=30.0, reply_timeout=30.0)
    return world


@pytest.fixture
def server(ftp: Servers) -> Iterator[Faulty]:
    server = ftp.faulty()
    yield server
    server.set()
    for path in sorted(server.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def fill(world: World) -> dict[str, str]:
    files = {f"{n % 2}/{n:02}": f"text of {n}" * n for n in range(COUNT)}
    for name, text in files.items():
        world.write(f"/out/{name}", text)
    return files


def there(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def told(log: list[str]) -> dict[str, int]:
    words = [line.split()[0] for line in log]
    return {word: words.count(word) for word in words}


def test_each_file_costs_few_commands(patient: World, server: Faulty) -> None:
    world = patient
    files = fill(world)
    world.store(world.to("/out", server.url("d")))
    assert there(server.root) == {f"d/{name}": text for name, text in files.items()}
    said = told(server.log())
    each = {word: said[word] for word in ("EPSV", "STOR", "SIZE", "RNFR", "RNTO")}
    assert each == dict.fromkeys(each, COUNT) and said["USER"] <= 4 and said["NOOP"] <= 8
    staged = world.stage(server.url("d"), type="DIRECTORY")
    assert there(staged) == files
    said = told(server.log())
    assert said["RETR"] == COUNT and said["USER"] <= 4 and said.get("SIZE", 0) <= 1


FAULTS: list[dict[str, Any]] = [
    {"alone": True},
    {"without": ["NOOP"]},
    {"without": ["SIZE"]},
    {"once": True},
    {"lost": [None, None, 3, None, 0]},
    {"hangup": [None, None, 5]},
    {"gone": 1},
    {"answers": {"STOR": ["", "", "452 full"], "SIZE": ["", "550 no", "213 7"], "RNFR": ["", "450 busy"]}},
    {"answers": {"RNTO": ["", "450 busy", "", "hang up"]}},
]


@pytest.mark.parametrize("faults", FAULTS, ids=str)
def test_many_uploads_survive(world: World, server: Faulty, faults: dict[str, Any]) -> None:
    files = fill(world)
    for name in ("d/0/02", "d/1/13"):
        (server.root / name).parent.mkdir(parents=True, exist_ok=True)
        (server.root / name).write_text("old")
    server.set(**faults)
    world.store(world.to("/out", server.url("d")))
    assert there(server.root) == {f"d/{name}": text for name, text in files.items()}


DOWN: list[dict[str, Any]] = [
    {"short": [None, None, 3, 0]},
    {"hangup": [None, 5]},
    {"gone": 1},
    {"answers": {"RETR": ["", "450 no"]}},
]


@pytest.mark.parametrize("faults", DOWN, ids=str)
def test_many_downloads_survive(world: World, server: Faulty, faults: dict[str, Any]) -> None:
    files = fill(world)
    for name, text in files.items():
        (server.root / name).parent.mkdir(exist_ok=True)
        (server.root / name).write_text(text)
    server.set(**faults)
    assert there(world.stage(server.url(""), type="DIRECTORY")) == files


def test_one_of_many_that_is_refused_is_named(world: World, server: Faulty) -> None:
    fill(world)
    # All from the fourth on: which thread asks next, nobody knows.
    server.set(answers={"STOR": ["", "", "", *["553 no"] * 100]})
    with pytest.raises(StagingError, match=r"output /out/[01]/\d\d could not be stored .*does not allow this name"):
        world.store(world.to("/out", server.url("d")))
    assert there(server.root) == {}


def test_no_rename_of_many_without_the_lease(patient: World, server: Faulty) -> None:
    """It ends after some of them: the first half of the next one is on its way, its second half never."""
    world = patient
    files = fill(world)
    prepared = world.prepare(world.to("/out", server.url("d")))
    server.log()
    seen: list[str] = []

    lock = threading.Lock()

    def lease() -> float:
        with lock:  # several threads rename
            seen.extend(server.log())
            return 0.0 if told(seen).get("RNTO", 0) >= 5 else 100.0

    with pytest.raises(LeaseLost):
        world.publish(prepared, lease)
    seen.extend(server.log())
    done = {name for name in there(server.root) if not name.rpartition("/")[2].startswith(".tesgate-")}
    # Four threads may each have asked for the lease before the fifth was seen.
    assert len(done) == told(seen)["RNTO"] <= 8
    world.publish(prepared)
    assert there(server.root) == {f"d/{name}": text for name, text in files.items()}


@contextmanager
def session_at(server: Faulty, habits: Habits) -> Iterator[FtpSession]:
    session = FtpSession(
        read_url(server.url("")),
        FtpLogin(tls="never"),
        policy=AddressPolicy(UrlPolicy(allowed_hosts=["127.0.0.1", "::1"])),
        settings=FtpSettings(),
        habits=habits,
        trust=Trust(),
        stop=Stop(),
    )
    try:
        yield session
    finally:
        session.end()


@pytest.mark.parametrize(("faults", "learnt"), [({"alone": True}, False), ({"answers": {"NOOP": ["hang up"]}}, None)])
def test_what_a_kept_session_teaches(server: Faulty, faults: dict[str, Any], learnt: bool | None) -> None:
    """Silence is an answer to commands that come together; an end may have come before them."""
    habits = Habits()
    with session_at(server, habits) as session:
        server.set(**faults)
        session.reused = True
        if learnt is False:
            session.patience = 0.5
        with pytest.raises(FtpPassing, match="come together"):
            session.can_pipeline()
        assert session.broken and habits.pipelines is learnt


@pytest.mark.parametrize("lost_at", [2, 3])
def test_nobody_goes_on_with_a_session_in_the_middle_of_a_rename(world: World, server: Faulty, lost_at: int) -> None:
    """The lease is lost after a first half, after which some servers take nothing but the second."""
    fill(world)
    (server.root / "d/0").mkdir(parents=True)
    prepared = world.prepare(world.to("/out/0", server.url("d/0")))
    items = [item for item in prepared.items if isinstance(item, FtpItem)]
    looks = itertools.count(1)

    def covered() -> None:
        if next(looks) == lost_at:
            raise LeaseLost("in the middle")

    with session_at(server, Habits()) as session:
        server.log()
        with pytest.raises(LeaseLost):
            rename_many(session, items, covered)
        assert session.broken
    said = told(server.log())
    assert (said["RNFR"], said.get("RNTO", 0)) == (lost_at - 1, lost_at - 2)


def test_runs_are_short_at_the_end_and_hold_nothing_large() -> None:
    def cut(sizes: list[int]) -> list[list[int]]:
        return list(runs(sizes, size=lambda size: size, beside=lambda one, other: one % 2 == other % 2))

    many = [2] * 1000
    found = [len(run) for run in cut(many)]
    assert sum(found) == 1000 and found[0] == 32 and found[-8:] == [1] * 8 and found == sorted(found, reverse=True)
    assert cut([2] * 3) == [[2]] * 3
    assert cut([2] * 30 + [3] * 30)[:3] == [[2] * 7, [2] * 6, [2] * 5]
    big = SMALL + 2
    assert [run for run in cut([big, 2] * 20) if big in run] == [[big]] * 20
    assert all(sum(run) <= 4 << 20 for run in cut([SMALL] * 100)) and len(cut([SMALL] * 100)[0]) == 4
