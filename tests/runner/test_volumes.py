"""Roots that are an engine's volumes, while the engine is away and when it comes back."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner import start
from tesgate.runner.report import Root
from tesgate.runner.runtime.base import EngineUnavailable
from tesgate.runner.scratch import Scratch
from tesgate.runner.settings import AgentSettings
from tesgate.runner.volumes import VolumeError, resolve_volumes
from tests.runner.bench import Bench


class _Engine(BaseHTTPRequestHandler):
    """Answers for one version and the volume ``known``; it fails at ``broken``."""

    place = ""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        status, answer = 404, {"message": "no such volume"}
        if name == "version":
            status, answer = 200, {"ApiVersion": "1.41", "MinAPIVersion": "1.24"}
        elif name == "known":
            status, answer = 200, {"Mountpoint": self.place}
        elif name == "broken":
            status, answer = 500, {"message": "shutting down"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return ""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def _serve(socket: str, place: Path) -> _Server:
    server = _Server(socket, type("Here", (_Engine,), {"place": str(place)}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def test_what_is_for_good_and_what_is_not(tmp_path: Path) -> None:
    socket = str(tmp_path / "engine")

    def find(volume: str) -> str | None:
        return resolve_volumes([Root("data", "/nowhere/data", volume=volume)], socket, lambda _: None)[0].real

    with pytest.raises(EngineUnavailable, match="does not answer"):
        find("known")
    server = _serve(socket, tmp_path)
    try:
        assert find("known") == str(tmp_path)
        with pytest.raises(EngineUnavailable, match="shutting down"):
            find("broken")
        with pytest.raises(VolumeError, match="other of the root data does not exist"):
            find("other")
    finally:
        server.shutdown()
        server.server_close()


async def test_volumes_are_offered_once_the_engine_answers(
    bare_bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "PROBE_PATIENCE", 0.0)
    monkeypatch.setattr(start, "AGAIN", 0.05)
    socket, gateway = str(tmp_path / "engine"), bare_bench.gateway
    settings = AgentSettings(
        url=gateway.url,
        token_file=str(bare_bench.token_file),
        scratch=str(bare_bench.scratch),
        runtime="none",
        roots=[Root("plain", str(bare_bench.root)), Root("data", "/nowhere/data", volume="known")],
        docker_socket=socket,
    )

    async def registered(count: int) -> list[str]:
        with anyio.fail_after(20):
            while len(gateway.registrations) < count:
                await anyio.sleep(0.02)
        return [root["name"] for root in gateway.registrations[count - 1]["roots"]]

    async with anyio.create_task_group() as group:
        group.start_soon(start.run_agent, settings)
        assert await registered(1) == ["plain"]
        server = _serve(socket, tmp_path)
        try:
            assert await registered(2) == ["plain", "data"]
        finally:
            server.shutdown()
            server.server_close()
        group.cancel_scope.cancel()


async def test_an_agent_with_attempts_waits_for_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the root they would fail for good."""
    monkeypatch.setattr(start, "PROBE_PATIENCE", 0.0)
    scratch, socket = Scratch(str(tmp_path / "scratch")), str(tmp_path / "engine")
    root = Root("data", "/nowhere/data", volume="known")
    settings = AgentSettings(url="", token_file="", scratch=scratch.root, roots=[root], docker_socket=socket)
    assert await start._roots(settings, scratch) is None
    (tmp_path / "scratch/attempts/tg-a").mkdir()
    tried, real = anyio.Event(), start._resolved

    async def resolved(*given: Any) -> list[Root]:
        try:
            return await real(*given)
        finally:
            tried.set()

    monkeypatch.setattr(start, "_resolved", resolved)
    found: list[Any] = []

    async def look() -> None:
        found.append(await start._roots(settings, scratch))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(look)
            await tried.wait()
            server = _serve(socket, tmp_path)
    server.shutdown()
    server.server_close()
    assert [one.real for one in found[0]] == [str(tmp_path)]
    scratch.close()
