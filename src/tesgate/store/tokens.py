"""API and agent tokens: hashes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tesgate.store.database import Database
from tesgate.store.gather import Gather
from tesgate.store.queries import load_queries

__all__ = ["TokenRow", "TokenStore"]

PATIENCE = 20.0
"""As in `tesgate.store.tasks`: a client's request waits for a database that is away."""
WITHIN = 3.0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token that is valid now."""

    name: str
    kind: str
    """``user`` or ``agent``."""
    subject: str
    groups: tuple[str, ...]
    admin: bool
    pool: str | None


class TokenStore:
    """Statements on ``token``."""

    def __init__(self, *, database: Database) -> None:
        self._database = database
        self._sql = load_queries("tokens")
        self._found: Gather[str, TokenRow | None] = Gather(self._find_batch, patience=PATIENCE)

    async def create(
        self,
        *,
        name: str,
        kind: str,
        hash: str,
        subject: str,
        groups: Sequence[str] = (),
        admin: bool = False,
        pool: str | None = None,
        expires: timedelta | None = None,
    ) -> bool:
        """Store a new token's hash; False: the name is taken."""
        made = await self._database.fetchval(
            self._sql["create_token"], name, kind, hash, subject, list(groups), admin, pool, expires
        )
        return made is not None

    async def replace(
        self,
        *,
        name: str,
        kind: str,
        hash: str,
        subject: str,
        groups: Sequence[str] = (),
        admin: bool = False,
        pool: str | None = None,
    ) -> None:
        """Store a token's hash under a name of ours, whatever was there before."""
        await self._database.execute(self._sql["replace_token"], name, kind, hash, subject, list(groups), admin, pool)

    async def find_token(self, hash: str) -> TokenRow | None:
        """The token with this SHA-256, if it is neither revoked nor expired; gathered."""
        return await self._found.call(hash)

    async def _find_batch(self, batch: Sequence[str]) -> Sequence[TokenRow | Exception | None]:
        rows = await self._database.fetch(self._sql["find_token"], sorted(set(batch)), within=WITHIN)
        found = {
            row["hash"]: TokenRow(
                row["name"], row["kind"], row["subject"], tuple(row["groups"]), row["admin"], row["pool"]
            )
            for row in rows
        }
        return [found.get(wanted) for wanted in batch]

    async def list(self) -> list[dict[str, Any]]:
        """All tokens, without their hashes."""
        return [dict(row) for row in await self._database.fetch(self._sql["list_tokens"])]

    async def revoke(self, name: str) -> bool:
        """No longer valid; False: there is none of that name, or it was revoked before."""
        return await self._database.fetchval(self._sql["revoke_token"], name) is not None

    async def forget(self) -> None:
        """Rows of tokens that were revoked or ran out 90 days ago."""
        await self._database.execute(self._sql["forget_tokens"])
