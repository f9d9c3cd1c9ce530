"""How fast objects of a store come into a task and out of it, against the fastest plain client in the same run.

Usage: PYTHONPATH=. python benchmarks/objects.py [--quick] [--rounds 3] [--keys 100000] [--only WORD]

SeaweedFS keeps the objects, a real gateway (with its database, as processes of their own) answers the runner's
questions, and this process is the agent: its staging (`tesgate.runner.transfer`) moves one object of 1 GiB and 2,000 of
16 KiB, both ways, in turns with obstore (Rust; a process of its own that runs already) and, where they are found on the
PATH, s5cmd. Then the 2,000 objects come in once more as so many inputs (``single down``). All of them share these
processors. Speed is the plain client's time over ours: the aim is 0.8 and more. `memory` is the largest resident size
of this process above what it had before: the aim is 64 MiB. `CPU` is what it, the gateway and obstore used up. At last
a directory of a tenth of the keys, and one of 100,000, goes out and comes in again, for memory alone: of this process
and of the gateway, above what each had before the first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
from benchmarks.processes import cpu_seconds
from benchmarks.scripted_agent import Script, ScriptedAgent, _Attempt

from tesgate.runner.gateway import GatewayClient
from tesgate.runner.plan import Input, Mount, Output, Plan, UrlPolicy
from tesgate.runner.report import ExecutorReport, Report, Snapshot
from tesgate.runner.storages import storages_of
from tesgate.runner.transfer.ftp import FtpServers
from tesgate.runner.transfer.stage import Stager
from tests.beds import cache_directory, s3
from tests.e2e.harness import Gateway
from tests.transfer.s3_signing import client_of

SMALL = 16 << 10
BUCKET = "bench"
HERE = Path(__file__).parent


class Holding(ScriptedAgent):
    """An agent whose one attempt goes on under the publish lease until the process ends."""

    def __init__(self, **more: Any) -> None:
        super().__init__(slots=1, script=Script(), **more)
        self.plans: queue.Queue[Plan] = queue.Queue()

    async def _work(self, attempt: _Attempt, snapshot: Snapshot, executor: ExecutorReport) -> None:
        await self._say(attempt, "report", Report(0, self.instance, snapshot))
        held = False
        while await self._say(attempt, "publish", Report(0, self.instance, snapshot)):
            if not held:
                self.plans.put(attempt.plan)
                held = True
            await anyio.sleep(3)


class Plain:
    """The other client: a process that does jobs."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        requirements = HERE / "objects_client.txt"
        place = cache_directory() / f"objects-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
        if not (place / "ready").exists():
            venv.create(place, with_pip=False, symlinks=True)
            pip = [sys.executable, "-m", "pip", "--python", str(place / "bin/python"), "install", "--quiet"]
            subprocess.run([*pip, "--requirement", str(requirements)], check=True)
            (place / "ready").touch()
        command = [str(place / "bin/python"), str(HERE / "objects_client.py")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, what: str, prefix: str, directory: Path) -> float:
        into, out = self.process.stdin, self.process.stdout
        assert into is not None
        assert out is not None
        into.write(json.dumps([what, self._endpoint, BUCKET, prefix, str(directory), 16]) + "\n")
        into.flush()
        return float(out.readline())


def s5cmd(endpoint: str, what: str, prefix: str, directory: Path) -> float:
    """The same by s5cmd, with its start."""
    there = f"s3://{BUCKET}/{prefix}/"
    pair = [f"{directory}/", there] if what == "up" else [f"{there}*", f"{directory}/"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
    environment["AWS_REGION"] = "us-east-1"
    began = time.perf_counter()
    command = ["s5cmd", "--endpoint-url", endpoint, "--log", "error", "cp", *pair]
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - began


class Bench:
    """Directories, the attempt, and what is done with both."""

    def __init__(self, base: Path, plan: Plan, client: GatewayClient, *, size: int, count: int) -> None:
        self.base, self.plan, self.client, self.count = base, plan, client, count
        self.attempt, self.plain = base / "attempt", base / "plain"
        self.sources = {"big": base / "big", "many": base / "many"}
        for path in self.sources.values():
            path.mkdir()
        block = os.urandom(1 << 20)
        with (self.sources["big"] / "object").open("wb") as file:
            file.writelines(block for _ in range(size >> 20))
        for index in range(count):
            (self.sources["many"] / f"{index:05}").write_bytes(os.urandom(SMALL))

    def fresh(self) -> None:
        for path in (self.attempt, self.plain):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        for part in ("rw/work", "ro"):
            (self.attempt / part).mkdir(parents=True)

    def stager(self) -> Stager:
        return Stager(roots=[], policy=UrlPolicy(), storages=storages_of(self.plan, self.client, ftp=FtpServers()))

    def down(self, url: str) -> None:
        item = Input("/x", "ro/x", url=url, type="DIRECTORY")
        anyio.run(self.stager().stage_in, [item], str(self.attempt))

    def single(self) -> None:
        """The small objects, each an input of its own."""
        names = [f"{index:05}" for index in range(self.count)]
        items = [Input(f"/x/{name}", f"ro/x/{name}", url=f"s3://{BUCKET}/in/many/{name}") for name in names]
        storages = storages_of(replace(self.plan, inputs=items), self.client, ftp=FtpServers())
        stager = Stager(roots=[], policy=UrlPolicy(), storages=storages)
        anyio.run(stager.stage_in, items, str(self.attempt))

    def up(self, prefix: str) -> None:
        output = Output("/work", f"s3://{BUCKET}/out/{prefix}", "DIRECTORY")
        mounts = [Mount(source="rw/work", target="/work")]

        async def store() -> None:
            stager = self.stager()
            prepared = await stager.prepare_outputs([output], mounts, str(self.attempt), "tg-bench-1")
            await stager.publish(prepared, lambda: 30.0)

        anyio.run(store)

    def linked(self, kind: str) -> None:
        """Put the files where the task would have left them."""
        self.fresh()
        for path in self.sources[kind].iterdir():
            os.link(path, self.attempt / "rw/work" / path.name)


def clear_peak(process: int | str = "self") -> None:
    """Have the kernel count the largest resident size of a process (not of those it started) anew."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def peak_bytes(process: int | str = "self") -> int:
    """Since then."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[0]) << 10


def timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(bench: Bench, endpoint: str, plain: Plain, gateway: int, rounds: int, only: str) -> None:
    print(f"{'case':12} {'ours s':>8}   plain clients: seconds, speed (worst round)   memory MiB   CPU s")
    for kind in bench.sources:
        plain("up", f"in/{kind}", bench.sources[kind])
    for kind, way in (("big", "up"), ("big", "down"), ("many", "up"), ("many", "down"), ("single", "down")):
        if only in f"{kind} {way}":
            measure_one(bench, endpoint, plain, gateway, rounds, kind, way)


def measure_one(bench: Bench, endpoint: str, plain: Plain, gateway: int, rounds: int, kind: str, way: str) -> None:
    files = "big" if kind == "big" else "many"
    ours: list[float] = []
    used: dict[str, list[float]] = {"runner": [], "gateway": [], "obstore": []}
    others: dict[str, list[float]] = {"obstore": []}
    if shutil.which("s5cmd"):
        others["s5cmd"] = []
    clear_peak()
    idle, peak = peak_bytes(), 0
    for turn in range(rounds):
        for name, took in others.items():
            bench.fresh()
            where = bench.sources[files] if way == "up" else bench.plain
            prefix = f"out/{name}-{files}-{turn}" if way == "up" else f"in/{files}"
            before = cpu_seconds(plain.process.pid, alone=True)
            took.append(plain(way, prefix, where) if name == "obstore" else s5cmd(endpoint, way, prefix, where))
            if name == "obstore":
                used["obstore"].append(cpu_seconds(plain.process.pid, alone=True) - before)
        if way == "up":
            bench.linked(files)
        else:
            bench.fresh()
        clear_peak()
        before, there = cpu_seconds(os.getpid(), alone=True), cpu_seconds(gateway, alone=True)
        if way == "up":
            ours.append(timed(lambda: bench.up(f"ours-{files}-{turn}")))  # noqa: B023  # called at once
        elif kind == "single":
            ours.append(timed(bench.single))
        else:
            ours.append(timed(lambda: bench.down(f"s3://{BUCKET}/in/{files}")))
        peak = max(peak, peak_bytes())
        used["runner"].append(cpu_seconds(os.getpid(), alone=True) - before)
        used["gateway"].append(cpu_seconds(gateway, alone=True) - there)
        if way == "down":
            compare(bench.sources[files], bench.attempt / "ro/x")
    mine = statistics.median(ours)
    cells = []
    for name, took in others.items():
        worst = min(each / own for each, own in zip(took, ours, strict=True))
        theirs = statistics.median(took)
        cells.append(f"{name} {theirs:.2f} s, {theirs / mine:.2f} x ({worst:.2f})")
    cpu = ", ".join(f"{name} {statistics.median(each):.2f}" for name, each in used.items())
    memory = (peak - idle) / (1 << 20)
    print(f"{kind + ' ' + way:12} {mine:8.2f}   {'; '.join(cells)}   {memory:.0f}   {cpu}", flush=True)


def compare(there: Path, here: Path) -> None:
    names = sorted(path.name for path in there.iterdir())
    assert names == sorted(path.name for path in here.iterdir())
    for name in names:
        assert (here / name).stat().st_size == (there / name).stat().st_size, name


def many_keys(bench: Bench, gateway: int, keys: int) -> None:
    """A directory of so many small files out, and in again."""
    processes = {"runner": os.getpid(), "gateway": gateway}
    for process in processes.values():
        clear_peak(process)
    idle = {name: peak_bytes(process) for name, process in processes.items()}
    for count in (keys // 10, keys):
        bench.fresh()
        for number in range(count):
            (bench.attempt / "rw/work" / f"{number:06}").write_bytes(b"%d" % number)
        for way in ("up", "down"):
            for process in processes.values():
                clear_peak(process)
            if way == "up":
                took = timed(lambda: bench.up(f"keys-{count}"))  # noqa: B023  # called at once
            else:
                took = timed(lambda: bench.down(f"s3://{BUCKET}/out/keys-{count}"))  # noqa: B023
            grown = [f"{name} {(peak_bytes(it) - idle[name]) / (1 << 20):.0f}" for name, it in processes.items()]
            print(f"{count} keys {way:5} {took:8.1f} s   MiB above idle: {', '.join(grown)}", flush=True)
        for number in range(count):
            assert (bench.attempt / "ro/x" / f"{number:06}").read_bytes() == b"%d" % number, number


def gateway_for(base: Path, endpoint: str) -> Gateway:
    given = {
        "name": "bench",
        "url": endpoint,
        "access_key_id": "env:BENCH_S3_ID",
        "secret_access_key": "env:BENCH_S3_SECRET",
    }
    os.environ.update(BENCH_S3_ID="testing", BENCH_S3_SECRET="testing-secret")
    return Gateway(base, "docker", S3__ENDPOINTS=json.dumps([given]), AGENT__START="false")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 MiB and 200 objects, two rounds, 2,000 keys")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--keys", type=int, help="of the large directory; 0: none")
    parser.add_argument("--directory", help="where the files and the store's objects are")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    given = parser.parse_args()
    size, count = (64 << 20, 200) if given.quick else (1 << 30, 2000)
    rounds = given.rounds or (2 if given.quick else 3)
    keys = given.keys if given.keys is not None else (2000 if given.quick else 100_000)
    if given.directory:
        tempfile.tempdir = given.directory
    with tempfile.TemporaryDirectory(prefix="tesgate-objects-") as made, s3.serving() as servers:
        base, endpoint = Path(made), servers.seaweed.url
        direct = client_of(endpoint)
        direct.create_bucket(Bucket=BUCKET)
        gateway = gateway_for(base / "gateway", endpoint)
        plain = Plain(endpoint)
        try:
            gateway.start()
            plan, client = attempt_of(gateway, base)
            bench = Bench(base, plan, client, size=size, count=count)
            print(f"big: {size >> 20} MiB; many: {count} x {SMALL >> 10} KiB; medians of {rounds} rounds")
            print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} cores\n")
            assert gateway.process is not None
            measure(bench, endpoint, plain, gateway.process.pid, rounds, given.only)
            if keys and given.only in "keys":
                many_keys(bench, gateway.process.pid, keys)
        finally:
            plain.process.kill()
            gateway.close()
            direct.close()
    print(f"\nload average at the end {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def attempt_of(gateway: Gateway, base: Path) -> tuple[Plan, GatewayClient]:
    """Be the agent of one task that may read and write everything, and hold its lease."""
    token = base / "token"
    command = [sys.executable, "-m", "tesgate.cli", "token", "create", "bench", "--kind", "agent"]
    made = subprocess.run(
        [*command, "--data-dir", str(gateway.data)], check=True, capture_output=True, env=gateway.environment
    )
    token.write_bytes(made.stdout)
    client = GatewayClient(url=f"http://127.0.0.1:{gateway.port}", token_file=str(token))
    agent = Holding(client=client, host="bench")
    client.instance_of = lambda: agent.instance
    threading.Thread(target=lambda: anyio.run(agent.run), daemon=True).start()
    task = {
        "executors": [{"image": "busybox", "command": ["true"]}],
        "inputs": [{"url": f"s3://{BUCKET}/{at}", "path": f"/{at}s", "type": "DIRECTORY"} for at in ("in", "out")],
        "outputs": [{"url": f"s3://{BUCKET}/out", "path": "/out", "type": "DIRECTORY"}],
    }
    answer = httpx.post(f"http://127.0.0.1:{gateway.port}/ga4gh/tes/v1/tasks", json=task, timeout=20)
    answer.raise_for_status()
    return agent.plans.get(timeout=60), client


if __name__ == "__main__":
    main()
