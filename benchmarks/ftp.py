"""How fast files come from an FTP server and go to one, against the fastest plain clients on the same server.

Usage: python benchmarks/ftp.py [--quick] [--rounds 3] [--directory DIR] [--only WORD]

One file of 1 GiB and 2,000 files of 16 KiB, both ways, over FTP and FTPS (explicit TLS, the data connection in the same
TLS session), on a vsftpd of this machine (root; the tests' bed). Ours is the runner's staging as an agent does it:
four threads, four sessions, sizes compared, outputs under temporary names and renamed. Beside it curl (many: `-Z`, four
at a time) and lftp (`mirror -P 4`), where they are installed, in turns. Speed is the plain tool's time over ours: the
aim is 0.8 and more of the fastest. `memory` is the largest resident size of this process above what it had before.
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
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import anyio
from processes import clear_peak, peak_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tesgate.runner.access import AccessAnswer, AccessRequest, Login
from tesgate.runner.plan import Input, Mount, Output, Plan, UrlPolicy
from tesgate.runner.transfer.ftp import FtpServers, FtpStorage
from tesgate.runner.transfer.stage import Stager
from tests.beds.ftp import Servers, Site, serving

SMALL = 16 << 10
AT_A_TIME = 4


@dataclass
class Case:
    """One thing to move: what must be done before (not timed), ours, and plain tools by their names."""

    name: str
    ours: Callable[[], None]
    plain: dict[str, Callable[[], None]] = field(default_factory=dict)


class Beds:
    """Directories, files and the calls on them, for one way of speaking FTP."""

    def __init__(self, directory: Path, site: Site, certificate: Path, *, tls: bool, size: int, count: int) -> None:
        self.site, self.tls, self.certificate, self.size, self.count = site, tls, certificate, size, count
        self.attempt, self.plain = directory / "attempt", directory / "plain"
        self.work = directory / "work"
        self.policy = UrlPolicy(allowed_hosts=["127.0.0.1", "::1"])
        self.servers = FtpServers()
        for place in (site.root, self.work):
            if not (place / "big").exists():
                place.mkdir(exist_ok=True)
                write_big(place / "big", size)
                write_many(place / "many", count)

    def fresh(self) -> None:
        for path in (self.attempt, self.plain, self.site.root / "out"):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        owner = self.site.root.stat()
        os.chown(self.site.root / "out", owner.st_uid, owner.st_gid)
        for part in ("rw", "ro"):
            (self.attempt / part).mkdir()
        # Hard links, so that the outputs are not written anew for each round.
        shutil.copytree(self.work, self.attempt / "rw/work", copy_function=os.link)

    def ask(self, request: AccessRequest) -> AccessAnswer:
        options = {"tls": "never"}
        if self.tls:
            options = {"tls": "required", "ca": self.certificate.read_text()}
        options["sessions"] = str(AT_A_TIME)
        return AccessAnswer(
            logins=[Login(url, self.site.user, self.site.password, options=options) for url in request.login]
        )

    def stager(self, inputs: list[Input], outputs: list[Output]) -> Stager:
        plan = Plan("t", 1, "tg-bench-1", [], "", inputs=inputs, outputs=outputs, url_policy=self.policy)
        storage = FtpStorage(plan, ask=self.ask, servers=self.servers)
        return Stager(roots=[], policy=self.policy, concurrency=AT_A_TIME, storages=[storage])

    def into(self, *inputs: Input) -> None:
        anyio.run(self.stager(list(inputs), []).stage_in, list(inputs), str(self.attempt))

    def out_of(self, path: str, kind: str) -> None:
        output = Output(f"/work/{path}", self.site.url(f"out/{path}"), kind)
        mounts = [Mount(source="rw/work", target="/work")]

        async def store() -> None:
            stager = self.stager([], [output])
            prepared = await stager.prepare_outputs([output], mounts, str(self.attempt), "tg-bench-1")
            stored = await stager.publish(prepared, lambda: 30.0)
            assert len(stored) == (1 if kind == "FILE" else self.count)

        anyio.run(store)

    def curl(self, *words: str) -> None:
        login = f"{self.site.user}:{self.site.password}"
        secure = ["--ssl-reqd", "--cacert", str(self.certificate)] if self.tls else []
        run("curl", "-sf", "--no-progress-meter", "--user", login, *secure, *words)

    def lftp(self, script: str) -> None:
        settings = "set ftp:list-options -a; set net:max-retries 1; set cmd:fail-exit yes; "
        settings += f"set ssl:ca-file {self.certificate}; set ftp:ssl-force {'yes' if self.tls else 'no'}; "
        settings += f"set ftp:ssl-allow {'yes' if self.tls else 'no'}; set ftp:ssl-protect-data yes; "
        login = f"open -u '{self.site.user},{self.site.password}' ftp://localhost:{self.site.port}; "
        run("lftp", "-c", settings + login + script)

    def config(self, name: str, up: bool) -> str:
        path = self.work.parent / name
        lines = []
        for index in range(self.count):
            url = self.site.url(("out/many/" if up else "many/") + quote(f"{index:05}"))
            if up:
                lines.append(f'upload-file = "{self.work}/many/{index:05}"\nurl = "{url}"\n')
            else:
                lines.append(f'url = "{url}"\noutput = "{self.plain}/{index:05}"\n')
        path.write_text("".join(lines))
        return str(path)

    def cases(self) -> Iterator[Case]:
        kind = "ftps" if self.tls else "ftp"
        site, plain, work = self.site, self.plain, self.work
        one = Input("/big", "rw/big", url=site.url("big"), writable=True)
        tree = Input("/many", "rw/many", url=site.url("many"), type="DIRECTORY", writable=True)
        has_lftp = shutil.which("lftp") is not None
        tools: dict[str, Callable[[], None]] = {"curl": lambda: self.curl("-o", f"{plain}/big", site.url("big"))}
        if has_lftp:
            tools["lftp"] = lambda: self.lftp(f"get /pub/big -o {plain}/big")
        yield Case(f"{kind}: big in", lambda: self.into(one), tools)
        tools = {"curl": lambda: self.curl("-T", f"{work}/big", site.url("out/big"))}
        if has_lftp:
            tools["lftp"] = lambda: self.lftp(f"put {work}/big -o /pub/out/big")
        yield Case(f"{kind}: big out", lambda: self.out_of("big", "FILE"), tools)
        down = self.config("curl-down", up=False)
        most = ["-Z", "--parallel-max", str(AT_A_TIME)]
        tools = {"curl -Z 4": lambda: self.curl(*most, "-K", down)}
        if has_lftp:
            tools["lftp -P 4"] = lambda: self.lftp(f"mirror -P {AT_A_TIME} /pub/many {plain}/many")
        yield Case(f"{kind}: many in", lambda: self.into(tree), tools)
        up = self.config("curl-up", up=True)
        tools = {"curl -Z 4": lambda: self.curl(*most, "--ftp-create-dirs", "-K", up)}
        if has_lftp:
            tools["lftp -P 4"] = lambda: self.lftp(f"mirror -R -P {AT_A_TIME} {work}/many /pub/out/many")
        yield Case(f"{kind}: many out", lambda: self.out_of("many", "DIRECTORY"), tools)


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def write_big(path: Path, size: int) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.writelines(block for _ in range(size >> 20))
        os.fsync(file.fileno())


def write_many(path: Path, count: int) -> None:
    path.mkdir()
    for index in range(count):
        (path / f"{index:05}").write_bytes(os.urandom(SMALL))


def timed(beds: Beds, call: Callable[[], None]) -> float:
    beds.fresh()
    clear_peak(os.getpid())
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(beds: Beds, case: Case, rounds: int) -> None:
    ours: list[float] = []
    plain: dict[str, list[float]] = {name: [] for name in case.plain}
    clear_peak(os.getpid())
    idle, peak = peak_bytes(os.getpid()), 0
    for number in range(rounds):
        # In turns: what comes later finds more that is still to be written to the disk.
        turns = [*case.plain.items(), ("ours", case.ours)]
        for name, call in turns[number % len(turns) :] + turns[: number % len(turns)]:
            os.sync()
            try:
                took = timed(beds, call)
            except subprocess.CalledProcessError as error:
                print(f"  {name} failed: exit code {error.returncode}", flush=True)
                continue
            (ours if name == "ours" else plain[name]).append(took)
            peak = max(peak, peak_bytes(os.getpid()))
    mine = statistics.median(ours)
    cells = []
    for name, took in plain.items():
        if took:
            theirs = statistics.median(took)
            cells.append(f"{name} {theirs:.3f} s, {theirs / mine:.2f} x")
    print(f"{case.name:20} {mine:8.3f}   {'; '.join(cells)}   {(peak - idle) / (1 << 20):.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 MiB and 200 files, two rounds")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", help="where the client's files are")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    given = parser.parse_args()
    size, count = (64 << 20, 200) if given.quick else (1 << 30, 2000)
    rounds = given.rounds or (2 if given.quick else 3)
    with serving() as bed, tempfile.TemporaryDirectory(prefix="tesgate-ftp-", dir=given.directory) as made:
        print(f"big: {size >> 20} MiB; many: {count} x {SMALL >> 10} KiB; medians of {rounds} rounds")
        print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} cores\n")
        print(f"{'case':20} {'ours s':>8}   plain tools: seconds, speed   memory MiB")
        for tls in ("", "explicit"):
            run_site(bed, Path(made), tls, size, count, rounds, given.only)
    print(f"\nload average at the end {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def run_site(bed: Servers, directory: Path, tls: str, size: int, count: int, rounds: int, only: str) -> None:
    site: Site = bed.vsftpd(tls)
    beds = Beds(directory, site, bed.certificate, tls=bool(tls), size=size, count=count)
    for case in beds.cases():
        if only in case.name:
            measure(beds, case, rounds)


if __name__ == "__main__":
    main()
