"""The grammar of image references, so that nothing else than a reference ever reaches an engine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .base import ImageRefused

__all__ = ["Reference", "parse_reference"]

# The grammar is that of the OCI distribution reference (domain, path components, tag, digest).
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = r"(?:%s(?:\.%s)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?" % (_LABEL, _LABEL)
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?P<name>(?:(?P<domain>%s)/)?(?P<path>%s(?:/%s)*))"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>[a-z][a-z0-9]*(?:[+._-][a-z][a-z0-9]*)*:[0-9a-fA-F]{32,}))?" % (_DOMAIN, _COMPONENT, _COMPONENT)
)
_LONGEST = 1024


@dataclass(frozen=True)
class Reference:
    """An image reference in its parts."""

    text: str
    """As it was given."""
    name: str
    """Without tag and digest, as it was given."""
    domain: str
    """The registry's host (and port); ``docker.io`` where none is given."""
    repository: str
    """Below the registry, with ``library/`` where Docker Hub implies it."""
    tag: str
    """``latest`` where neither tag nor digest is given; empty with only a digest."""
    digest: str

    @property
    def wanted(self) -> str:
        """What a pull asks for: the digest, else the tag."""
        return self.digest or self.tag


def parse_reference(text: str) -> Reference:
    """Read an image reference.

    Raises `ImageRefused` with a sentence where `text` is none.
    """
    match = _REFERENCE.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        shown = text if len(text) <= 100 else text[:100] + "..."
        raise ImageRefused(
            "The image %r is not an image reference: it must look like registry.example/name:tag "
            "or name@sha256:..., in lower case and without spaces or options." % shown
        )
    domain, path = match.group("domain") or "", match.group("path")
    # "a/b" names a host only if its first part looks like one; otherwise it is a path on Docker Hub.
    if domain and not ("." in domain or ":" in domain or domain == "localhost"):
        if domain != domain.lower() or not re.fullmatch(_COMPONENT, domain):
            raise ImageRefused("The image %r is not an image reference: names are in lower case." % text)
        domain, path = "", domain + "/" + path
    if domain in ("", "index.docker.io"):
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = "library/" + path
    digest = match.group("digest") or ""
    tag = match.group("tag") or ("" if digest else "latest")
    return Reference(text=text, name=match.group("name"), domain=domain, repository=path, tag=tag, digest=digest)
