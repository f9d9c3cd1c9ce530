"""``tesgate task …``: submit, look at, wait for, cancel and read tasks of any TES server."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesgate.cli.failure import Exit, Failure, exit_of

if TYPE_CHECKING:
    from rich.console import Console

    from tesgate.cli.client import TesClient

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Submit and follow tasks on any TES server.")

Url = Annotated[
    str, typer.Option("--url", envvar="TESGATE_URL", help="The server, with or without /ga4gh/tes/v1.", metavar="URL")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with a bearer token (else TESGATE_TOKEN).", metavar="FILE")
]
User = Annotated[
    str | None, typer.Option("--user", help="HTTP Basic with this name; the password is TESGATE_PASSWORD.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0, help="Stop waiting after so many seconds, with exit code 124.")
]
_URL = "http://127.0.0.1:8000"


@contextlib.contextmanager
def _client(url: str, token_file: Path | None, user: str | None) -> Iterator[TesClient]:
    from tesgate.cli.client import TesClient, credentials

    with TesClient(url, auth=credentials(token_file, user)) as client:
        yield client


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="Task as JSON or YAML; - reads standard input.", metavar="FILE|-")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow the task to its end; the exit code tells how.")] = False,
    var: Annotated[list[str] | None, typer.Option(help="Value of ${NAME} in the file.", metavar="NAME=VALUE")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field, as in resources.cpu_cores=2.", metavar="PATH=VALUE")
    ] = None,
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """Submit a task and print its id."""
    from tesgate.cli.documents import assign, fill, pairs, read_document

    document = fill(assign(read_document(file), pairs(set_ or [], "--set")), pairs(var or [], "--var"))
    with _client(url, token_file, user) as client:
        task_id = client.create(document)
        if not wait:
            _print_json({"id": task_id}) if as_json else typer.echo(task_id)
            return
        _wait(client, [task_id], timeout=timeout, as_json=as_json, show=True)


@app.command()
def wait(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    timeout: Timeout = None,
    as_json: AsJson = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """Follow tasks until all have ended."""
    with _client(url, token_file, user) as client:
        _wait(client, ids, timeout=timeout, as_json=as_json, show=False)


def _wait(client: TesClient, ids: list[str], *, timeout: float | None, as_json: bool, show: bool) -> None:
    from tesgate.cli.watch import follow

    console = _console()
    try:
        tasks = follow(client, ids, console=console, timeout=timeout, quiet=as_json)
    except KeyboardInterrupt:
        raise Failure(
            f"Stopped waiting; the task goes on. `tesgate task wait {ids[0]}` waits again, `tesgate task cancel` ends"
            " it.",
            Exit.INTERRUPTED,
        ) from None
    if as_json:
        _print_json(tasks[0] if show else tasks)
    else:
        for task in tasks:
            if task.get("state") != "COMPLETE":
                _explain(task, console)
            elif show:
                for log in _executor_logs(task):
                    sys.stdout.write(log.get("stdout") or "")
    raise typer.Exit(exit_of([str(task.get("state")) for task in tasks]))


def _executor_logs(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The executors' logs of the last attempt."""
    attempts = task.get("logs") or []
    return list(attempts[-1].get("logs") or []) if attempts else []


def _explain(task: dict[str, Any], console: Console) -> None:
    """Why a task did not complete: what the system and the last executor said."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(f"{task.get('id')}: {task.get('state')}", "bold red" if task.get("state") != "CANCELED" else "yellow")
    attempts = task.get("logs") or [{}]
    for line in (attempts[-1].get("system_logs") or [])[-5:]:
        say("  " + str(line).rstrip())
    logs = _executor_logs(task)
    if task.get("state") == "EXECUTOR_ERROR" and logs:
        said = (logs[-1].get("stderr") or logs[-1].get("stdout") or "").splitlines()
        say(f"  executor {len(logs) - 1}: exit code {logs[-1].get('exit_code')}" + ("; it said:" if said else ""))
        for line in said[-15:]:
            say("  | " + line)


@app.command()
def get(
    task_id: Annotated[str, typer.Argument(metavar="ID")],
    view: Annotated[str, typer.Option(help="MINIMAL, BASIC or FULL.")] = "FULL",
    as_json: AsJson = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """Show one task."""
    if (view := view.upper()) not in ("MINIMAL", "BASIC", "FULL"):
        raise Failure(f"--view {view}: there are MINIMAL, BASIC and FULL.")
    with _client(url, token_file, user) as client:
        task = client.get(task_id, view)
    if as_json:
        _print_json(task)
    else:
        from tesgate.cli.show import show_task

        show_task(task)


@app.command("list")
def list_(
    state: Annotated[str | None, typer.Option(help="Only tasks in this state.")] = None,
    name_prefix: Annotated[str | None, typer.Option(help="Only names that begin so.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only with this tag.", metavar="KEY[=VALUE]")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Newest so many; 0 is all.")] = 20,
    as_json: AsJson = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """List tasks, newest first."""
    tags = {key: value for key, _, value in (word.partition("=") for word in tag or [])}
    with _client(url, token_file, user) as client:
        tasks = list(
            client.list(state=state.upper() if state else None, name_prefix=name_prefix, tags=tags, limit=limit or None)
        )
    if as_json:
        _print_json(tasks)
    else:
        from tesgate.cli.show import show_list

        show_list(tasks)


@app.command()
def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="ID...")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow the tasks to their ends.")] = False,
    timeout: Timeout = None,
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """Cancel tasks; one that has ended stays as it is."""
    with _client(url, token_file, user) as client:
        for task_id in ids:
            client.cancel(task_id)
        if wait:
            from tesgate.cli.watch import follow

            follow(client, ids, console=_console(), timeout=timeout)
        for task_id in ids:
            typer.echo(f"{task_id}  {client.get(task_id).get('state')}")


@app.command()
def logs(
    task_id: Annotated[str, typer.Argument(metavar="ID")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
    executor: Annotated[int | None, typer.Option(min=0, help="Only this one, counted from 0.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="This attempt, counted from 1, not the last.")] = None,
    stream: Annotated[str, typer.Option(help="stdout, stderr or both.")] = "both",
    url: Url = _URL,
    token_file: TokenFile = None,
    user: User = None,
) -> None:
    """Print what the commands wrote: their stdout on stdout, their stderr on stderr."""
    from tesgate.cli.logs import LogReader

    if stream not in ("stdout", "stderr", "both"):
        raise Failure(f"--stream {stream}: there are stdout, stderr and both.")
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    with _client(url, token_file, user) as client:
        reader = LogReader(client, task_id, streams=streams, executor=executor, attempt=attempt and attempt - 1)
        try:
            while True:
                more = reader.step(_write)
                if not follow or not more:
                    break
                time.sleep(0.5)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


def _write(stream: str, data: bytes) -> None:
    target = sys.stdout if stream == "stdout" else sys.stderr
    target.buffer.write(data)
    target.buffer.flush()


@app.command("service-info")
def service_info(url: Url = _URL, token_file: TokenFile = None, user: User = None) -> None:
    """Show what the server says of itself, as JSON."""
    with _client(url, token_file, user) as client:
        _print_json(client.service_info())
