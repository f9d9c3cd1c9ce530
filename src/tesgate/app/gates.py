"""From an agent's token to its pool."""

from __future__ import annotations

import time

from tesgate.auth.tokens import AGENT_PREFIX, hash_token
from tesgate.store.tokens import TokenStore

__all__ = ["AgentGate"]


class AgentGate:
    """Which pool an agent's token belongs to; remembered for a few seconds, as users' tokens are."""

    def __init__(self, tokens: TokenStore, *, remember: float) -> None:
        self._tokens = tokens
        self._remember = remember
        self._known: dict[str, tuple[float, str]] = {}

    async def pool_of(self, token: str) -> str | None:
        """The pool, or None for a token that is no agent's."""
        if not token.startswith(AGENT_PREFIX):
            return None
        key, now = hash_token(token), time.monotonic()
        kept = self._known.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        row = await self._tokens.find_token(key)
        if row is None or row.kind != "agent":
            self._known.pop(key, None)
            return None
        if len(self._known) > 10_000:
            self._known.clear()
        self._known[key] = (now + self._remember, row.pool or "default")
        return row.pool or "default"
