"""Multipart uploads that runners have begun, and whether an attempt may ask about storage at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tesgate.store.database import Database, Row
from tesgate.store.queries import load_queries

__all__ = ["Intention", "OpenAttempt", "UploadRow", "UploadStore"]


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """An attempt that is not over."""

    owner: str
    group: str | None
    stop: bool
    """Its task is being cancelled."""
    lease: float
    """Seconds of its publish lease that are left, by the database's clock; 0: it has none."""
    document: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One upload."""

    id: str
    endpoint: str
    bucket: str
    key: str
    task_id: str
    number: int
    size: int
    part_size: int
    algorithm: str | None
    created_at: datetime | None = None
    completing_at: datetime | None = None
    completed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Intention:
    """An upload that was about to be begun; whether the store has made one is not known."""

    id: int
    endpoint: str
    bucket: str
    key: str
    age: float
    """Seconds since then, by the database's clock."""


class UploadStore:
    """Statements on ``upload`` and ``upload_intention``."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._sql = load_queries("uploads")

    async def attempt(self, task_id: str, number: int, instance: str, *, document: bool) -> OpenAttempt | None:
        """The attempt, if it is open and this instance's; with its task's document if asked for."""
        row = await self._database.fetchrow(self._sql["access"], task_id, number, instance, document)
        if row is None:
            return None
        return OpenAttempt(row["owner"], row["group"], row["stop"], row["lease"], row["document"])

    async def intend(self, task_id: str, number: int, endpoint: str, bucket: str, key: str) -> int | None:
        """Take note that an upload is about to be begun; None: its attempt is over."""
        done: int | None = await self._database.fetchval(
            self._sql["intend_upload"], task_id, number, endpoint, bucket, key
        )
        return done

    async def forget(self, intentions: Sequence[int]) -> None:
        """It is known what became of these."""
        await self._database.execute(self._sql["forget_intentions"], list(intentions), idempotent=True)

    async def intentions(self, older: timedelta, *, after: int, limit: int) -> list[Intention]:
        """Those of which nothing was heard for so long, in the order of their ids, from behind `after` on."""
        rows = await self._database.fetch(self._sql["old_intentions"], older, after, limit)
        return [Intention(*row.values()) for row in rows]

    async def known(self, endpoint: str, bucket: str, key: str, ids: Sequence[str]) -> set[str]:
        """Those of these uploads that have a row."""
        rows = await self._database.fetch(self._sql["known_uploads"], endpoint, bucket, key, list(ids))
        return {row["id"] for row in rows}

    async def older(self, task_id: str, number: int, keys: Collection[str]) -> dict[tuple[str, str], list[UploadRow]]:
        """By bucket and key, what attempts before this one have begun at these keys and not completed."""
        found: dict[tuple[str, str], list[UploadRow]] = {}
        for row in await self._database.fetch(self._sql["older_uploads"], task_id, number, list(keys)):
            found.setdefault((row["bucket"], row["key"]), []).append(_upload(row))
        return found

    async def insert(self, row: UploadRow, *, settles: int | None = None) -> bool:
        """Take note of an upload, and forget the intention that it `settles`. False: its attempt is over."""
        done = await self._database.fetchval(
            self._sql["insert_upload"],
            row.task_id,
            row.number,
            row.id,
            row.endpoint,
            row.bucket,
            row.key,
            row.size,
            row.part_size,
            row.algorithm,
            settles,
        )
        return done is not None

    async def get(self, task_id: str, number: int, ids: Sequence[str]) -> dict[str, UploadRow]:
        """Those that there are, by id."""
        rows = await self._database.fetch(self._sql["get_uploads"], task_id, number, list(ids))
        return {row["id"]: _upload(row) for row in rows}

    async def completing(self, row: UploadRow) -> None:
        """Its completion is about to be asked for."""
        await self._database.execute(self._sql["completing"], row.task_id, row.number, row.id, idempotent=True)

    async def completed(self, row: UploadRow) -> None:
        """It is visible."""
        await self._database.execute(self._sql["completed"], row.task_id, row.number, row.id, idempotent=True)

    async def delete(self, row: UploadRow) -> None:
        """It is gone."""
        await self._database.execute(self._sql["delete_upload"], row.task_id, row.number, row.id, idempotent=True)

    async def stale(self, after: tuple[str, int, str], limit: int) -> list[UploadRow]:
        """Uploads of attempts that are over, in the order of their keys, from behind `after` on."""
        return [_upload(row) for row in await self._database.fetch(self._sql["stale_uploads"], *after, limit)]


def _upload(row: Row) -> UploadRow:
    return UploadRow(
        row["id"],
        row["endpoint"],
        row["bucket"],
        row["key"],
        row["task_id"],
        row["number"],
        row["size_bytes"],
        row["part_bytes"],
        row["algorithm"],
        row["created_at"],
        row["completing_at"],
        row["completed_at"],
    )
