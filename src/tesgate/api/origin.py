"""Keeps other people's web pages from using a visitor's browser to start tasks here."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from tesgate.config import Settings
from tesgate.errors import Forbidden

__all__ = ["check_browser", "check_origin"]


def check_origin(headers: Mapping[bytes, bytes], settings: Settings) -> None:
    """Raise `Forbidden` where a browser says that the request comes from a page of another origin.

    Only browsers send ``Origin``. A page may POST across origins without asking first, and a gateway without
    authentication on a laptop's loopback would obey.
    """
    origin = headers.get(b"origin", b"").decode("latin-1")
    allowed = settings.cors.allow_origins
    if not origin or origin in allowed or "*" in allowed:
        return
    netloc, name = _split(origin)
    same = bool(netloc) and netloc == headers.get(b"host", b"").decode("latin-1").lower()
    if same and (settings.auth.mode != "none" or settings.auth.allow_unauthenticated_network):
        return
    # Without authentication a name is not enough: it may be a stranger's that leads to loopback (DNS rebinding).
    if same and _is_local(name):
        return
    raise Forbidden(
        f"Pages of {origin[:200]} may not do this here; the gateway's operator can allow them with cors.allow_origins."
    )


def check_browser(headers: Mapping[bytes, bytes], settings: Settings) -> None:
    """Raise `Forbidden` where a browser reads from a gateway without authentication under a name that is a stranger's.

    A page whose name leads to loopback (DNS rebinding) is of the same origin to the browser, so reads carry no
    ``Origin``; but browsers, and only they, send ``Sec-Fetch-Site``.
    """
    if b"sec-fetch-site" not in headers or settings.auth.mode != "none" or settings.auth.allow_unauthenticated_network:
        return
    _, host = _split("//" + headers.get(b"host", b"").decode("latin-1"))
    if not _is_local(host):
        raise Forbidden(
            f"Open this gateway as 127.0.0.1 or localhost; {host[:200]!r} is a name that somebody else may own."
        )


def _split(url: str) -> tuple[str, str]:
    """Host with port, and the host's name, in lower case; empty for what is no URL."""
    try:
        parts = urlsplit(url)
        return parts.netloc.lower(), parts.hostname or ""
    except ValueError:
        return "", ""


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
