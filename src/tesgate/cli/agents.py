"""``tesgate agent list | drain``: what operators ask a gateway about its agents."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tesgate.cli.client import DEFAULT_URL, TesClient, credentials
from tesgate.cli.failure import Failure

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="List the agents of a gateway, and take hosts out.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Url = Annotated[str, typer.Option(envvar="TESGATE_URL", help="The gateway.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="File with an admin's token (else TESGATE_TOKEN).", metavar="FILE", readable=False)
]


@app.command("list")
def list_(
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Show all agents: host, pool, state, version, room used, when it was seen, attempts."""
    with TesClient(url, auth=credentials(token_file)) as client:
        answer = client.extension("GET", "/agents")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    rows: list[tuple[str, ...]] = [
        ("HOST", "POOL", "STATE", "VERSION", "CORES", "MEMORY GB", "DISK GB", "GPUS", "SEEN", "ATTEMPTS", "ID")
    ]
    rows += [_row(agent, answer.get("gateway_version", "")) for agent in answer["agents"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _row(agent: dict[str, Any], version: str) -> tuple[str, ...]:
    have, used = agent["capacity"], agent["used"]
    state = agent["state"]
    if state == "draining":
        state += " (told)" if agent["told_to_drain"] else " (disk full)"
    return (
        _word(agent["host"]),
        agent["pool"],
        state,
        _word(agent["version"]) + ("" if agent["version"] == version else " (!)"),
        *(f"{used[name]:g}/{have[name]:g}" for name in ("cpu_cores", "ram_gb", "disk_gb", "gpus")),
        _span(agent["unseen_seconds"]),
        str(len(agent["attempts"])),
        agent["id"],
    )


def _word(text: str) -> str:
    """Agents say what they like; a terminal is to show it and do nothing."""
    return "".join(letter if letter.isprintable() else "?" for letter in text) or "-"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def drain(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Host, or id of one agent.")] = None,
    own: Annotated[
        bool,
        typer.Option("--self", help="The agent of this host: with its --url, --token-file, --scratch and --ca-file."),
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Give it new attempts again.")] = False,
    url: Url = DEFAULT_URL,
    token_file: TokenFile = None,
) -> None:
    """Give a host no new attempts. What it has goes on; `agent list` shows when nothing is left."""
    if own:
        command = [sys.executable, "-m", "tesgate.runner", "drain", "--url", url]
        command += ["--token-file", str(token_file)] if token_file is not None else []
        command += ["--undo"] if undo else []
        command += [name] if name is not None else []
        sys.stdout.flush()
        os.execv(command[0], [*command, *context.args])
    if name is None:
        raise Failure("agent drain: name a host, or say --self on the host itself.")
    if context.args:
        raise Failure(f"agent drain: {context.args[0]!r} is too much; name one host or agent.")
    with TesClient(url, auth=credentials(token_file)) as client:
        verb = "undrain" if undo else "drain"
        answer = client.extension("POST", f"/agents/{quote(name, safe='')}:{verb}")
    for agent, host in zip(answer["agents"], answer["hosts"], strict=True):
        said = "gets new attempts again" if undo else "gets no new attempts; what it has goes on"
        typer.echo(f"The agent {agent} on {_word(host)} {said}.")
