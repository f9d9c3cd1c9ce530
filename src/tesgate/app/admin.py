"""What an operator does beside `serve`: migrations and tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, Literal

from tesgate.app.database import open_database, open_for_migration
from tesgate.app.places import DataDir
from tesgate.auth.tokens import hash_token, make_token
from tesgate.config import Settings
from tesgate.errors import ConfigError
from tesgate.store.errors import StoreError
from tesgate.store.tokens import TokenStore

__all__ = ["create_token", "list_tokens", "migrate", "revoke_token"]


@asynccontextmanager
async def _tokens(settings: Settings) -> AsyncIterator[TokenStore]:
    place = DataDir(settings.data_dir)
    place.make()
    with _sentences():
        async with open_database(settings, place) as opened:
            yield TokenStore(database=opened.database)


@contextmanager
def _sentences() -> Iterator[None]:
    """What the store cannot do is a matter of configuration here."""
    try:
        yield
    except StoreError as error:
        raise ConfigError(str(error)) from error


async def migrate(settings: Settings) -> str:
    """Bring the database's schema to this version; says what was done."""
    place = DataDir(settings.data_dir)
    place.make()
    with _sentences():
        steps = await open_for_migration(settings, place)
    return f"Applied {', '.join(steps)}." if steps else "The schema is up to date."


async def create_token(
    settings: Settings,
    *,
    name: str,
    kind: Literal["user", "agent"] = "user",
    groups: Sequence[str] = (),
    admin: bool = False,
    expires: timedelta | None = None,
    pool: str = "default",
) -> str:
    """Make a token and return it: the only time that it is shown. Raises `ConfigError` for a name that is taken."""
    token = make_token(kind)
    async with _tokens(settings) as tokens:
        made = await tokens.create(
            name=name,
            kind=kind,
            hash=hash_token(token),
            subject=name,
            groups=groups,
            admin=admin,
            pool=pool if kind == "agent" else None,
            expires=expires,
        )
    if not made:
        raise ConfigError(f"there is a token named {name!r} already; choose another name, or revoke that one")
    return token


async def list_tokens(settings: Settings) -> list[dict[str, Any]]:
    """All tokens, without what would let anybody in."""
    async with _tokens(settings) as tokens:
        return await tokens.list()


async def revoke_token(settings: Settings, name: str) -> bool:
    """Whether there was a token of that name that is now no longer valid."""
    async with _tokens(settings) as tokens:
        return await tokens.revoke(name)
