"""The program ``tesgate``: all commands, and how their faults end it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tesgate.cli import gateway, tasks, tokens
from tesgate.cli.demo.command import demo
from tesgate.cli.failure import Failure
from tesgate.cli.health import health

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="A gateway that speaks GA4GH TES and runs tasks in containers.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(gateway.serve)
app.command()(demo)
app.add_typer(tasks.app, name="task")
app.add_typer(tokens.app, name="token")
app.command()(gateway.migrate)
app.command("check-config")(gateway.check_config)
app.command()(health)
app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(gateway.agent)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"tesgate {version('tesgate')}")
        except PackageNotFoundError:
            typer.echo("tesgate (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _open_standard_streams() -> None:
    """Put /dev/null where one of the three is closed: else a socket takes its number, and libuv aborts at its close."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def main() -> None:
    """Entry point of the program."""
    _open_standard_streams()
    # httpx imports a command line of its own wherever it finds rich: half of our start-up time, and never used.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    try:
        app(prog_name="tesgate")
    except Failure as failure:
        sys.stdout.flush()
        print(f"tesgate: {failure.sentence}", file=sys.stderr)
        sys.exit(failure.code)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): not worth a word, but Python would say one at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
