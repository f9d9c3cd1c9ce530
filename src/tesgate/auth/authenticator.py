"""From the headers of a request to a `Caller`."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable
from typing import Literal

from tesgate.auth.tokens import AGENT_PREFIX, ATTEMPT_PREFIX, TokensFile, TokenSource, hash_token
from tesgate.errors import Unauthorized
from tesgate.model.caller import ANONYMOUS, Caller
from tesgate.store.tokens import TokenRow

__all__ = ["Authenticator", "bearer_token"]

_HOW = (
    "Send a token: `Authorization: Bearer TOKEN`, or HTTP Basic with the token as the password. "
    "Tokens are made with `tesgate token create`."
)
_CACHED = 10_000
_RELOAD_SECONDS = 1.0

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: lower-case names."""


def bearer_token(headers: Headers) -> str | None:
    """Token of ``Authorization: Bearer``, or the password of ``Basic``; None where there is neither."""
    for name, value in headers:
        if name != b"authorization":
            continue
        scheme, _, rest = value.decode("latin-1").strip().partition(" ")
        rest = rest.strip()
        if scheme.lower() == "bearer" and rest:
            return rest
        if scheme.lower() == "basic":
            try:
                _, colon, password = base64.b64decode(rest, validate=True).decode("utf-8").partition(":")
            except (binascii.Error, ValueError):
                return None
            return password if colon and password else None
    return None


class Authenticator:
    """Knows who asks.

    A token that was found is remembered for `cache_seconds`, which is also how late its revocation can be seen (by each
    replica); one that was not found is asked for again each time.
    """

    def __init__(
        self,
        *,
        mode: Literal["none", "tokens"],
        store: TokenSource | None = None,
        tokens_file: TokensFile | None = None,
        cache_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mode = mode
        self._store = store
        self._tokens_file = tokens_file
        self._cache_seconds = cache_seconds
        self._clock = clock
        self._cache: dict[str, tuple[float, TokenRow]] = {}
        self._reload_at = 0.0

    async def caller(self, headers: Headers) -> Caller:
        """Who asks. Raises `Unauthorized`. With mode ``none`` whatever credentials came are ignored."""
        if self._mode == "none":
            # Clients such as py-tes 0.4 send `None:None` when they have no credentials.
            return ANONYMOUS
        token = bearer_token(headers)
        if token is None:
            raise Unauthorized(f"This needs credentials. {_HOW}")
        if token.startswith((AGENT_PREFIX, ATTEMPT_PREFIX)):
            raise Unauthorized(f"A token that begins with {token[:4]} is not a user's. {_HOW}")
        record = await self._find(token)
        if record is None or record.kind != "user":
            raise Unauthorized(f"The token is unknown or no longer valid. {_HOW}")
        return Caller(record.subject, record.groups, record.admin)

    async def _find(self, token: str) -> TokenRow | None:
        key = hash_token(token)
        now = self._clock()
        if self._tokens_file is not None:
            if now >= self._reload_at:
                self._reload_at = now + _RELOAD_SECONDS
                self._tokens_file.reload()
            record = self._tokens_file.find(key)
            if record is not None:
                return record
        kept = self._cache.get(key)
        if kept is not None and now < kept[0]:
            return kept[1]
        record = await self._store.find_token(key) if self._store is not None else None
        if record is None:
            self._cache.pop(key, None)
            return None
        if len(self._cache) >= _CACHED:
            self._cache.clear()
        # Counted from before the question: the answer may have been true only then.
        self._cache[key] = (now + self._cache_seconds, record)
        return record
