"""``tesgate health``: whether a gateway answers; for container engines and other watchers."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from tesgate.cli.failure import Exit, Failure

if TYPE_CHECKING:
    import httpx

__all__ = ["health"]

_SECONDS = 8.0
"""For all together: a container's engine waits for 10."""


def health(
    url: Annotated[
        str, typer.Option(envvar="TESGATE_URL", help="Base URL of the gateway.", metavar="URL")
    ] = "http://127.0.0.1:8000",
    ready: Annotated[
        bool, typer.Option("--ready", help="Also whether it can answer requests now, so that its database is there.")
    ] = False,
) -> None:
    """End with 0 where the gateway lives, else with 5 and a sentence."""
    import httpx

    try:
        parts = urlsplit(url if "://" in url else "http://" + url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError as error:
        raise Failure(f"{url} is no URL ({error}); correct it.", Exit.SERVER) from None
    here = _is_loopback(host)
    path = "readyz" if ready else "healthz"
    scheme, probe = parts.scheme, f"{parts.scheme}://{parts.netloc}/{path}"
    try:
        try:
            response = _asked(probe, here)
        except (httpx.RemoteProtocolError, httpx.ReadError):
            # Something listens and speaks no HTTP: on this machine, where nothing is lost, TLS is tried.
            if not here or scheme != "http":
                raise
            scheme, probe = "https", f"https://{parts.netloc}/{path}"
            response = _asked(probe, here)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        if scheme == "https" and here and _wants_certificate(host, port):
            if not ready:
                typer.echo("healthy (it asks for clients' certificates)")
                return
            raise Failure(
                f"{probe} asks for a client's certificate, so only its life can be asked for; leave --ready away.",
                Exit.SERVER,
            ) from None
        raise Failure(f"{probe} does not answer ({error}); is a gateway running there?", Exit.SERVER) from None
    if response.status_code != 200:
        raise Failure(f"{probe} answers {response.status_code}; look at the gateway's log.", Exit.SERVER)
    typer.echo("ready" if ready else "healthy")


def _asked(probe: str, here: bool) -> httpx.Response:
    import httpx

    verify: ssl.SSLContext | bool = not here  # the certificate is for another name, and nothing secret is sent
    if not here and (authorities := os.environ.get("SSL_CERT_FILE")):
        verify = ssl.create_default_context(cafile=authorities)
    # No proxy may answer in its place.
    return httpx.get(probe, timeout=_SECONDS / 3, trust_env=False, verify=verify)


def _wants_certificate(host: str, port: int) -> bool:
    """Whether a server of TLS shakes hands and then hangs up on who has no certificate, before anything is asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reads no authorities: nothing is verified
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), _SECONDS / 3) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                # In TLS 1.3 the server refuses only after its own part of the handshake.
                try:
                    return secure.version() == "TLSv1.3" and secure.recv(1) == b""
                except TimeoutError:
                    return False
                except OSError:
                    return True
    except OSError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
