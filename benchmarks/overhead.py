"""What a task costs over the same container run on the Docker Engine API directly: latency, throughput, start, CPU.

Usage: python benchmarks/overhead.py [--quick] [--rounds 5] [--parallel 1 4 8] [--image IMAGE] [--poll 0.02]

Starts a gateway of its own (embedded PostgreSQL with fsync, an agent on the engine) in a temporary directory. Two
loads: `true`, and a file of 1 MB in and out. Bare and tesgate take turns in short rounds, so that what else the
machine does meets both. The bare cycle is create, start, wait, and ends when `wait` returns; its containers have the
network mode, the limits and the log driver that the engine reports for a container of tesgate's, and are removed
beside the next ones, as tesgate's are. With files it is `cp` into a directory, the container with that directory
mounted, `cp` out of it (the bare `cp` does not flush; tesgate flushes outputs before it publishes them). tesgate's
time is from the POST to the moment in which a client that polls sees COMPLETE; the client looks at each of its tasks
every `--poll` seconds times the tasks in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lean_http import LeanClient
from processes import cpu_seconds, named
from standing import Standing, standing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.beds.images import BUSYBOX, load_images

TERMINAL = ("COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED")
COPIED = ("NetworkMode", "NanoCpus", "Memory", "MemorySwap", "PidsLimit", "ShmSize", "LogConfig", "CapAdd", "CapDrop")
SETTINGS = {"runtime": {"engine": "docker"}, "agent": {"cpus": 64, "ram_gb": 256}}
MEGABYTE = 1_000_000


@dataclass
class Timed:
    """What one side did in all of its rounds."""

    latencies: list[float] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """From the POST (or `create`) until the command began."""
    rates: list[float] = field(default_factory=list)
    """Tasks a second, one number a round."""
    cpu: dict[str, float] = field(default_factory=dict)
    count: int = 0
    polls: int = 0


class Tesgate:
    """Tasks through the gateway."""

    def __init__(self, found: Standing, *, image: str, poll: float, kind: str) -> None:
        self._standing, self._image, self._poll, self._kind = found, image, poll, kind
        self._client = LeanClient(host=found.host, port=found.port, prefix="/ga4gh/tes/v1")
        self._numbers = itertools.count()
        self.polls = 0
        (found.files / "in").write_bytes(os.urandom(MEGABYTE))

    async def close(self) -> None:
        await self._client.close()

    def document(self, number: int) -> dict[str, Any]:
        if self._kind == "true":
            return {"executors": [{"image": self._image, "command": ["true"]}]}
        files = self._standing.files
        return {
            "inputs": [{"path": "/work/in", "url": (files / "in").as_uri()}],
            "outputs": [{"path": "/work/out", "url": (files / f"out-{number}").as_uri()}],
            "executors": [{"image": self._image, "command": ["cp", "/work/in", "/work/out"]}],
        }

    async def one(self, parallel: int) -> tuple[float, float]:
        """Seconds until COMPLETE was seen, and until the command began."""
        number = next(self._numbers)
        began, wall = time.perf_counter(), time.time()
        answer = await self._client.post("/tasks", self.document(number))
        assert answer.status == 200, answer.body
        task_id = answer.json()["id"]
        while True:
            await asyncio.sleep(self._poll * parallel)
            self.polls += 1
            state = (await self._client.get(f"/tasks/{task_id}")).json()["state"]
            if state in TERMINAL:
                break
        took = time.perf_counter() - began
        full = (await self._client.get(f"/tasks/{task_id}?view=FULL")).json()
        assert state == "COMPLETE", (state, full, self._standing.agent_log())
        if self._kind != "true":
            out = self._standing.files / f"out-{number}"
            assert out.stat().st_size == MEGABYTE
            out.unlink()
        return took, seconds(full["logs"][0]["logs"][0]["start_time"]) - wall

    def cpu(self) -> dict[str, float]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "gateway": cpu_seconds(self._standing.gateway, alone=True),
            "agent": cpu_seconds(self._standing.agent),
            "PostgreSQL": cpu_seconds(self._standing.postgres),
            "client": own.ru_utime + own.ru_stime,
            "engine": sum(cpu_seconds(pid, alone=True) for name in ("dockerd", "containerd") for pid in named(name)),
        }

    async def settled(self) -> None:
        """Until everything of earlier tasks is removed: it must not fall into the other side's round."""
        while os.listdir(self._standing.data / "agent" / "attempts"):
            await asyncio.sleep(0.02)


class Bare:
    """The same containers on the engine's API."""

    def __init__(self, *, socket: str, image: str, kind: str, directory: Path, like: dict[str, Any]) -> None:
        self._engine = LeanClient(path=socket)
        self._image, self._kind, self._directory, self._like = image, kind, directory, like
        self._numbers = itertools.count()
        self._removals: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        await self.settled()
        await self._engine.close()

    async def one(self, parallel: int) -> tuple[float, float]:
        del parallel
        number = next(self._numbers)
        place, out = self._directory / f"bare-{number}", self._directory / f"bare-out-{number}"
        host = dict(self._like)
        began, wall = time.perf_counter(), time.time()
        if self._kind == "true":
            command = ["true"]
        else:
            place.mkdir()
            await copy(self._directory / "in", place / "in")
            host["Mounts"] = [{"Type": "bind", "Source": str(place), "Target": "/work"}]
            command = ["cp", "/work/in", "/work/out"]
        made = await self._engine.post("/containers/create", {"Image": self._image, "Cmd": command, "HostConfig": host})
        assert made.status == 201, made.body
        name = made.json()["Id"]
        await self._engine.post(f"/containers/{name}/start")
        ended = await self._engine.post(f"/containers/{name}/wait")
        assert ended.json()["StatusCode"] == 0
        if self._kind != "true":
            await copy(place / "out", out)
        took = time.perf_counter() - began
        state = (await self._engine.get(f"/containers/{name}/json")).json()["State"]
        removal = asyncio.create_task(self._remove(name, place, out))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return took, seconds(state["StartedAt"]) - wall

    async def _remove(self, name: str, place: Path, out: Path) -> None:
        await self._engine.delete(f"/containers/{name}?force=1&v=1")
        shutil.rmtree(place, ignore_errors=True)
        out.unlink(missing_ok=True)

    async def settled(self) -> None:
        while self._removals:
            await asyncio.gather(*self._removals)


async def copy(source: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec("cp", str(source), str(target))
    assert await process.wait() == 0


def seconds(text: str) -> float:
    return datetime.fromisoformat(text[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()


async def container_like(found: Standing, engine: LeanClient, image: str) -> dict[str, Any]:
    """What the engine says of a container of tesgate's: the bare ones get the same."""
    client = LeanClient(host=found.host, port=found.port, prefix="/ga4gh/tes/v1")
    document = {"executors": [{"image": image, "command": ["sleep", "600"]}]}
    task_id = (await client.post("/tasks", document)).json()["id"]
    while True:
        query = quote(json.dumps({"label": [f"tesgate.task={task_id}"]}))
        listed = (await engine.get(f"/containers/json?filters={query}")).json()
        if listed:
            break
        await asyncio.sleep(0.05)
    host = (await engine.get(f"/containers/{listed[0]['Id']}/json")).json()["HostConfig"]
    await client.post(f"/tasks/{task_id}:cancel")
    while (await client.get(f"/tasks/{task_id}")).json()["state"] not in TERMINAL:
        await asyncio.sleep(0.05)
    await client.close()
    return {name: host[name] for name in COPIED if host.get(name) is not None}


async def round_of(one: Callable[[int], Awaitable[tuple[float, float]]], parallel: int, count: int, to: Timed) -> None:
    """`count` tasks, `parallel` of them at any time."""
    left = iter(range(count))

    async def line() -> None:
        for _ in left:
            took, started = await one(parallel)
            to.latencies.append(took)
            to.starts.append(started)

    began = time.perf_counter()
    await asyncio.gather(*(line() for _ in range(parallel)))
    to.rates.append(count / (time.perf_counter() - began))
    to.count += count


async def side_by_side(tesgate: Tesgate, bare: Bare, *, parallel: int, rounds: int, count: int) -> tuple[Timed, Timed]:
    ours, theirs = Timed(), Timed()
    for number in range(rounds):
        # A B B A: neither side is always the first.
        for side in ("bare", "tesgate") if number % 2 else ("tesgate", "bare"):
            if side == "bare":
                await round_of(bare.one, parallel, count, theirs)
                await bare.settled()
            else:
                before, polls = tesgate.cpu(), tesgate.polls
                await round_of(tesgate.one, parallel, count, ours)
                await tesgate.settled()
                ours.polls += tesgate.polls - polls
                for name, spent in tesgate.cpu().items():
                    ours.cpu[name] = ours.cpu.get(name, 0.0) + spent - before[name]
    return ours, theirs


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all do not exceed; with few values p99 is the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(kind: str, parallel: int, ours: Timed, theirs: Timed) -> str:
    def both(of: Callable[[Timed], float]) -> tuple[float, float, float]:
        return of(ours), of(theirs), of(ours) / of(theirs)

    cells = [f"{kind:8}", f"{parallel:3}"]
    for share in (0.5, 0.99):
        a, b, ratio = both(lambda timed, share=share: percentile(timed.latencies, share) * 1000)  # type: ignore[misc]
        cells.append(f"{a:6.0f} {b:6.0f} {ratio:5.2f}")
    a, b, ratio = both(lambda timed: statistics.median(timed.rates))
    cells.append(f"{a:6.2f} {b:6.2f} {ratio:5.2f}")
    begun = [percentile(side.starts, share) * 1000 for side in (ours, theirs) for share in (0.5, 0.99)]
    cells.append(" ".join(f"{each:5.0f}" for each in begun))
    return " | ".join(cells)


def cpu_row(kind: str, parallel: int, ours: Timed) -> str:
    each = {name: spent / ours.count * 1000 for name, spent in ours.cpu.items()}
    without = sum(spent for name, spent in each.items() if name != "engine")
    cells = " ".join(f"{each[name]:10.1f}" for name in ("gateway", "agent", "PostgreSQL", "client"))
    polls = ours.polls / ours.count
    return f"{kind:8} | {parallel:3} | {cells} | {without:8.1f} | {each['engine']:8.1f} | {polls:5.1f}"


async def measure(given: argparse.Namespace, found: Standing) -> None:
    engine = LeanClient(path=given.socket)
    like = await container_like(found, engine, given.image)
    version = (await engine.get("/version")).json()
    print(f"engine {version['Version']}, containers as the engine reports tesgate's: {like}")
    print(f"load average {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {os.cpu_count()} cores\n")
    table, cpu = [], []
    for kind in given.kinds:
        tesgate = Tesgate(found, image=given.image, poll=given.poll, kind=kind)
        bare = Bare(socket=given.socket, image=given.image, kind=kind, directory=found.files, like=like)
        try:
            for side in (tesgate.one, bare.one):
                await round_of(side, 1, 2, Timed())  # the first ones warm the caches
            for parallel in given.parallel:
                count = max(parallel * given.each, given.least)
                ours, theirs = await side_by_side(tesgate, bare, parallel=parallel, rounds=given.rounds, count=count)
                table.append(row(kind, parallel, ours, theirs))
                cpu.append(cpu_row(kind, parallel, ours))
        finally:
            await bare.close()
            await tesgate.close()
    await engine.close()
    print(
        "times in ms, tasks a second: each tesgate, bare, ratio; until the command began: tesgate p50 p99, bare p50 p99"
    )
    print(f"{'load':8} | at  | {'p50 of a task':20} | {'p99 of a task':20} | {'tasks a second':20} | command began")
    print("\n".join(table))
    print("\nCPU in ms a task (engine: dockerd and containerd, with whatever else uses them now)")
    print("load     | at  |    gateway      agent PostgreSQL     client | together | engine   | polls")
    print("\n".join(cpu))
    print(f"\nload average at the end {' '.join(f'{load:.1f}' for load in os.getloadavg())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds of few tasks: a minute instead of many")
    parser.add_argument("--rounds", type=int, help="of each side, in turns")
    parser.add_argument("--each", type=int, help="tasks a round for each of those at once")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--kinds", nargs="+", default=["true", "1 MB"], choices=["true", "1 MB"])
    parser.add_argument("--image", default=BUSYBOX, help="that of the tests, made on this machine, if it is not there")
    parser.add_argument("--socket", default="/var/run/docker.sock")
    parser.add_argument("--poll", type=float, default=0.02, help="seconds between looks, for one task")
    given = parser.parse_args()
    given.rounds = given.rounds or (2 if given.quick else 6)
    given.each = given.each or (2 if given.quick else 4)
    given.least = 3 if given.quick else 10
    if given.image == BUSYBOX:
        load_images(given.socket)
    with standing(settings=SETTINGS) as found:
        asyncio.run(measure(given, found))


if __name__ == "__main__":
    main()
