"""Retention on real rows and a real workspace: nothing that is kept goes, nothing that should go stays."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tesgate.control.held import Trust
from tesgate.control.janitor import Janitor, LogKeeper
from tesgate.errors import NotFound, TaskNotFound, Unavailable
from tesgate.storage.workspace import FileWorkspace, Workspace
from tesgate.store.database import Database
from tesgate.store.partitions import PartitionStore
from tesgate.store.tokens import TokenStore
from tests.store.rows import ALICE, Rows

DAY = timedelta(days=1)


async def ended(rows: Rows, workspace: Workspace, *, days_ago: float) -> str:
    task_id = await rows.submit()
    await workspace.write_at(task_id, 1, 0, "stdout", 0, b"said")
    await rows.tasks.cancel_task(ALICE, task_id)
    await rows.database.execute(
        "UPDATE task SET ended_at = now() - $2 * interval '1 day' WHERE id = $1", task_id, days_ago
    )
    return task_id


def janitor_of(rows: Rows, workspace: Workspace, *, keep: timedelta, width: timedelta = 30 * DAY) -> Janitor:
    return Janitor(
        tasks=rows.tasks,
        agents=rows.agents,
        replicas=rows.replicas,
        tokens=TokenStore(database=rows.database),
        partitions=PartitionStore(database=rows.database, width=width),
        logs=workspace,
        trust=Trust(holder=rows.holder, window=DAY),
        interval=DAY,
        keep_tasks=keep,
    )


async def has_log(workspace: Workspace, task_id: str) -> bool:
    try:
        (await workspace.open_range(task_id, 1, 0, "stdout")).close()
    except NotFound:
        return False
    return True


async def test_old_tasks_go_with_their_logs_and_others_stay(database: Database, tmp_path: Path) -> None:
    rows, workspace = await Rows.made(database), FileWorkspace(tmp_path)
    old, young, open_task = (
        await ended(rows, workspace, days_ago=11),
        await ended(rows, workspace, days_ago=9),
        await rows.submit(),
    )
    janitor = janitor_of(rows, workspace, keep=10 * DAY)
    await janitor.once()
    with pytest.raises(TaskNotFound):
        await rows.tasks.get_state(ALICE, old)
    assert not await has_log(workspace, old)
    assert await rows.tasks.get_state(ALICE, young) == "CANCELED"
    assert await has_log(workspace, young)
    assert await rows.tasks.get_state(ALICE, open_task) == "QUEUED"
    assert await rows.tasks.list_events(ALICE, young)


async def test_logs_go_before_their_rows_do_and_orphans_go_too(database: Database, tmp_path: Path) -> None:
    rows, workspace = await Rows.made(database), FileWorkspace(tmp_path)
    old, young = await ended(rows, workspace, days_ago=4), await ended(rows, workspace, days_ago=2)
    orphan = rows.ids()
    await workspace.write_at(orphan, 1, 0, "stdout", 0, b"said")
    keeper = LogKeeper(tasks=rows.tasks, logs=workspace, keep=3 * DAY)
    keeper.BATCH = 2
    while await keeper.once():
        pass
    assert [await has_log(workspace, task_id) for task_id in (old, young, orphan)] == [False, True, False]
    assert await rows.tasks.get_state(ALICE, old) == "CANCELED"


async def test_logs_that_cannot_be_removed_stop_no_others(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, workspace = await Rows.made(database), FileWorkspace(tmp_path)
    old = sorted([await ended(rows, workspace, days_ago=11) for _ in range(3)])
    orphans = sorted(rows.ids() for _ in range(3))
    for orphan in orphans:
        await workspace.write_at(orphan, 1, 0, "stdout", 0, b"said")
    remove = FileWorkspace.remove

    async def stubborn(self: FileWorkspace, task: str) -> None:
        if task in (old[0], orphans[0]):
            raise Unavailable("it cannot be removed")
        await remove(self, task)

    monkeypatch.setattr(FileWorkspace, "remove", stubborn)
    await janitor_of(rows, workspace, keep=10 * DAY).once()
    await LogKeeper(tasks=rows.tasks, logs=workspace, keep=None).once()
    assert [await has_log(workspace, task_id) for task_id in old + orphans] == [True, False, False] * 2
    # Its row is there as long as its files are.
    assert await rows.tasks.get_state(ALICE, old[0]) == "CANCELED"
    for task_id in old[1:]:
        with pytest.raises(TaskNotFound):
            await rows.tasks.get_state(ALICE, task_id)


async def test_tokens_and_replicas_that_are_long_gone_go(database: Database, tmp_path: Path) -> None:
    rows, tokens = await Rows.made(database), TokenStore(database=database)
    for name in ("valid", "revoked", "revoked long ago", "ran out long ago"):
        expires = DAY if name.startswith("ran out") else None
        await tokens.create(name=name, kind="user", hash=name, subject=name, expires=expires)
        if name.startswith("revoked"):
            await tokens.revoke(name)
    await database.execute(
        """UPDATE token SET revoked_at = revoked_at - interval '91 days', expires_at = expires_at - interval '92 days'
           WHERE name LIKE '%long ago'"""
    )
    await rows.replicas.enter("gone", host="there", roles=["api"])
    await database.execute("UPDATE replica SET seen_at = now() - interval '8 days' WHERE id = 'gone'")
    await janitor_of(rows, FileWorkspace(tmp_path), keep=DAY).once()
    assert [row["name"] for row in await tokens.list()] == ["valid", "revoked"]
    assert [row["id"] for row in await database.fetch("SELECT id FROM replica")] == ["r1"]


async def test_partitions_that_cannot_be_cut_stop_no_retention(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, workspace = await Rows.made(database), FileWorkspace(tmp_path)
    old = await ended(rows, workspace, days_ago=11)

    async def cut(self: PartitionStore) -> None:
        raise RuntimeError("no right to create tables")

    monkeypatch.setattr(PartitionStore, "cut", cut)
    await janitor_of(rows, workspace, keep=10 * DAY).once()
    with pytest.raises(TaskNotFound):
        await rows.tasks.get_state(ALICE, old)
