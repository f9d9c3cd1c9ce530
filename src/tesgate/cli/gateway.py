"""``tesgate serve | agent | migrate | check-config``: the programs of a deployment."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesgate.cli.failure import Exit, Failure

if TYPE_CHECKING:
    from tesgate.config import Settings

__all__ = ["agent", "check_config", "load", "migrate", "run_async", "serve"]

Config = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with settings (else TESGATE_CONFIG).", metavar="FILE", readable=False),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where the gateway keeps its own files.", metavar="DIR", readable=False),
]
DatabaseUrl = Annotated[
    str | None, typer.Option("--database-url", help="PostgreSQL; else one of its own in the data directory.")
]


def load(config: Path | None, overrides: dict[str, Any]) -> Settings:
    """Read the settings; overrides that are None were not given. Raises `Failure` with a line for each fault."""
    from tesgate.config import load_settings
    from tesgate.errors import ConfigError

    def given(value: Any) -> Any:
        if isinstance(value, dict):
            inner = {key: given(item) for key, item in value.items()}
            return {key: item for key, item in inner.items() if item is not None} or None
        return value

    try:
        return load_settings(config, given(overrides) or {})
    except ConfigError as error:
        raise Failure(
            "\n".join(["The configuration cannot be used:", *(f"  {line}" for line in error.lines)])
        ) from None


def run_async(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
    """Run one coroutine to its end; errors of ours become one sentence."""
    import functools

    import anyio

    from tesgate.errors import ConfigError, TesgateError

    try:
        return anyio.run(
            functools.partial(function, *args, **kwargs), backend_options={"use_uvloop": sys.platform != "win32"}
        )
    except TesgateError as error:
        raise Failure(str(error), Exit.USAGE if isinstance(error, ConfigError) else Exit.SYSTEM_ERROR) from None


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port [default: 8000]; 0 takes a free one.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    config: Config = None,
    file_root: Annotated[
        list[str] | None,
        typer.Option(
            help="Directory that tasks may use by file:// (may be repeated).", metavar="[NAME=]PATH[:ro][:mount]"
        ),
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="docker, bubblewrap, none or auto [default: auto].")] = None,
    roles: Annotated[str | None, typer.Option(help="api, control or both [default: api,control].")] = None,
    start_agent: Annotated[
        bool | None, typer.Option("--agent/--no-agent", help="Run tasks on this host, too [default: yes].")
    ] = None,
    auth: Annotated[str | None, typer.Option(help="none or tokens [default: none].")] = None,
    tokens_file: Annotated[
        Path | None, typer.Option(help="File with tokens; implies --auth tokens.", metavar="FILE", readable=False)
    ] = None,
    allow_unauthenticated_network: Annotated[
        bool | None,
        typer.Option(
            "--allow-unauthenticated-network",
            help="Listen beyond loopback without --auth tokens: anybody who reaches the port can run containers.",
        ),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, json or console.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the gateway: the API, the loops that follow tasks, and an agent on this host."""
    from tesgate.cli.roots import file_roots

    settings = load(
        config,
        {
            "data_dir": data_dir,
            "database_url": database_url,
            "file_roots": file_roots(file_root) if file_root else None,
            "roles": [role.strip() for role in roles.split(",") if role.strip()] if roles is not None else None,
            "server": {"host": host, "port": port},
            "runtime": {"engine": runtime},
            "agent": {"start": start_agent},
            "auth": {
                "mode": auth or ("tokens" if tokens_file is not None else None),
                "tokens_file": tokens_file,
                "allow_unauthenticated_network": allow_unauthenticated_network,
            },
            "telemetry": {"log_format": log_format, "log_level": log_level},
        },
    )
    from tesgate import app

    raise typer.Exit(run_async(app.serve, settings))


def migrate(config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Bring the database to the schema of this version."""
    settings = load(config, {"data_dir": data_dir, "database_url": database_url})
    from tesgate import app

    typer.echo(run_async(app.migrate, settings))


def check_config(config: Config = None, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Say whether the configuration can be used, and what is wrong with it."""
    from tesgate.config import check_bind
    from tesgate.errors import ConfigError

    settings = load(config, {"data_dir": data_dir, "database_url": database_url})
    lines = []
    try:
        check_bind(settings.server.host, settings)
    except ConfigError as error:
        lines += error.lines
    from tesgate.app.tls import Certificate

    try:
        Certificate.of(settings.server)
    except ConfigError as error:
        lines += error.lines
    from tesgate.app.workspace import workspace_place
    from tesgate.storage.credentials import Credentials

    for check in (lambda: workspace_place(settings), lambda: Credentials(settings.credentials)):
        try:
            check()
        except ConfigError as error:
            lines += error.lines
    from tesgate.app.places import DataDir as Place

    if fault := Place(settings.data_dir).fault():
        lines.append(fault)
    lines += [
        f"file_roots: {root.path} is not a directory here; make it, or correct the path"
        for root in settings.file_roots
        if not root.path.is_dir()
    ]
    if lines:
        raise Failure("\n".join(["The configuration cannot be used:", *(f"  {line}" for line in lines)]))
    database = "the given PostgreSQL" if settings.database_url else "a database of its own"
    typer.echo(f"The configuration is good: {settings.server.host}:{settings.server.port}, {database}, ", nl=False)
    typer.echo(f"data in {settings.data_dir}, auth.mode {settings.auth.mode}.")


def agent(context: typer.Context) -> None:
    """Run tasks that a gateway elsewhere gives to this host. All options go to the agent; see `agent --help`.

    `agent list` shows the agents of a gateway, `agent drain HOST` takes a host out.
    """
    if context.args and context.args[0] in ("list", "drain"):
        from tesgate.cli import agents

        agents.app(context.args, prog_name="tesgate agent")
    command = [sys.executable, "-m", "tesgate.runner", "agent", *context.args]
    sys.stdout.flush()
    os.execv(command[0], command)
