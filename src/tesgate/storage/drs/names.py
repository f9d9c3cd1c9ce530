"""Reads ``drs://`` URIs: by host name (``drs://host/id``) or compact (``drs://[provider/]namespace:accession``).

https://ga4gh.github.io/data-repository-service-schemas/ (appendices on hostname-based and compact identifier URIs). A
colon or a slash in a host-based id must be percent-encoded, which tells the two apart. What comes behind the id is
ours: names in a bundle, one for each slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

__all__ = ["DrsName", "NameRefused", "join", "parse_drs"]

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::[0-9]{1,5})?")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,100}")
LONGEST = 2048


class NameRefused(Exception):
    """No DRS URI; `why` completes a sentence that begins with it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class DrsName:
    """An object's name. `host` or `namespace` is set."""

    id: str
    """Decoded."""
    host: str | None = None
    namespace: str | None = None
    provider: str | None = None
    path: tuple[str, ...] = ()
    """In a bundle, decoded."""


def parse_drs(uri: str) -> DrsName:
    """Raises `NameRefused`."""
    if uri[:6].lower() != "drs://" or len(uri) > LONGEST:
        raise NameRefused("is no DRS URI")
    rest = uri[6:]
    if "?" in rest or "#" in rest or any(ord(letter) < 33 for letter in rest):
        raise NameRefused("has characters that must be percent-encoded in a DRS URI")
    first, *more = rest.split("/")
    if _HOST.fullmatch(first) and more and ":" not in more[0]:
        name = DrsName(id=_decoded(more[0]), host=first.lower(), path=tuple(map(_decoded, more[1:])))
    else:
        provider = None
        if ":" not in first and more:
            provider, first, more = first, more[0], more[1:]
        namespace, colon, accession = first.partition(":")
        if not colon or not _PREFIX.fullmatch(namespace) or (provider and not _PREFIX.fullmatch(provider)):
            raise NameRefused("is neither drs://host/id nor drs://namespace:id")
        name = DrsName(
            id=_decoded(accession),
            namespace=namespace.lower(),
            provider=provider and provider.lower(),
            path=tuple(map(_decoded, more)),
        )
    if not name.id:
        raise NameRefused("names no object")
    if any(part in ("", ".", "..") or "/" in part for part in name.path):
        raise NameRefused("has an empty or dotted name below its object")
    return name


def join(uri: str, names: list[str]) -> str:
    """The URI of what lies below."""
    return "/".join([uri.rstrip("/"), *(quote(name, safe="") for name in names)])


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeError:
        raise NameRefused("is not UTF-8") from None
