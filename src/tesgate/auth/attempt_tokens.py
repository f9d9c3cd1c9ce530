"""The token of one attempt: ``tgt_<task>.<n>.<hmac>``; it speaks for that attempt on ``/internal`` and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from tesgate.auth.tokens import ATTEMPT_PREFIX
from tesgate.errors import ConfigError

__all__ = ["AttemptTokens"]

_FORM = re.compile(re.escape(ATTEMPT_PREFIX) + r"([0-9a-z]{26})\.([1-9][0-9]{0,8})\.([A-Za-z0-9_-]{43})")
_MIN_KEY = 32


class AttemptTokens:
    """Mints and verifies under the deployment's secret key; nothing is stored."""

    def __init__(self, *, key: bytes) -> None:
        if len(key) < _MIN_KEY:
            raise ConfigError(f"secret_key_file: holds {len(key)} bytes; at least {_MIN_KEY} random ones are needed")
        self._key = key

    def mint(self, task: str, attempt: int) -> str:
        """Token of this attempt; the same each time."""
        return f"{ATTEMPT_PREFIX}{task}.{attempt}.{self._sign(task, attempt)}"

    def verify(self, token: str) -> tuple[str, int] | None:
        """Task and attempt that the token speaks for, or None."""
        match = _FORM.fullmatch(token)
        if match is None:
            return None
        task, attempt = match[1], int(match[2])
        return (task, attempt) if hmac.compare_digest(match[3], self._sign(task, attempt)) else None

    def _sign(self, task: str, attempt: int) -> str:
        # The purpose stands in the message, so that no other use of the key can ever yield such a token.
        digest = hmac.new(self._key, f"attempt\0{task}\0{attempt}".encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
