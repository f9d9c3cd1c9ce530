"""Fixtures of the transfer tests: directories that play root and attempt, and a server that misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.plan import Input, Mount, Output, UrlPolicy
from tesgate.runner.report import OutputFile, Root
from tesgate.runner.transfer.stage import HttpSettings, Prepared, Stager
from tests.transfer.http_server import Misbehaving, Server
from tests.transfer.s3_bed import Objects, Stand


class Bed:
    """A root, a directory beside it that is none, and one attempt's scratch directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.base = tmp_path
        self.root = tmp_path / "allowed"
        self.outside = tmp_path / "secret"
        self.sibling = tmp_path / "allowed-sibling"
        self.attempt = tmp_path / "attempt"
        for path in (self.root, self.outside, self.sibling, self.attempt):
            path.mkdir()
        self.rw = self.attempt / "rw"
        self.rw.mkdir()
        self.mounts: list[Mount] = []
        self.notes: list[str] = []
        self.policy = UrlPolicy(allowed_hosts=["127.0.0.1"])
        self.http = HttpSettings(read_timeout=5.0, first_pause=0.01, max_pause=0.05, connect_timeout=5.0)
        self.extra_roots: list[Root] = []

    def stager(self, **more: Any) -> Stager:
        settings: dict[str, Any] = {"http": self.http, "durable": False}
        settings.update(more)
        return Stager(roots=[Root("data", str(self.root)), *self.extra_roots], policy=self.policy, **settings)

    def stage_in(self, *inputs: Input, **more: Any) -> list[str]:
        return anyio.run(self.stager(**more).stage_in, list(inputs), str(self.attempt))

    def stage(self, url: str, **more: Any) -> Path:
        """Stage one input read-only and return where it lies."""
        kind = more.pop("type", "FILE")
        writable = more.pop("writable", False)
        place = ("rw" if writable else "ro") + "/data/thing"
        self.notes = self.stage_in(Input("/data/thing", place, url=url, type=kind, writable=writable), **more)
        return self.attempt / place

    def prepare(self, *outputs: Output, tag: str = "tg-x-1", **more: Any) -> Prepared:
        async def run() -> Prepared:
            return await self.stager(**more).prepare_outputs(list(outputs), self.mounts, str(self.attempt), tag)

        return anyio.run(run)

    def publish(self, prepared: Prepared, lease: Any = lambda: 30.0, **more: Any) -> list[OutputFile]:
        return anyio.run(self.stager(**more).publish, prepared, lease)

    def store(self, *outputs: Output, **more: Any) -> list[OutputFile]:
        prepared = self.prepare(*outputs, **more)
        self.notes = prepared.notes
        return self.publish(prepared, **more)

    def output(self, path: str, url: str, kind: str = "FILE", prefix: str | None = None) -> Output:
        return Output(path, str(self.root / url) if not url.startswith(("/", "file:")) else url, kind, prefix)

    def write(self, path: str, text: str = "text") -> Path:
        """Write what a task would have left at a container path."""
        file = self.rw / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def tree(self, below: Path | None = None) -> dict[str, str | None]:
        """All that lies in the root: text of files, None for directories."""
        base = below or self.root
        return {
            str(path.relative_to(base)): None if path.is_dir() else path.read_text() for path in sorted(base.rglob("*"))
        }


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running.behaviour
        running.behaviour.release.set()
        running.shutdown()
        thread.join(10)


@pytest.fixture(scope="session")
def stands() -> Iterator[dict[str, Stand]]:
    """S3 servers with proxies before them, by name, from the first test on that asks for one."""
    made: dict[str, Stand] = {}
    yield made
    for stand in made.values():
        stand.close()


@pytest.fixture
def objects(request: pytest.FixtureRequest, tmp_path: Path, stands: dict[str, Stand]) -> Objects:
    """An attempt with a bucket, of SeaweedFS where the test names no other server."""
    name = getattr(request, "param", "seaweed")
    if name not in stands:
        stands[name] = Stand(request.getfixturevalue("s3").named(name).url)
    return Objects(tmp_path, stands[name])
