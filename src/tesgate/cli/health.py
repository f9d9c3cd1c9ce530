"""``tesgate health``: whether a gateway answers; for container engines and other watchers."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from tesgate.cli.failure import Exit, Failure

__all__ = ["health"]

_SECONDS = 8.0


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

    parts = urlsplit(url if "://" in url else "http://" + url)
    probe = f"{parts.scheme}://{parts.netloc}/{'readyz' if ready else 'healthz'}"
    try:
        # No proxy may answer in its place.
        response = httpx.get(probe, timeout=_SECONDS, trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failure(f"{probe} does not answer ({error}); is a gateway running there?", Exit.SERVER) from None
    if response.status_code != 200:
        raise Failure(f"{probe} answers {response.status_code}; look at the gateway's log.", Exit.SERVER)
    typer.echo("ready" if ready else "healthy")
