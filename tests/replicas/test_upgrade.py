"""An old and a new gateway on one database, each its own program: before, while and after the schema moves on."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest

import tesgate
from tesgate.store.migrations import load_migrations
from tests.beds.postgres import Server
from tests.replicas.fleet import Fleet, Replica

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

REFUSED = 2
GO = "while [ ! -e /count/go ]; do sleep 0.05; done"
NEXT = len(load_migrations()) + 1

EXPANDS = f"""-- admits: {NEXT - 1}
ALTER TABLE task ADD COLUMN colour text NOT NULL DEFAULT 'none';
ALTER TABLE attempt ADD COLUMN weight bigint;
"""
CONTRACTS = "ALTER TABLE attempt DROP COLUMN weight;\n"

_numbers = itertools.count(1)


@pytest.fixture
def fleet(postgres_server: Server, bubblewrap: Any, tmp_path: Path) -> Generator[Fleet]:
    """A deployment of its own: its schema does not stay this version's."""
    name = f"upgrade_{os.getpid()}_{next(_numbers)}"
    anyio.run(postgres_server.run, f"CREATE DATABASE {name}")
    made = Fleet(tmp_path, postgres_server.url(name))
    try:
        yield made
    finally:
        made.close()
        anyio.run(postgres_server.run, f"DROP DATABASE {name} WITH (FORCE)")


def next_version(place: Path, *steps: str) -> Path:
    """This package with further migrations, as the next release would have; where to import it from."""
    source = Path(tesgate.__file__).parent
    shutil.copytree(source, place / "tesgate", ignore=shutil.ignore_patterns("__pycache__"))
    migrations = place / "tesgate" / "store" / "sql" / "migrations"
    for number, step in enumerate(steps, NEXT):
        (migrations / f"{number:04d}_step_{number}.sql").write_text(step)
    return place


def test_an_old_and_a_new_gateway_work_on_one_database(fleet: Fleet, tmp_path: Path) -> None:
    newer = next_version(tmp_path / "newer", EXPANDS)
    newest = next_version(tmp_path / "newest", EXPANDS, CONTRACTS)
    old = fleet.replica("old")
    agent = fleet.agent("one", old)
    new = fleet.replicas["new"] = Replica(fleet, "new")
    new.program = newer

    # before: the new program says what to do, and nothing happens to the old one
    code, said = new.refused()
    assert code == REFUSED
    assert f"1 step behind this version (next: {NEXT:04d}_step_{NEXT}): run `tesgate migrate`" in said
    fleet.check(old.wait(old.submit()))

    # while: what runs goes on
    running = old.submit(GO)
    count = agent.begun(running)
    assert fleet.tesgate("migrate", program=newer).strip() == f"Applied {NEXT:04d}_step_{NEXT}."
    fleet.check(old.wait(old.submit()))

    # after: both carry tasks out, each also the other's, and the old one can start again
    new.start()
    tasks = [replica.submit() for replica in (old, new) for _ in range(2)]
    for task_id in tasks:
        fleet.check(old.wait(task_id))
        assert new.state(task_id) == "COMPLETE"
    old.terminate()
    (count / "go").touch()
    old.start()
    fleet.check(old.wait(running))
    fleet.check(new.wait(old.submit()))
    colours = {row["colour"] for row in fleet.rows("SELECT colour FROM task")}
    assert colours == {"none"}
    fleet.assert_nothing_left()

    # the step that takes away what the old program needs
    assert fleet.tesgate("migrate", program=newest).strip() == f"Applied {NEXT + 1:04d}_step_{NEXT + 1}."
    old.terminate()
    code, said = old.refused()
    assert code == REFUSED
    assert f"schema is newer than this version of tesgate (it has {NEXT + 1:04d}_step_{NEXT + 1})" in said
    assert "upgrade this tesgate" in said
