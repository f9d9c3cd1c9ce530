"""Reads ``s3://bucket/key`` URLs, and says what lies below what and what a configured prefix covers.

Keys are compared decoded. They are percent-decoded exactly once, as clients encode them (Sprocket: ``with%20space`` is
the key ``with space``); ``?`` and ``#`` are ordinary characters of a key, since such URLs have neither query nor
fragment. A key is a name and no path, but what ends up in an HTTP request's path must not be rewritten on its way: keys
with ``.`` or ``..`` between slashes are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

__all__ = ["Location", "UrlRefused", "covers", "may_meet", "parse"]

LONGEST_KEY = 1024
"""Bytes (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html)."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(?:/(.*))?", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class UrlRefused(Exception):
    """A URL that cannot be one of an object; `why` completes a sentence that begins with the URL."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket and a key (or a prefix), decoded."""

    scheme: str
    bucket: str
    key: str

    @property
    def prefix(self) -> str:
        """What keys below it begin with."""
        return self.key.rstrip("/") + "/" if self.key.strip("/") else ""

    def below(self, other: Location) -> bool:
        """Whether it is `other`, or lies below it."""
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return False
        return self.key.rstrip("/") == other.key.rstrip("/") or self.key.startswith(other.prefix)

    def at(self, key: str) -> Location:
        """Another key of the same bucket."""
        return Location(self.scheme, self.bucket, key)

    def url(self) -> str:
        """The URL, percent-encoded."""
        return f"{self.scheme}://{self.bucket}/{quote(self.key, safe='/')}"


def parse(url: str) -> Location:
    """Read one URL. Raises `UrlRefused`."""
    found = _URL.fullmatch(url)
    if found is None:
        raise UrlRefused("is no URL of the form s3://bucket/key")
    scheme, bucket, rest = found[1].lower(), found[2], found[3] or ""
    if _BUCKET.fullmatch(bucket) is None:
        raise UrlRefused("names no bucket (letters, digits, dots, dashes) between s3:// and the next slash")
    try:
        key = unquote_to_bytes(rest).decode("utf-8")
    except UnicodeError:
        raise UrlRefused("has a key that is not UTF-8") from None
    check_key(key)
    return Location(scheme, bucket, key)


def check_key(key: str) -> None:
    """Refuse keys that no request can be signed for. Raises `UrlRefused`."""
    if len(key.encode("utf-8", "surrogatepass")) > LONGEST_KEY:
        raise UrlRefused(f"has a key longer than {LONGEST_KEY} bytes")
    if "\0" in key:
        raise UrlRefused("has a NUL in its key")
    if any(part in (".", "..") for part in key.split("/")):
        raise UrlRefused("has `.` or `..` between the slashes of its key, which no request can name")


def may_meet(patterns: Iterable[str], bucket: str, prefix: str) -> bool:
    """Whether a pattern of `covers` may, with whatever words, cover something in, below or above a prefix."""
    there = f"{bucket}/{prefix}".rstrip("/") + "/"
    for pattern in patterns:
        begin = re.split(r"[{*]", pattern, maxsplit=1)[0]
        if begin == pattern:
            begin = begin.rstrip("/") + "/"
        if begin.startswith(there) or there.startswith(begin):
            return True
    return False


def covers(patterns: Iterable[str], bucket: str, key: str, words: Mapping[str, str | None] | None = None) -> bool:
    """Whether one of the patterns covers the object.

    A pattern is ``bucket``, ``bucket/prefix`` (itself and what lies below) or the beginning of such a name with ``*``
    at its end. `words` replace ``{name}``; a pattern with a word that is empty or would be more than one component
    covers nothing.
    """
    name = f"{bucket}/{key}"
    for each in patterns:
        pattern = _filled(each, words) if words else each
        if pattern.endswith("*"):
            if name.startswith(pattern[:-1]):
                return True
        elif pattern and (name.rstrip("/") == pattern.rstrip("/") or name.startswith(pattern.rstrip("/") + "/")):
            return True
    return False


def _filled(pattern: str, words: Mapping[str, str | None]) -> str:
    """With its words, empty where one cannot be. All at once: an owner called `{group}` is no word."""
    named = re.compile(rf"\{{({'|'.join(map(re.escape, words))})\}}")
    values = [words[found[1]] for found in named.finditer(pattern)]
    if any(not value or "/" in value or value in (".", "..") or "*" in value for value in values):
        return ""
    return named.sub(lambda found: words[found[1]] or "", pattern)
