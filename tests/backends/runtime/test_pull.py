"""Pulls, against a scripted engine: this machine has no registry."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import anyio
import pytest

from tesgate.runner.runtime.base import (
    EngineUnavailable,
    ImageRefused,
    RegistryUnreachable,
    RuntimeFault,
    StepRefused,
    StepSpec,
)
from tesgate.runner.runtime.docker import DockerRuntime
from tesgate.runner.runtime.reference import parse_reference
from tesgate.runner.runtime.registry import auth_header, pull_fault
from tests.backends.runtime.wire import ScriptedEngine

DIGEST = "sha256:" + "ab" * 32


class Registry:
    """The script: images are there once they were pulled; a pull says `lines`, and waits for `go` before its end."""

    def __init__(self, lines: list[dict[str, object]], status: int = 200) -> None:
        self.lines = lines
        self.status = status
        self.pulls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.pulled = False
        self.go = threading.Event()
        self.go.set()

    def answer(self, first: str, headers: dict[str, str]) -> tuple[int, list[object]]:
        if "/images/create" in first:
            self.pulls.append(first)
            self.headers.append(headers)
            return self.status, [*[json.dumps(line).encode() + b"\r\n" for line in self.lines], self._end]
        if self.pulled:
            digests = ["registry.example:5000/a/b@" + DIGEST, "other@sha256:" + "00" * 32]
            return 200, [json.dumps({"Id": "sha256:1", "RepoDigests": digests, "Config": None}).encode()]
        return 404, [b'{"message":"No such image"}']

    def _end(self) -> bytes:
        self.go.wait(20)
        self.pulled = True
        return b"\r\n"


NAME = "registry.example:5000/a/b:1"


async def test_a_pull_reads_to_the_end_and_finds_the_digest(tmp_path: Path) -> None:
    registry = Registry([{"status": "Pulling"}, {"status": "Done"}])
    with ScriptedEngine(tmp_path / "s", registry.answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path)
        facts = await runtime.prepare(NAME, "missing")
        assert facts.digest == DIGEST
        assert "fromImage=registry.example%3A5000%2Fa%2Fb&tag=1" in registry.pulls[0]
        assert "x-registry-auth" not in registry.headers[0]
        await runtime.prepare(NAME, "always")
        assert len(registry.pulls) == 2
        await runtime.aclose()


async def test_pulls_of_one_image_are_joined(tmp_path: Path) -> None:
    registry = Registry([{"status": "Pulling"}])
    registry.go.clear()
    with ScriptedEngine(tmp_path / "s", registry.answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(runtime.prepare, NAME, "missing")
            with anyio.fail_after(60):
                while not registry.pulls:
                    await anyio.sleep(0.01)
            registry.go.set()
        assert len(registry.pulls) == 1
        await runtime.aclose()


async def test_a_cancelled_pull_is_taken_over(tmp_path: Path) -> None:
    registry = Registry([{"status": "Pulling"}])
    registry.go.clear()
    with ScriptedEngine(tmp_path / "s", registry.answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path)
        first = anyio.CancelScope()

        async def pull_first() -> None:
            with first:
                await runtime.prepare(NAME, "missing")

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(pull_first)
                while not registry.pulls:
                    await anyio.sleep(0.01)
                group.start_soon(runtime.prepare, NAME, "missing")
                await anyio.sleep(0)
                first.cancel()
                while len(registry.pulls) < 2:
                    await anyio.sleep(0.01)
                registry.go.set()
        assert len(registry.pulls) == 2
        await runtime.aclose()


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (404, "pull access denied for x, repository does not exist or may require 'docker login'", ImageRefused),
        (404, "manifest for x:1 not found: manifest unknown", ImageRefused),
        (500, "unauthorized: authentication required", ImageRefused),
        (200, "no matching manifest for linux/amd64 in the manifest list entries", ImageRefused),
        (500, 'Get "https://r/v2/": dial tcp: lookup r: no such host', RegistryUnreachable),
        (500, "net/http: TLS handshake timeout", RegistryUnreachable),
        (500, "toomanyrequests: You have reached your pull rate limit", RegistryUnreachable),
        (200, "unexpected EOF: EOF", RegistryUnreachable),
        (500, "received unexpected HTTP status: 503 Service Unavailable", RegistryUnreachable),
        (200, "write /var/lib/docker/tmp/x: no space left on device", EngineUnavailable),
        (500, "something nobody thought of", RegistryUnreachable),
    ],
)
async def test_failed_pulls_are_told_apart(tmp_path: Path, status: int, message: str, kind: type[RuntimeFault]) -> None:
    lines: list[dict[str, object]] = [{"message": message}]
    if status == 200:
        lines = [{"status": "Pulling"}, {"errorDetail": {"message": message}, "error": message}]
    registry = Registry(lines, status)
    with ScriptedEngine(tmp_path / "s", registry.answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path)
        with pytest.raises(kind) as caught:
            await runtime.prepare(NAME, "missing")
        assert type(caught.value) is kind
        assert NAME in caught.value.sentence
        await runtime.aclose()


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (500, "mkdir /var/lib/docker/overlay2/x: no space left on device", EngineUnavailable),
        (500, "failed to create task for container: context deadline exceeded", EngineUnavailable),
        (404, "No such container: tg-x-0", EngineUnavailable),
        (400, 'invalid mount config for type "bind": bind source path does not exist: /scratch/x', StepRefused),
        (500, "unable to find user nosuch: no matching entries in passwd file", StepRefused),
        (404, "network nosuch not found", StepRefused),
        (404, "No such image: registry.example:5000/a/b:1", ImageRefused),
    ],
)
async def test_containers_that_cannot_be_made(
    tmp_path: Path, status: int, message: str, kind: type[RuntimeFault]
) -> None:
    def answer(first: str, headers: dict[str, str]) -> tuple[int, list[object]]:
        if "/info" in first:
            return 200, [b'{"NCPU": 2}']
        return status, [json.dumps({"message": message}).encode()]

    with ScriptedEngine(tmp_path / "s", answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path)
        spec = StepSpec(name="tg-x-0", image=NAME, argv=["true"], root="/r/rw", control="/r/steps/0")
        with pytest.raises(kind) as caught:
            await runtime.start(spec)
        assert type(caught.value) is kind
        assert caught.value.sentence.endswith(".")
        await runtime.aclose()


def test_the_images_name_does_not_decide_what_failed() -> None:
    assert isinstance(pull_fault(parse_reference("timeout/denied:1"), 404, "timeout/denied not found"), ImageRefused)


def header_of(tmp_path: Path, auths: object, image: str) -> dict[str, str] | None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": auths, "credsStore": "never-run"}))
    found = auth_header(str(path), parse_reference(image))
    return None if found is None else json.loads(base64.urlsafe_b64decode(found))


def test_credentials(tmp_path: Path) -> None:
    login = base64.b64encode(b"me:se:cret").decode()
    auths = {
        "https://index.docker.io/v1/": {"auth": login},
        "registry.example:5000": {"identitytoken": "tok"},
        "quay.io/team": {"username": "u", "password": "p"},
        "https://plain.example/v2/": {"auth": login},
    }
    hub = {"serveraddress": "https://index.docker.io/v1/", "username": "me", "password": "se:cret"}
    assert header_of(tmp_path, auths, "busybox") == hub
    assert header_of(tmp_path, auths, "docker.io/library/busybox:1") == hub
    assert header_of(tmp_path, auths, NAME) == {"serveraddress": "registry.example:5000", "identitytoken": "tok"}
    assert (header_of(tmp_path, auths, "quay.io/team/x") or {})["username"] == "u"
    assert header_of(tmp_path, auths, "quay.io/other/x") is None
    assert (header_of(tmp_path, auths, "plain.example/x") or {})["password"] == "se:cret"
    assert header_of(tmp_path, auths, "example/x@" + DIGEST) == hub


async def test_credentials_are_sent_and_never_told(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {"registry.example:5000": {"auth": base64.b64encode(b"me:hidden").decode()}}}))
    registry = Registry([{"message": "unauthorized"}], 500)
    with ScriptedEngine(tmp_path / "s", registry.answer) as engine:
        runtime = DockerRuntime(identity={"a": "b"}, socket=engine.path, auth_file=str(path))
        with pytest.raises(ImageRefused) as caught:
            await runtime.prepare(NAME, "always")
        assert json.loads(base64.urlsafe_b64decode(registry.headers[0]["x-registry-auth"]))["password"] == "hidden"
        assert "hidden" not in caught.value.sentence
        for content in ('{"auths": {"registry.example:5000": {"auth": "hidden!"}}}', "[hidden", '{"auths": [1]}'):
            path.write_text(content)
            with pytest.raises(ImageRefused, match="not of the form") as caught:
                await runtime.prepare(NAME, "always")
            assert "hidden" not in caught.value.sentence
        path.unlink()
        with pytest.raises(ImageRefused, match="does not exist"):
            await runtime.prepare(NAME, "always")
        await runtime.aclose()


@pytest.mark.parametrize(
    ("text", "domain", "repository", "wanted"),
    [
        ("busybox", "docker.io", "library/busybox", "latest"),
        ("biocontainers/samtools:v1.9", "docker.io", "biocontainers/samtools", "v1.9"),
        ("quay.io/a/b_c--d.e:T_1", "quay.io", "a/b_c--d.e", "T_1"),
        ("localhost/x", "localhost", "x", "latest"),
        ("host:5000/x@" + DIGEST, "host:5000", "x", DIGEST),
        ("host:5000/x:tag@" + DIGEST, "host:5000", "x", DIGEST),
        ("[::1]:5000/x", "[::1]:5000", "x", "latest"),
        ("a/b/c/d", "docker.io", "a/b/c/d", "latest"),
        ("Registry.Example/x", "Registry.Example", "x", "latest"),
    ],
)
def test_references(text: str, domain: str, repository: str, wanted: str) -> None:
    found = parse_reference(text)
    assert (found.domain, found.repository, found.wanted) == (domain, repository, wanted)
