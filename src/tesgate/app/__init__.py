"""The composition root: the only place that knows all rooms, and the only one that names concrete backends."""

from .admin import create_token, list_tokens, migrate, revoke_token
from .serve import serve
from .web import build_app

__all__ = ["build_app", "create_token", "list_tokens", "migrate", "revoke_token", "serve"]
