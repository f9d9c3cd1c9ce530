"""What DRS servers answer, checked: what is not as the specification has it is left out, or is a `WebFault`.

Only what is needed is kept.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tesgate.storage.drs.web import WebFault

__all__ = ["DEEPEST", "Access", "Entry", "Method", "Said", "access_of", "said_of"]

DEEPEST = 8
SUMS = {"md5": "md5", "sha-1": "sha1", "sha1": "sha1", "sha-256": "sha256", "sha256": "sha256", "crc32c": "crc32c"}
"""DRS's names of checksums (hexadecimal) by the access contract's (base64)."""
OBJECT_BYTES = 512
"""What an object of ours takes beside its texts, about."""


@dataclass(frozen=True, slots=True)
class Access:
    """One way to the bytes."""

    url: str
    headers: Mapping[str, str]

    @property
    def scheme(self) -> str:
        """In lower case."""
        return self.url.partition(":")[0].lower()


@dataclass(frozen=True, slots=True)
class Method:
    """A way to the bytes, or what to ask for one by."""

    kind: str
    access: Access | None
    access_id: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a bundle says of something in it."""

    name: str
    id: str | None
    uris: Sequence[str]
    contents: Sequence[Entry] | None
    """Of a bundle that is told in place, by name."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a server says of one object."""

    size: int | None
    checksum: Mapping[str, str]
    methods: Sequence[Method]
    contents: Sequence[Entry] | None
    """Of a bundle, by name; None: it is a blob."""
    weight: int = 0
    """Bytes of memory, about."""


def said_of(given: Any) -> Said:
    """Read an object. Raises `WebFault`."""
    if not isinstance(given, dict):
        raise WebFault("has no answer: the server did not send an object")
    size = given.get("size")
    methods = [_method(item) for item in _list(given.get("access_methods")) if isinstance(item, dict)]
    contents = _entries(given.get("contents"), 0)
    return Said(
        size=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
        checksum=_sums(given.get("checksums")),
        methods=methods,
        contents=contents,
        weight=OBJECT_BYTES + sum(map(_method_bytes, methods)) + _entries_bytes(contents),
    )


def access_of(given: Any) -> Access | None:
    """Read an access URL; None: there is none."""
    if isinstance(given, str):
        given = {"url": given}
    url = _text(given.get("url")) if isinstance(given, dict) else None
    if url is None:
        return None
    try:
        urlsplit(url)
    except ValueError:
        return None
    headers = {}
    for line in _list(given.get("headers")):
        text = _text(line) or ""
        name, colon, value = text.partition(":")
        if colon and name.strip() and "\n" not in text and "\r" not in text:
            headers[name.strip()] = value.strip()
    return Access(url, headers)


def _method(item: Mapping[str, Any]) -> Method:
    return Method(
        (_text(item.get("type")) or "").lower(), access_of(item.get("access_url")), _text(item.get("access_id"))
    )


def _entries(given: Any, depth: int) -> list[Entry] | None:
    """None: nothing."""
    items = _list(given)
    if not items:
        return None
    if depth > DEEPEST:
        raise WebFault(f"has bundles in bundles more than {DEEPEST} deep")
    entries: dict[str, Entry] = {}
    for item in items:
        name = _text(item.get("name")) if isinstance(item, dict) else None
        if name is None or name in (".", "..") or "/" in name or "\0" in name:
            raise WebFault("is a bundle with an entry whose name is no file name")
        uris = [uri for uri in _list(item.get("drs_uri")) if _text(uri)]
        if name in entries:
            raise WebFault("is a bundle with two entries of one name")
        entries[name] = Entry(name, _text(item.get("id")), uris, _entries(item.get("contents"), depth + 1))
    return [entries[name] for name in sorted(entries)]


def _sums(given: Any) -> dict[str, str]:
    sums: dict[str, str] = {}
    for item in _list(given):
        try:
            sums[SUMS[str(item["type"]).lower()]] = base64.b64encode(bytes.fromhex(item["checksum"])).decode()
        except (KeyError, TypeError, ValueError):
            continue
    return sums


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _text(given: Any) -> str | None:
    if not isinstance(given, str) or not given:
        return None
    try:
        given.encode()
    except UnicodeError:  # half a surrogate pair, which JSON can have and no request
        return None
    return given


def _method_bytes(method: Method) -> int:
    texts = [method.kind, method.access_id or ""]
    if method.access is not None:
        texts += [method.access.url, *method.access.headers, *method.access.headers.values()]
    return OBJECT_BYTES + sum(map(len, texts))


def _entries_bytes(entries: Sequence[Entry] | None) -> int:
    return sum(
        OBJECT_BYTES
        + len(entry.name)
        + len(entry.id or "")
        + sum(map(len, entry.uris))
        + _entries_bytes(entry.contents)
        for entry in entries or ()
    )
