"""Reads the URLs of inputs and outputs: which are local paths, which are web addresses, which nobody here can serve."""

from __future__ import annotations

import os
import re
from typing import Container, List, Optional, Tuple
from urllib.parse import quote, unquote_to_bytes

from .faults import PathRefused

__all__ = [
    "is_local",
    "is_web",
    "join",
    "listed",
    "local_path",
    "parted",
    "printable",
    "redact",
    "scheme",
    "unsupported",
]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*):")
_ADVICE = "use a file:// URL (or a plain path) inside one of the agent's roots, or an http(s):// URL"
_OBJECTS = "copy it to a store that speaks S3 (s3://), or use a presigned https:// URL for an input"
_UNSUPPORTED = {
    "s3": "s3:// is not served by this runner; " + _OBJECTS,
    "gs": "gs:// (Google Cloud Storage) is not served by this runner; " + _OBJECTS,
    "az": "az:// (Azure Blob Storage) is not served by this runner; " + _OBJECTS,
    "abfs": "abfs:// (Azure Data Lake) is not served by this runner; " + _OBJECTS,
    "abfss": "abfss:// (Azure Data Lake) is not served by this runner; " + _OBJECTS,
    "wasb": "wasb:// (Azure Blob Storage) is not served by this runner; " + _OBJECTS,
    "wasbs": "wasbs:// (Azure Blob Storage) is not served by this runner; " + _OBJECTS,
    "swift": "swift:// is not served by this runner; " + _OBJECTS,
    "drs": "drs:// identifiers are not resolved by this runner; use the object's own https:// access URL",
    "ftp": "ftp:// is not served by this runner; " + _ADVICE,
    "ftps": "ftps:// is not served by this runner; " + _ADVICE,
    "sftp": "sftp:// is not served by this runner; " + _ADVICE,
    "scp": "scp:// is not served by this runner; " + _ADVICE,
    "gsiftp": "gsiftp:// is not served by this runner; " + _ADVICE,
    "htsget": "htsget:// is not served by this runner; use the https:// URL of the whole file",
    "irods": "irods:// is not served by this runner; " + _ADVICE,
    "hdfs": "hdfs:// is not served by this runner; " + _ADVICE,
    "data": "data: URLs are not served by this runner; put the text into the input's `content`",
    "_": "`_:` names a directory that exists only inside the client (a CWL directory literal); "
    "give its files as inputs of their own",
}


def scheme(url: str) -> Optional[str]:
    """The URL's scheme in lower case; ``file`` for a plain absolute path, None where there is none."""
    if url.startswith("_:"):
        return "_"
    if url.startswith("/"):
        return "file"
    found = _SCHEME.match(url)
    return found.group(1).lower() if found else None


def is_local(url: str) -> bool:
    """Say whether the URL names a path on the agent's host: ``/x`` or ``file:…``."""
    return scheme(url) == "file"


def is_web(url: str) -> bool:
    """Say whether the URL is one of HTTP."""
    return scheme(url) in ("http", "https")


def unsupported(url: str, served: Container[str] = ("file", "http", "https")) -> Optional[str]:
    """Return one sentence for a URL of a scheme that is not `served`, else None."""
    kind = scheme(url)
    if kind in served:
        return None
    if kind is None:
        return "%s is neither a URL nor an absolute path; %s." % (_quoted(url), _ADVICE)
    return "%s." % (_UNSUPPORTED.get(kind) or "%s: URLs are not served by this runner; %s" % (kind, _ADVICE))


def local_path(url: str) -> str:
    """Return the absolute path of a local URL; percent signs are decoded once in ``file:``, never in plain paths.

    Raises `PathRefused` for another host, a relative path or a NUL.
    """
    if url.startswith("/"):
        path = url
    else:
        rest = url[len("file:") :]
        if rest.startswith("//"):
            host, slash, tail = rest[2:].partition("/")
            if host.lower() not in ("", "localhost"):
                raise PathRefused("names the host %s; only file:/// and file://localhost/ are served" % _quoted(host))
            rest = slash + tail
        path = os.fsdecode(unquote_to_bytes(rest))
    if "\0" in path:
        raise PathRefused("holds a NUL character")
    if not path.startswith("/"):
        raise PathRefused("is not an absolute path")
    return path


def parted(url: str) -> Tuple[str, str]:
    """Cut a web address before its query or fragment; all other URLs are path to their end."""
    if not is_web(url):
        return url, ""
    at = min(found for found in (url.find("?"), url.find("#"), len(url)) if found >= 0)
    return url[:at], url[at:]


def join(url: str, names: List[str]) -> str:
    """Append path components to a URL, in its own spelling (percent-encoded or plain), before a web address's query."""
    if not names:
        return url
    path, rest = parted(url)
    if url.startswith("/"):
        tail = "/".join(printable(name) for name in names)
    else:
        tail = "/".join(quote(os.fsencode(name)) for name in names)
    return path.rstrip("/") + "/" + tail + rest


def redact(url: str) -> str:
    """Return the URL fit for a message: without user information, query and fragment of web addresses."""
    if scheme(url) in ("ftp", "ftps"):
        return listed(url)
    found = re.match(r"^([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^?#]*)(.?)", url, re.DOTALL)
    if found is None or found.group(1).lower() == "file":
        return printable(url)
    kind, host, path, more = found.groups()
    shown = "%s://%s%s" % (kind, host.rpartition("@")[2], path)
    return printable(shown + ("?…" if more == "?" else ""))


def listed(url: str) -> str:
    """Return the URL as the task's log lists it: whole, but for a user and a password in it."""
    if scheme(url) == "file":
        return printable(url)
    # In FTP's URLs neither ? nor # ends anything, so that one may stand in a password.
    info = "[^/]*@" if scheme(url) in ("ftp", "ftps") else "[^/?#]*@"
    return printable(re.sub(r"^([A-Za-z][A-Za-z0-9+.\-]*://)" + info, r"\1", url))


def _quoted(text: str) -> str:
    return "'%s'" % redact(text)


def printable(text: str) -> str:
    """Replace surrogates of names that are not UTF-8: neither JSON nor PostgreSQL takes them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
