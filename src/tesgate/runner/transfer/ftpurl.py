"""Reads ``ftp://`` and ``ftps://`` URLs: which server, who to be there, which path. No I/O.

RFC 1738 section 3.2, as curl, wget, Java and Python read it: the path is relative to the login directory, and one that
begins with an encoded (or a second) slash is absolute. Each octet is percent-decoded once and sent as it is.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import List, Optional
from urllib.parse import quote, unquote_to_bytes

from .faults import PathRefused

__all__ = ["FtpUrl", "is_line", "read_url", "split_target"]

_FORM = re.compile(r"^(ftps?)://([^/]*)(?:/(.*))?$", re.IGNORECASE | re.DOTALL)
_TYPE = re.compile(r";type=[aid]$", re.IGNORECASE)
_HOST = re.compile(r"^(?:\[([0-9A-Fa-f:.]+)\]|([^\s\x00-\x20\x7f:\[\]]+))(?::([0-9]{1,5}))?$")


@dataclass(frozen=True)
class FtpUrl:
    """A URL taken apart. `user` and `password` are the URL's own, percent-decoded."""

    scheme: str
    host: str
    port: int
    path: str
    """Decoded (what is no UTF-8 as surrogates); begins with a slash if it does not count from the login directory."""
    user: Optional[str] = None
    password: Optional[str] = field(default=None, repr=False)

    @property
    def implicit(self) -> bool:
        """TLS from the first byte on; with port 21 ``ftps`` means ``AUTH TLS``: nothing else answers there."""
        return self.scheme == "ftps" and self.port != 21

    @property
    def server(self) -> str:
        """The URL up to the path, in one spelling and without the password."""
        user = "" if self.user is None else quote(self.user, safe="") + "@"
        return "%s://%s%s:%d" % (self.scheme, user, "[%s]" % self.host if ":" in self.host else self.host, self.port)

    @property
    def target(self) -> str:
        """`server` and the decoded path: what outputs are told apart by."""
        return self.server + "/" + self.path

    @property
    def parts(self) -> List[str]:
        """Components of the path; the first is a slash if it is absolute."""
        return (["/"] if self.path.startswith("/") else []) + [part for part in self.path.split("/") if part]


def is_line(text: str) -> bool:
    """Say whether a text can stand in a command: no end of a line, no NUL, nothing that has no bytes."""
    try:
        return not {0, 10, 13} & set(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return False


def read_url(url: str) -> FtpUrl:
    """Take a URL apart. Raises `PathRefused`, whose words never quote the URL."""
    found = _FORM.match(url)
    if found is None:
        raise PathRefused("is not a URL that can be read; write ftp://host/path")
    scheme, authority, rest = found.group(1).lower(), found.group(2), found.group(3) or ""
    info, at, place = authority.rpartition("@")
    host = _HOST.match(place)
    port = int(host.group(3) or (21 if scheme == "ftp" else 990)) if host else 0
    if host is None or not 0 < port < 65536:
        raise PathRefused("names no host, or a port that cannot be; write ftp://host:port/path")
    user: Optional[str] = None
    password: Optional[str] = None
    if at:
        name, colon, secret = info.partition(":")
        user = os.fsdecode(unquote_to_bytes(name))
        password = os.fsdecode(unquote_to_bytes(secret)) if colon else None
        if not user or not is_line(user) or not is_line(password or ""):
            raise PathRefused("holds a user or a password that cannot be sent")
    path = os.fsdecode(unquote_to_bytes(_TYPE.sub("", rest)))
    if not is_line(path):
        raise PathRefused("holds a line break or a NUL character, which FTP cannot transport")
    if ".." in path.split("/"):
        raise PathRefused("holds a '..' component; write the path without it")
    absolute = "/" if path.startswith("/") else ""
    tidy = absolute + "/".join(part for part in path.split("/") if part not in ("", "."))
    tail = "/" if tidy not in ("", "/") and path.endswith("/") else ""
    # Host names are compared, and certificates are for names without the last dot.
    name = (host.group(1) or host.group(2)).rstrip(".").lower()
    return FtpUrl(scheme, name, port, tidy + tail, user, password)


def split_target(target: str) -> List[str]:
    """Take `FtpUrl.target`, with what was appended to it, apart again: server, path."""
    head, _, rest = target.partition("://")
    server, _, path = rest.partition("/")
    return [head + "://" + server, path]
