"""Reads a secret from where the configuration says that it is (``env:NAME``, ``file:/path``)."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["SecretMissing", "read_secret"]


class SecretMissing(Exception):
    """It is not there; the message is half a sentence without any value."""


def read_secret(place: str, what: str) -> str:
    """The value without white space around it. Raises `SecretMissing`."""
    kind, _, name = place.partition(":")
    if kind == "env":
        value = os.environ.get(name, "").strip()
    else:
        try:
            value = Path(name).read_text("utf-8").strip()
        except OSError as error:
            raise SecretMissing(f"the file of {what} cannot be read ({error.strerror})") from None
        except UnicodeError:
            raise SecretMissing(f"the file of {what} is no text") from None
    if not value or not value.isprintable():
        raise SecretMissing(f"{what} is empty or no text; check where the configuration says it is")
    return value
