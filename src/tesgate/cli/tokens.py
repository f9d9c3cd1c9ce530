"""``tesgate token …``: who may use a gateway with ``auth.mode: tokens``."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Annotated

import typer

from tesgate.cli.failure import Exit, Failure
from tesgate.cli.gateway import Config, DatabaseUrl, DataDir, load, run_async

__all__ = ["app", "span"]

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke tokens.")

_UNITS = {"d": 86400, "h": 3600, "m": 60}


def span(text: str) -> timedelta:
    """Read ``30d``, ``12h`` or ``45m``. Raises `Failure`."""
    found = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if found is None or int(found[1]) == 0:
        raise Failure(f"--expires {text}: write it as 30d, 12h or 45m.")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose token it is; shown in lists and logs.")],
    kind: Annotated[str, typer.Option(help="user, or agent for `tesgate agent`.")] = "user",
    group: Annotated[list[str] | None, typer.Option(help="Group of the user (may be repeated).")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May see and cancel everybody's tasks.")] = False,
    expires: Annotated[str | None, typer.Option(help="Such as 30d or 12h; never, if left out.")] = None,
    pool: Annotated[str, typer.Option(help="Pool that an agent with this token joins.")] = "default",
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a token and print it: it is shown this once."""
    if kind not in ("user", "agent"):
        raise Failure(f"--kind {kind}: there are user and agent.")
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", pool) is None:
        raise Failure(f"--pool {pool!r}: a pool's name has small letters, digits, - and _, and at most 63 of them.")
    lifetime = span(expires) if expires is not None else None
    settings = load(config, {"data_dir": data_dir, "database_url": database_url})
    from tesgate import app as application

    token = run_async(
        application.create_token,
        settings,
        name=name,
        kind=kind,
        groups=group or [],
        admin=admin,
        expires=lifetime,
        pool=pool,
    )
    typer.echo(token)
    typer.echo("Keep it: it is not shown again. Clients take it from TESGATE_TOKEN or --token-file.", err=True)


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """List the tokens by name (never the tokens themselves)."""
    settings = load(config, {"data_dir": data_dir, "database_url": database_url})
    from tesgate import app as application

    tokens = run_async(application.list_tokens, settings)
    if as_json:
        typer.echo(json.dumps(tokens, indent=2, default=str))
        return
    for token in tokens:
        typer.echo("\t".join(f"{key}={value}" for key, value in token.items() if value not in (None, "", [], ())))


@app.command()
def revoke(name: str, config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """End a token; replicas notice within seconds."""
    settings = load(config, {"data_dir": data_dir, "database_url": database_url})
    from tesgate import app as application

    if not run_async(application.revoke_token, settings, name):
        raise Failure(f"There is no token of the name {name!r}; `tesgate token list` shows them.", Exit.NOT_FOUND)
    typer.echo(f"{name} is revoked.")
