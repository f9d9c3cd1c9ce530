"""A house for steps: one attempt directory and one real runtime, the same for every runtime."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import pytest_asyncio

from tesgate.runner.runtime.base import Bind, Runtime, StepSpec, StepStatus
from tesgate.runner.runtime.bubblewrap import BubblewrapRuntime
from tesgate.runner.runtime.docker import DockerRuntime
from tests.beds.images import BUSYBOX

_numbers = itertools.count(1)


@dataclass
class House:
    kind: str
    runtime: Runtime
    attempt: Path
    another: Callable[[], Runtime]
    """A further runtime on the same engine and records: an agent that was started again."""
    prefix: str
    image: str = BUSYBOX
    started: list[str] = field(default_factory=list)

    def spec(self, script: str = "", *, argv: list[str] | None = None, step: int | str = 0, **more: Any) -> StepSpec:
        (self.attempt / "rw" / "work").mkdir(parents=True, exist_ok=True)
        os.chmod(self.attempt / "rw" / "work", 0o777)
        control = self.attempt / "steps" / str(step)
        control.mkdir(parents=True, exist_ok=True)
        name = f"{self.prefix}{step}"
        self.started.append(name)
        more.setdefault("network", "none")
        more["binds"] = [Bind(str(self.attempt / "rw/work"), "/work"), *more.get("binds", [])]
        return StepSpec(
            name=name,
            image=more.pop("image", self.image),
            argv=argv if argv is not None else ["/bin/busybox", "sh", "-c", script],
            root=str(self.attempt / "rw"),
            control=str(control),
            **more,
        )

    async def run(self, spec: StepSpec, seconds: float = 60.0) -> StepStatus:
        await self.runtime.start(spec)
        return await self.end(spec.name, seconds)

    async def end(self, name: str, seconds: float = 60.0) -> StepStatus:
        async def over() -> StepStatus | None:
            status = await self.runtime.inspect(name)
            return None if status.running else status

        status: StepStatus = await until(over, seconds)
        return status

    def out(self, name: str = "out") -> str:
        return (self.attempt / "rw/work" / name).read_text()

    async def appears(self, name: str) -> None:
        async def there() -> bool:
            return (self.attempt / "rw/work" / name).exists()

        await until(there)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = await condition()
        if found:
            return found
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await anyio.sleep(0.02)


async def next_name(runtime: Runtime, wanted: str, ready: anyio.Event, found: list[str]) -> None:
    """Listen until `wanted` ends; `ready` is set at the first sign, everything heard goes to `found`."""
    async with aclosing(runtime.ended()) as names:
        async for name in names:
            found.append(name)
            ready.set()
            if name == wanted:
                return


ROOTFUL = (
    "runs_argv|started_once|stop_|remove_kills|ended_wakes_for|out_of_memory|processes_are|cpu_limit|odd_characters|"
    "an_out_of_memory_kill|few_capabilities"
)
"""Of the contract's tests, those that root's Podman has in every run: what an ordinary user's cannot hold, and a step's
life. TESGATE_TEST_PODMAN=podman,podman_rootless has them all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "podman" not in os.environ.get("TESGATE_TEST_PODMAN", "").split(","):
        items[:] = [item for item in items if "[podman]" not in item.name or re.search(ROOTFUL, item.name)]


KINDS = [
    pytest.param("docker", marks=pytest.mark.bed("docker")),
    pytest.param("podman", marks=pytest.mark.bed("podman")),
    pytest.param("podman_rootless", marks=pytest.mark.bed("podman_rootless")),
    pytest.param("bubblewrap", marks=pytest.mark.bed("bubblewrap")),
]


async def keep_house(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    bed = request.getfixturevalue(kind)
    prefix = f"tg-test-{os.getpid()}-{next(_numbers)}-"
    if kind.startswith("podman"):  # an ordinary user's service does not come through pytest's 0700
        tmp_path = bed.place / prefix.rstrip("-")
    attempt = tmp_path / "attempts" / prefix.rstrip("-")
    attempt.mkdir(parents=True)

    def another() -> Runtime:
        if kind != "bubblewrap":
            return DockerRuntime(identity={"tesgate.instance": prefix}, socket=bed.socket)
        return BubblewrapRuntime(state=str(tmp_path / "bubblewrap"), program=bed.program)

    runtime = another()
    house = House(kind=kind, runtime=runtime, attempt=attempt, another=another, prefix=prefix)
    await runtime.probe()
    await runtime.prepare(house.image, "never")
    yield house
    for name in dict.fromkeys(house.started):
        await runtime.remove(name)
    left = await runtime.names(prefix)
    await runtime.aclose()
    assert not left


@pytest_asyncio.fixture(params=KINDS)
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    async for one in keep_house(request.param, request, tmp_path):
        yield one


@pytest_asyncio.fixture
async def docker_house(docker: Any, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    async for one in keep_house("docker", request, tmp_path):
        yield one


@pytest_asyncio.fixture
async def sandbox_house(bubblewrap: Any, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[House]:
    async for one in keep_house("bubblewrap", request, tmp_path):
        yield one
