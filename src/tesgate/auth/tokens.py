"""Tokens: what they look like, how they are kept (as SHA-256 only), and the file that brings the first ones."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import structlog
import yaml

from tesgate.errors import ConfigError
from tesgate.store.tokens import TokenRow

__all__ = [
    "AGENT_PREFIX",
    "ATTEMPT_PREFIX",
    "USER_PREFIX",
    "TokenSource",
    "TokensFile",
    "hash_token",
    "make_token",
]

USER_PREFIX = "tgu_"
AGENT_PREFIX = "tga_"
ATTEMPT_PREFIX = "tgt_"

_MIN_LENGTH = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,127}")
_RESERVED = frozenset({"system"})


class TokenSource(Protocol):
    """Where tokens live that were made with ``tesgate token``."""

    async def find_token(self, hash: str) -> TokenRow | None:
        """Find the token with this SHA-256 (hex); None for unknown, revoked and expired ones alike."""


def make_token(kind: Literal["user", "agent"]) -> str:
    """Make a fresh token; it is shown once and kept as `hash_token` only."""
    return (USER_PREFIX if kind == "user" else AGENT_PREFIX) + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """SHA-256 (hex). The tokens are random, so a slow hash would only slow down ourselves."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class TokensFile:
    """User tokens out of a file, read again when the file has changed.

    Either one ``name:token[:group,group][:admin]`` on each line (``#`` begins a comment), or a YAML list of
    ``{name, token, groups, admin}``. ``sha256$HEX`` stands for a token that is not to be written down. A lookup is by
    the token's hash, so its time says nothing about how much of a guess was right.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._found: dict[str, TokenRow] = {}
        self.fault = ""
        """Why the file's newest content is not in force; empty when it is."""
        self.load()

    def load(self) -> None:
        """Read the file if it has changed. Raises `ConfigError` with one line for each wrong entry."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(f"auth.tokens_file: {self._path} cannot be read ({why}); correct the path") from None
        found = _parse(text, self._path)
        # At start an empty file is a slip; later it is how the last user is taken out.
        if not found and self._stamp is None:
            raise ConfigError(
                f"auth.tokens_file: {self._path} holds no token; add a line `name:token`, or leave the setting out and "
                "make tokens with `tesgate token create`"
            )
        self._found = found
        self._stamp = stamp

    def reload(self) -> None:
        """Like `load`, but a file that is wrong now changes nothing: yesterday's users are not locked out by a slip."""
        try:
            self.load()
        except ConfigError as error:
            if str(error) != self.fault:
                structlog.get_logger(__name__).warning("tokens file not taken over", fault=str(error))
            self.fault = str(error)
        else:
            self.fault = ""

    def find(self, token_hash: str) -> TokenRow | None:
        """Find a token by its hash."""
        return self._found.get(token_hash)


def _parse(text: str, path: Path) -> dict[str, TokenRow]:
    entries: list[tuple[str, Mapping[str, Any]]] = []
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if lines and (lines[0][1] == "---" or lines[0][1].startswith(("- ", "["))):
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"auth.tokens_file: {path} is not YAML; correct it") from None
        if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
            raise ConfigError(f"auth.tokens_file: {path} must hold a list of {{name, token, groups, admin}}")
        entries = [(f"entry {number}", item) for number, item in enumerate(document, 1)]
    else:
        for number, line in lines:
            parts = [part.strip() for part in line.split(":")]
            admin = len(parts) > 2 and parts[-1] == "admin"
            rest = parts[:-1] if admin else parts
            item: dict[str, Any] = {"name": rest[0], "token": rest[1] if len(rest) > 1 else "", "admin": admin}
            if len(rest) > 2:
                item["groups"] = [group.strip() for group in rest[2].split(",") if group.strip()]
            entries.append((f"line {number}", item if len(rest) <= 3 else {}))
    found: dict[str, TokenRow] = {}
    faults: list[str] = []
    for where, entry in entries:
        fault = _fault(entry)
        if fault:
            faults.append(f"auth.tokens_file: {path}, {where}: {fault}")
            continue
        token = str(entry["token"])
        key = token[7:].lower() if token.startswith("sha256$") else hash_token(token)
        groups = tuple(str(group) for group in entry.get("groups") or ())
        name = str(entry["name"])
        found[key] = TokenRow(name, "user", name, groups, entry.get("admin") is True, None)
    if faults:
        raise ConfigError(faults)
    return found


def _fault(item: Mapping[str, Any]) -> str | None:
    """What is wrong with an entry; never shows the token."""
    name, token = str(item.get("name") or ""), str(item.get("token") or "")
    if not _NAME.fullmatch(name) or name in _RESERVED:
        return "needs a name of letters, digits and . _ @ + - (not `system`): name:token[:group,group][:admin]"
    if token.startswith("sha256$"):
        return None if re.fullmatch(r"sha256\$[0-9a-fA-F]{64}", token) else "sha256$ must be followed by 64 hex digits"
    if len(token) < _MIN_LENGTH:
        return f"the token must have at least {_MIN_LENGTH} characters; make one with `openssl rand -hex 20`"
    if token.startswith((AGENT_PREFIX, ATTEMPT_PREFIX)):
        return f"{token[:4]} marks tokens of another kind; use another token for a user"
    if set(item) - {"name", "token", "groups", "admin"}:
        return "only name, token, groups and admin are known"
    if not isinstance(item.get("groups") or [], list):
        return "groups must be a list"
    return None
