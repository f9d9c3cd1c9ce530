"""The command ``tesgate demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Where data, results and the gateway's files go.", metavar="DIR")
    ] = Path(".demo"),
    runtime: Annotated[str, typer.Option(help="docker, bubblewrap, or auto: the first that works.")] = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the gateway running until Ctrl-C.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time for all tasks (seconds).")] = 300.0,
) -> None:
    """Start a gateway, run the tasks of examples/ on real data, and check their results."""
    from tesgate.cli.demo.run import run

    raise typer.Exit(run(data_dir, runtime=runtime, keep=keep, timeout=timeout))
