"""Registries as an engine sees them: whose credentials to send, and what a failed pull means."""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import Any, Dict, Optional

from .base import EngineUnavailable, ImageRefused, RegistryUnreachable, RuntimeFault
from .reference import Reference

__all__ = ["auth_header", "pull_fault"]

_HUB = ("docker.io", "index.docker.io")


def auth_header(auth_file: Optional[str], reference: Reference) -> Optional[str]:
    """The ``X-Registry-Auth`` value for the registry of `reference`, from a file shaped like Docker's config.json.

    The file is read at each pull, so that renewed credentials need no restart. None: it has no entry.
    Credential programs (``credHelpers``, ``credsStore``) are never run.
    Raises `ImageRefused` where the file cannot be used.
    """
    if not auth_file:
        return None
    try:
        with open(os.path.expanduser(auth_file), encoding="utf-8") as stream:
            content = json.load(stream)
        auths = content.get("auths") or {}
        entry = _entry(auths, reference)
        return None if entry is None else _header(entry, reference.domain)
    except FileNotFoundError:
        raise ImageRefused("The registry credentials file %s does not exist." % auth_file) from None
    except OSError as error:
        raise ImageRefused("The registry credentials file %s: %s." % (auth_file, error.strerror)) from None
    except (ValueError, AttributeError, TypeError, binascii.Error):
        # The content is never part of the message: it is secret.
        raise ImageRefused(
            "The registry credentials file %s is not of the form of Docker's config.json." % auth_file
        ) from None


def _entry(auths: Dict[str, Any], reference: Reference) -> Optional[Dict[str, Any]]:
    """The most specific entry: ``host/namespace/...`` as Podman writes them, then the host as Docker writes it."""
    known: Dict[str, Dict[str, Any]] = {}
    for key, value in auths.items():
        plain = key.split("://", 1)[-1].rstrip("/")
        for version in ("/v1", "/v2"):
            if plain.endswith(version):
                plain = plain[: -len(version)]
        host, slash, rest = plain.partition("/")
        known[("docker.io" if host in _HUB else host) + slash + rest] = value
    parts = [reference.domain, *reference.repository.split("/")]
    for length in range(len(parts), 0, -1):
        found = known.get("/".join(parts[:length]))
        if found:
            return found
    return None


def _header(entry: Dict[str, Any], domain: str) -> str:
    address = "https://index.docker.io/v1/" if domain == "docker.io" else domain
    login: Dict[str, str] = {"serveraddress": address}
    if entry.get("identitytoken"):
        login["identitytoken"] = entry["identitytoken"]
    elif entry.get("registrytoken"):
        login["registrytoken"] = entry["registrytoken"]
    elif entry.get("auth"):
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode("utf-8").partition(":")
        if not colon:
            raise ValueError("auth")
        login.update(username=user, password=password.rstrip("\0"))
    else:
        login.update(username=entry.get("username", ""), password=entry.get("password", ""))
    return base64.urlsafe_b64encode(json.dumps(login).encode("utf-8")).decode("ascii")


# Looked for in this order in the engine's words; Docker, containerd and Podman say it differently.
_FULL = ("no space left", "disk quota exceeded", "not enough space")
_UNREACHABLE = (
    "no such host", "dial tcp", "connection refused", "connection reset", "i/o timeout", "timeout", "timed out",
    "temporary failure", "server misbehaving", "network is unreachable", "no route to host", "tls handshake",
    "x509", ": eof", "toomanyrequests", "too many requests", "bad gateway", "service unavailable",
    "internal server error", "gateway time", "context canceled", "context deadline", "client.timeout",
    "proxyconnect", "server gave http response", "received unexpected http status: 5", "try again",
)  # fmt: skip
_REFUSED = (
    "manifest unknown", "not found", "denied", "unauthorized", "authentication required", "forbidden",
    "repository does not exist", "no matching manifest", "invalid reference", "unsupported", "no basic auth",
    "name unknown", "incorrect username or password", "invalid repository", "mediatype", "not supported",
)  # fmt: skip


def pull_fault(reference: Reference, status: int, message: str) -> RuntimeFault:
    """Translate a failed pull: `status` is the engine's HTTP status (200 where the stream itself told of it)."""
    said = " ".join(message.split())[:500].rstrip(".") or "HTTP status %d" % status
    low = said.lower().replace(reference.name.lower(), "")
    if any(words in low for words in _FULL):
        return EngineUnavailable(
            "The image %s could not be pulled, the engine has no disk space left (%s)." % (reference.text, said)
        )
    if any(words in low for words in _UNREACHABLE) or status in (408, 429, 502, 503, 504):
        return RegistryUnreachable(
            "The image %s could not be pulled, its registry %s did not answer (%s)."
            % (reference.text, reference.domain, said)
        )
    if any(words in low for words in _REFUSED) or status in (400, 401, 403, 404):
        return ImageRefused(
            "The image %s could not be pulled: it does not exist or may not be read with the configured "
            "credentials (%s)." % (reference.text, said)
        )
    return RegistryUnreachable("The image %s could not be pulled (%s)." % (reference.text, said))
