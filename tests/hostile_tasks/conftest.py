"""One agent for each real runtime, which all hostile tasks of this directory share; at the end nothing may be left."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tesgate.config import Defaults, Limits
from tesgate.model.intake import IntakeRules, accept
from tesgate.model.planning import PlanSettings, build_plan
from tesgate.runner.plan import Plan, RunAs, UrlPolicy
from tests.beds.bubblewrap import Bubblewrap
from tests.beds.docker import Docker
from tests.beds.images import BUSYBOX
from tests.runner.bench import Bench
from tests.runner.gateway_fake import Key, wait_for

RULES = IntakeRules(limits=Limits(), defaults=Defaults())
SECRET = "the-agents-own-secret-4711"
"""In the environment of every agent here: no task may see it."""


class Site:
    """An agent on a runtime, and tasks that go the way of the gateway's own: intake, mount table, plan."""

    def __init__(self, bench: Bench, runtime: str) -> None:
        self.bench, self.runtime, self.root = bench, runtime, bench.root
        self.keys: list[Key] = []

    def url(self, name: str) -> str:
        return (self.root / name).as_uri()

    def write(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        """Make a file in the agent's root."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def document(self, *scripts: str, **task: Any) -> dict[str, Any]:
        """A TES task; each script is an executor."""
        executors = [{"image": BUSYBOX, "command": ["/bin/sh", "-c", script], "workdir": "/work"} for script in scripts]
        return {"executors": executors, "resources": {"cpu_cores": 0.2, "ram_gb": 0.1}, **task}

    def plan(self, document: dict[str, Any], **settings: Any) -> Plan:
        """As the gateway computes it. Raises `BadRequest`."""
        accepted = accept(document, RULES).document
        number = len(self.keys) + 1
        task = f"h{os.getpid()}{self.runtime[0]}{number:05d}"
        settings = {"network": "none", "grace": 2.0, "deployment": "hostile", **settings}
        settings.setdefault("run_as", RunAs())
        settings.setdefault("url_policy", UrlPolicy())
        return build_plan(task, 1, f"tg-hostile-{task}-1", accepted, f"tgt_{task}.1", settings=PlanSettings(**settings))

    def submit(self, document: dict[str, Any], **settings: Any) -> Key:
        key = self.bench.gateway.assign(self.plan(document, **settings))
        self.keys.append(key)
        return key

    def end(self, key: Key, seconds: float = 60.0) -> dict[str, Any]:
        """The last word, which must be one: `finish`."""
        said, body = self.bench.gateway.end_of(key, seconds)
        assert said == "finish", (body, self.bench.log())
        return body

    def run(self, *scripts: str, settings: dict[str, Any] | None = None, **task: Any) -> dict[str, Any]:
        return self.end(self.submit(self.document(*scripts, **task), **(settings or {})))

    def output(self, name: str) -> str:
        return (self.root / name).read_text()


@contextmanager
def _standing(runtime: str, base: Path, options: list[str]) -> Generator[Site]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOSTILE_SECRET", SECRET)
        bench = Bench(base, runtime, image=BUSYBOX, options=options)
        made = Site(bench, runtime)
        try:
            process = bench.start()
            yield made
            assert process.poll() is None, "the agent died\n" + bench.log()
            for key in made.keys:
                bench.gateway.gone_from_have(key)
            wait_for(lambda: not bench.attempts(), f"the scratch to be empty ({bench.attempts()})")
            assert not bench.steps(), "containers are left"
            assert not list(made.root.rglob(".tesgate*"))
            assert bench.gateway.violations == []
            assert "a fault of the agent" not in bench.log_path.read_text(errors="replace")
        finally:
            bench.close()
            bench.remove_containers()


@pytest.fixture(scope="session")
def docker_site(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    """An agent on Docker."""
    with _standing("docker", tmp_path_factory.mktemp("docker"), ["--docker-socket", docker.socket]) as made:
        yield made


@pytest.fixture(scope="session")
def sandbox(bubblewrap: Bubblewrap, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    """An agent on bubblewrap: a sandbox starts in a tenth of a container's time, so most of the tests are here."""
    del bubblewrap
    with _standing("bubblewrap", tmp_path_factory.mktemp("bubblewrap"), []) as made:
        yield made


@pytest.fixture(params=["docker", "bubblewrap"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each of the two."""
    found: Site = request.getfixturevalue({"docker": "docker_site", "bubblewrap": "sandbox"}[request.param])
    return found
