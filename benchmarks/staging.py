"""How fast files come into a task and out of it, against the fastest plain tool on the same files in the same run.

Usage: python benchmarks/staging.py [--quick] [--rounds 3] [--directory DIR] [--only WORD]

Drives the runner's own staging (`tesgate.runner.transfer`) as an agent does: four threads, a real scratch directory,
real modes and owners. One file of 1 GiB and 2,000 files of 16 KiB, in (read-only and writable) and out, over `file://`
and HTTP, all in the page cache. Beside it `cp`, `cp -r` and `curl` (`-Z`: in parallel), in turns. "flushed" outputs are
on the disk when they are published, which is what tesgate does; `cp` alone leaves that to the kernel, `cp; sync` does
not. HTTP is an input only. Speed is the plain tool's time over ours: the aim is 0.8 and more. `memory` is the largest
resident size of this process above what it had before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from processes import clear_peak, peak_bytes

from tesgate.runner.plan import Input, Mount, Output, UrlPolicy
from tesgate.runner.report import Root
from tesgate.runner.transfer.stage import Stager

SMALL = 16 << 10


@dataclass
class Case:
    """One thing to move: what must be done before (not timed), ours, and plain tools by their names."""

    name: str
    ours: Callable[[], None]
    plain: dict[str, Callable[[], None]]
    before: Callable[[], None] = lambda: None


class Beds:
    """Directories, files and the calls on them."""

    def __init__(self, directory: Path, *, size: int, count: int, url: str) -> None:
        self.root, self.attempt, self.plain = directory / "root", directory / "attempt", directory / "plain"
        self.size, self.count, self.url = size, count, url
        self.big, self.many = self.root / "big", self.root / "many"
        self.root.mkdir()
        write_big(self.big, size)
        write_many(self.many, count)

    def fresh(self) -> None:
        for path in (self.attempt, self.plain, self.root / "out"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        for part in ("rw", "ro"):
            (self.attempt / part).mkdir()

    def stager(self, *, durable: bool = True) -> Stager:
        return Stager(
            roots=[Root("data", str(self.root))], policy=UrlPolicy(allowed_hosts=["127.0.0.1"]), durable=durable
        )

    def into(self, *inputs: Input) -> None:
        anyio.run(self.stager().stage_in, list(inputs), str(self.attempt))

    def out_of(self, path: str, kind: str, *, durable: bool) -> None:
        output = Output(f"/work/{path}", f"{self.root}/out/{path}", kind)
        mounts = [Mount(source="rw/work", target="/work")]

        async def store() -> None:
            stager = self.stager(durable=durable)
            prepared = await stager.prepare_outputs([output], mounts, str(self.attempt), "tg-bench-1")
            stored = await stager.publish(prepared, lambda: 30.0)
            assert len(stored) == (1 if kind == "FILE" else self.count)

        anyio.run(store)

    def made_big(self) -> None:
        self.fresh()
        (self.attempt / "rw/work").mkdir()
        write_big(self.attempt / "rw/work/big", self.size)

    def made_many(self) -> None:
        self.fresh()
        write_many(self.attempt / "rw/work/many", self.count)

    def one(self, url: str, *, writable: bool) -> Input:
        return Input("/work/big", ("rw" if writable else "ro") + "/work/big", url=url, writable=writable)

    def whole(self, *, writable: bool) -> Input:
        place = ("rw" if writable else "ro") + "/work/many"
        return Input("/work/many", place, url=str(self.many), type="DIRECTORY", writable=writable)

    def each(self, base: str, *, writable: bool) -> list[Input]:
        part = "rw" if writable else "ro"
        names = [f"{index:05}" for index in range(self.count)]
        return [
            Input(f"/work/many/{name}", f"{part}/work/many/{name}", url=f"{base}/many/{name}", writable=writable)
            for name in names
        ]

    def cases(self) -> Iterator[Case]:
        big, many, plain = self.big, self.many, self.plain
        cp = {"cp": lambda: run("cp", str(big), f"{plain}/big")}
        cp_many = {"cp -r": lambda: run("cp", "-r", str(many), f"{plain}/many")}
        for writable in (False, True):
            how = "writable" if writable else "read-only"
            item, whole, each = (
                self.one(str(big), writable=writable),
                self.whole(writable=writable),
                self.each(str(self.root), writable=writable),
            )
            yield Case(f"file: big in, {how}", lambda item=item: self.into(item), cp, self.fresh)  # type: ignore[misc]
            yield Case(f"file: many in, {how}, a DIRECTORY", lambda whole=whole: self.into(whole), cp_many, self.fresh)  # type: ignore[misc]
            yield Case(f"file: many in, {how}, one by one", lambda each=each: self.into(*each), cp_many, self.fresh)  # type: ignore[misc]
        scratch = self.attempt / "rw/work"
        cp_out = {
            "cp": lambda: run("cp", f"{scratch}/big", f"{plain}/big"),
            "cp; sync": lambda: (run("cp", f"{scratch}/big", f"{plain}/big"), run("sync", f"{plain}/big"), None)[-1],
        }
        cp_many_out = {
            "cp -r": lambda: run("cp", "-r", f"{scratch}/many", f"{plain}/many"),
            "cp -r; sync": lambda: (
                run("cp", "-r", f"{scratch}/many", f"{plain}/many"),
                run("sync", *(str(path) for path in sorted((plain / "many").iterdir()))),
                None,
            )[-1],
        }
        for durable in (True, False):
            how = "flushed" if durable else "not flushed"
            yield Case(
                f"file: big out, {how}",
                lambda d=durable: self.out_of("big", "FILE", durable=d),  # type: ignore[misc]
                cp_out,
                self.made_big,
            )
            yield Case(
                f"file: many out, {how}",
                lambda d=durable: self.out_of("many", "DIRECTORY", durable=d),  # type: ignore[misc]
                cp_many_out,
                self.made_many,
            )
        url = self.url
        curl = {"curl": lambda: run("curl", "-sf", "-o", f"{plain}/big", f"{url}/big")}
        yield Case("http: big in", lambda: self.into(self.one(f"{url}/big", writable=True)), curl, self.fresh)
        config = self.root / "curl"
        config.write_text("".join(f'url = "{url}/many/{i:05}"\noutput = "{plain}/{i:05}"\n' for i in range(self.count)))
        curls = {
            f"curl -Z {most}": lambda most=most: run(  # type: ignore[misc]
                "curl", "-sfZ", "--no-progress-meter", "--parallel-max", str(most), "-K", str(config)
            )
            for most in (4, 16)
        }
        every = self.each(url, writable=True)
        yield Case("http: many in", lambda: self.into(*every), curls, self.fresh)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_big(path: Path, size: int) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.writelines(block for _ in range(size >> 20))
        os.fsync(file.fileno())  # what the kernel has yet to write must not fall into what is timed


def write_many(path: Path, count: int) -> None:
    path.mkdir(parents=True)
    for index in range(count):
        (path / f"{index:05}").write_bytes(os.urandom(SMALL))
    run("sync", *(str(each) for each in sorted(path.iterdir())))


def timed(case: Case, call: Callable[[], None]) -> float:
    case.before()
    clear_peak(os.getpid())
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def server(directory: Path) -> Iterator[str]:
    command = [sys.executable, str(Path(__file__).with_name("file_server.py")), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 MiB and 200 files, two rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", help="where the files are (of the file system that is to be measured)")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    given = parser.parse_args()
    size, count = (64 << 20, 200) if given.quick else (1 << 30, 2000)
    rounds = given.rounds or (2 if given.quick else 3)
    with tempfile.TemporaryDirectory(prefix="tesgate-staging-", dir=given.directory) as made:
        directory = Path(made)
        with server(directory / "root") as url:
            beds = Beds(directory, size=size, count=count, url=url)
            print(f"big: {size >> 20} MiB; many: {count} x {SMALL >> 10} KiB; medians of {rounds} rounds")
            print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} cores\n")
            print(f"{'case':40} {'ours s':>8}   plain tools: seconds, speed (worst round)   memory MiB")
            for case in beds.cases():
                if given.only not in case.name:
                    continue
                ours: list[float] = []
                plain: dict[str, list[float]] = {name: [] for name in case.plain}
                clear_peak(os.getpid())
                idle, peak = peak_bytes(os.getpid()), 0
                for _ in range(rounds):
                    for name, call in case.plain.items():
                        plain[name].append(timed(case, call))
                    ours.append(timed(case, case.ours))
                    peak = max(peak, peak_bytes(os.getpid()))
                mine = statistics.median(ours)
                cells = []
                for name, took in plain.items():
                    worst = min(each / own for each, own in zip(took, ours, strict=True))
                    theirs = statistics.median(took)
                    cells.append(f"{name} {theirs:.3f} s, {theirs / mine:.2f} x ({worst:.2f})")
                print(f"{case.name:40} {mine:8.3f}   {'; '.join(cells)}   {(peak - idle) / (1 << 20):.0f}", flush=True)
    print(f"\nload average at the end {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


if __name__ == "__main__":
    main()
