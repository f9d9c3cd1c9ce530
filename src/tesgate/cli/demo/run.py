"""The demo from start to end: data, engine, gateway, tasks, results, and what to look at next."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from tesgate.cli.client import TesClient
from tesgate.cli.demo.engine import Found, find_engine
from tesgate.cli.demo.reads import count_beginning, count_reads, gc_by_chunk, write_reads
from tesgate.cli.demo.server import Gateway, web_server
from tesgate.cli.demo.stores import BARCODES, BUCKET, Stores, missing_packages, stores
from tesgate.cli.documents import fill, read_document
from tesgate.cli.failure import Exit, Failure
from tesgate.cli.watch import follow

__all__ = ["CHUNK", "EXAMPLES", "WITH_STORES", "check", "prepare", "run", "task_of"]

EXAMPLES = ("hello.json", "count-reads.json", "split-and-sum.yaml")
WITH_STORES = "s3-to-ftp.json"
"""Runs where an S3 server and an FTP server can be started."""
CHUNK = 2500
"""Reads in each part that split-and-sum makes."""
_SAMPLES = (("sample_a", "web", 12_000, 1), ("sample_b", "files", 8_000, 2))


def run(data_dir: Path, *, runtime: str, keep: bool, timeout: float) -> int:
    """Run the demo; the exit code. Raises `Failure`."""
    console = Console()

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    home = data_dir.absolute()
    found = find_engine(runtime, lambda text: say(text, "dim"))
    say(f"Engine   {found.words}")
    files, web = prepare(home)
    size = sum(path.stat().st_size for path in (*files.glob("*.fastq"), *web.glob("*.fastq")))
    say(f"Data     {size / 1e6:.1f} MB of reads in {home}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_end_in_order())
        address = stack.enter_context(web_server(web))
        there: Stores | None = None
        if missing := missing_packages():
            say(f"Stores   left out: {' and '.join(missing)} not installed (pip install 'tesgate[demo]')", "dim")
        else:
            there = stack.enter_context(stores(home, files / "sample_b.fastq"))
            say(f"Stores   S3 at {there.s3}, FTP at {there.ftp}")
        gateway = Gateway(
            home=home,
            files=files,
            runtime=found.runtime,
            hosts=[address] if there is None else [address, there.ftp],
            environment={} if there is None else there.environment(),
        )
        stack.callback(gateway.stop)
        start = time.monotonic()
        gateway.start()
        say(f"Gateway  {gateway.url} (started in {time.monotonic() - start:.1f} s)\n")
        code = _tasks(gateway, found, files, address, there, console, say, timeout)
        keep = keep and code != Exit.INTERRUPTED
        if not keep:
            gateway.stop()
        try:
            _closing(gateway, files, say, keep=keep)
            if keep:
                gateway.wait()
                raise Failure(
                    f"The gateway ended by itself; its log {gateway.log} ends so:\n{gateway.tail()}", Exit.SYSTEM_ERROR
                )
        except KeyboardInterrupt:
            if not keep:
                raise
            say("Stopping the gateway …", "dim")
    return code


@contextlib.contextmanager
def _signals_end_in_order() -> Iterator[None]:
    """A closed terminal or a `kill` stops the gateway, too: it has a session of its own and would go on."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare(home: Path) -> tuple[Path, Path]:
    """Make the demo's directories and data; old results are removed. Answers the file root and the web's directory."""
    files, web = home / "files", home / "web"
    try:
        for directory in (files, web, home / "gateway"):
            directory.mkdir(parents=True, exist_ok=True)
        (home / "gateway").chmod(0o700)
        shutil.rmtree(files / "results", ignore_errors=True)
        (files / "results").mkdir()
        for sample, where, count, seed in _SAMPLES:
            path = home / where / f"{sample}.fastq"
            if not path.exists():
                partial = path.with_suffix(".partial")
                write_reads(partial, sample=sample, count=count, seed=seed)
                partial.replace(path)
    except OSError as error:
        raise Failure(f"{error.filename or home}: {error.strerror}; give another place with --data-dir.") from None
    return files, web


def task_of(name: str, *, files: Path, address: str, image: str, ftp: str = "") -> dict[str, Any]:
    """The task document of an example, for this demo."""
    places = {
        "DEMO_DIR": str(files),
        "DEMO_HTTP": f"http://{address}",
        "DEMO_S3": f"s3://{BUCKET}",
        "DEMO_FTP": f"ftp://{ftp}",
    }
    document = fill(read_document(str(_example(name))), places)
    for executor in document["executors"]:
        executor["image"] = image
    return document


def _example(name: str) -> Path:
    """An example's file: beside the sources, or inside the installed package."""
    beside = Path(__file__).parents[4] / "examples" / name
    inside = Path(str(resources.files("tesgate.cli.demo"))) / "examples" / name
    found = next((path for path in (beside, inside) if path.is_file()), None)
    if found is None:
        raise Failure(f"The example {name} is not installed; run the demo from a checkout of the project.")
    return found


def _tasks(
    gateway: Gateway,
    found: Found,
    files: Path,
    address: str,
    there: Stores | None,
    console: Console,
    say: Callable[..., None],
    timeout: float,
) -> int:
    names = EXAMPLES if there is None else (*EXAMPLES, WITH_STORES)
    ftp = "" if there is None else there.ftp
    with TesClient(gateway.url) as client:
        ids = [client.create(task_of(name, files=files, address=address, image=found.image, ftp=ftp)) for name in names]
        try:
            tasks = follow(client, ids, console=console, timeout=timeout)
        except Failure as failure:
            raise Failure(
                f"{failure.sentence}\nThe gateway's log {gateway.log} ends so:\n{gateway.tail()}", failure.code
            ) from None
        except KeyboardInterrupt:
            say("Stopped.")
            return int(Exit.INTERRUPTED)
    say("")
    failed = 0
    for name, task in zip(names, tasks, strict=True):
        if task.get("state") != "COMPLETE":
            failed += 1
            attempts = task.get("logs") or [{}]
            said = list(attempts[-1].get("system_logs") or [])
            said += [log.get("stderr") or "" for log in attempts[-1].get("logs") or []]
            say(f"✗ {name}: {task.get('state')}. " + " ".join(part.strip() for part in said if part.strip()), "red")
            continue
        wrong = check(name, task, files, files.parent / "web", there)
        failed += bool(wrong)
        say(f"✗ {name}: {wrong}" if wrong else f"✓ {name}: the results are right", "red" if wrong else "green")
    if failed:
        say(f"{failed} of {len(names)} went wrong; the gateway's log is {gateway.log}.", "red")
    return 1 if failed else 0


def check(name: str, task: dict[str, Any], files: Path, web: Path, there: Stores | None = None) -> str | None:
    """What is wrong with the results of an example; they are computed again here, in another way."""
    results = files / "results"
    try:
        match name:
            case "hello.json":
                said = task["logs"][-1]["logs"][0]["stdout"]
                return None if said == "Hello from a container.\n" else f"it said {said!r}"
            case "count-reads.json":
                wanted = "".join(
                    f"{sample}\t{count_reads(where / f'{sample}.fastq')}\n"
                    for sample, where in (("sample_a", web), ("sample_b", files))
                )
                found = (results / "read_counts.tsv").read_text("ascii")
                return None if found == wanted else f"read_counts.tsv holds {found!r}, not {wanted!r}"
            case "split-and-sum.yaml":
                chunks = gc_by_chunk(files / "sample_b.fastq", CHUNK)
                for index, (reads, gc) in enumerate(chunks):
                    text = (results / "sums" / f"part_{index}.txt").read_text("ascii")
                    if text != f"part_{index}\t{reads}\t{gc}\n":
                        return f"part_{index}.txt holds {text!r}, not {reads} reads and {gc} G or C"
                parts = [results / "parts" / f"part_{index}.fastq" for index in range(len(chunks))]
                together = b"".join(path.read_bytes() for path in parts)
                if together != (files / "sample_b.fastq").read_bytes():
                    return "the parts do not make up the file that was split"
                extra = set((results / "parts").iterdir()) - set(parts)
                return f"unexpected: {sorted(map(str, extra))}" if extra else None
            case "s3-to-ftp.json" if there is not None:
                lines = {
                    name: f"{code}\t{count_beginning(files / 'sample_b.fastq', code)}\n"
                    for name, code in BARCODES.items()
                }
                tables = there.ftp_directory / "results" / "tables"
                stored = {path.stem: path.read_text("ascii") for path in tables.iterdir()}
                if stored != lines:
                    return f"the tables on the FTP server hold {stored!r}, not {lines!r}"
                said = there.read("results/found with space.txt").decode("ascii")
                return None if said == "".join(sorted(lines.values())) else f"the object in the bucket holds {said!r}"
            case _:
                return "nobody knows what it should hold"
    except (OSError, LookupError, TypeError) as error:
        return f"a result is missing ({error})"


def _closing(gateway: Gateway, files: Path, say: Callable[..., None], *, keep: bool) -> None:
    say(f"\nResults  {files / 'results'}")
    say(f"Log      {gateway.log}")
    if keep:
        say(f"API      {gateway.url}/ga4gh/tes/v1")
        say(f"Docs     {gateway.url}/docs")
        say(f"Logs     {gateway.url}/ga4gh/tes/v1/tasks/ID/logs/1/0/stdout")
        say(f"Tasks    {gateway.program} task list --url {gateway.url}")
        say("\nThe gateway goes on; Ctrl-C stops it.")
    else:
        say(f"\nThe gateway is stopped. Start it again on the same data:\n  {gateway.command}")
        say(f"then look at\n  {gateway.url}/docs\n  {gateway.url}/ga4gh/tes/v1/tasks?view=FULL")
        say(f"  {gateway.program} task list --url {gateway.url}")
