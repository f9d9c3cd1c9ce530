"""Whether a bucket's name goes into the host name or into the path, exactly where botocore puts it.

Host names know no upper case, no underscores, and no certificate with a wildcard covers a dot: a bucket whose name is
none for a host is named in the path, whatever the style. Otherwise ``s3://LOGS/x`` would be another bucket for whoever
compares names, and the bucket ``logs`` for a server that reads the host.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal
from urllib.parse import urlsplit

__all__ = ["is_in_host"]

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_in_host(bucket: str, *, style: Literal["auto", "path", "virtual"], url: str | None) -> bool:
    """`url`: the endpoint's; None is Amazon's."""
    if style == "path" or (style == "auto" and url is not None):
        return False
    parts = urlsplit(url or "https://s3.amazonaws.com")
    if _is_address(parts.hostname or ""):
        return False
    labels = bucket.split(".")
    if not 3 <= len(bucket) <= 63 or not all(_LABEL.fullmatch(label) for label in labels) or _is_address(bucket):
        return False
    # With dots a bucket does not match the certificate's *.s3.amazonaws.com.
    return len(labels) == 1 or parts.scheme == "http"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
