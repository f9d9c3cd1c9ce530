"""The gateway's own TLS: real certificates of a real authority, on the real server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from typer.testing import CliRunner

from tesgate.app.guests import LINGERING
from tesgate.app.server import server_of
from tesgate.app.tls import Certificate
from tesgate.cli.failure import Failure
from tesgate.cli.main import app
from tesgate.config import ServerSettings, Settings
from tesgate.errors import ConfigError
from tesgate.runner.gateway import GatewayClient, Unavailable
from tesgate.runner.report import DrainRequest
from tests.authority import Authority


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers what an agent that drains itself is answered, and says how it was asked."""
    await receive()
    body = b'{"hosts": ["%b"]}' % scope["scheme"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(certificate: Certificate, **settings: Any) -> AsyncGenerator[int]:
    """The server of `serve` over that certificate; its port."""
    server = server_of(echo, ServerSettings(**settings), certificate.current)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def serial(port: int, context: ssl.SSLContext) -> str:
    """Of the certificate that is shown to a new client."""
    with socket.create_connection(("127.0.0.1", port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            found = secure.getpeercert()
            assert found is not None
            return str(found["serialNumber"])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


async def test_a_renewed_certificate_is_shown_to_new_clients_and_disturbs_nobody(authority: Authority) -> None:
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    certificate = Certificate(certificate=file, key=key)
    trusting = ssl.create_default_context(cafile=str(authority.file))
    async with served(certificate) as port:
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trusting, trust_env=False) as client:
            assert (await client.get("/")).json() == {"hosts": ["https"]}
            first = await anyio.to_thread.run_sync(serial, port, trusting)
            assert not certificate.look()
            renewed, renewed_key = authority.issue("renewed", "IP:127.0.0.1")
            file.write_bytes(renewed.read_bytes())  # its key is not written yet
            assert not certificate.look()
            assert await anyio.to_thread.run_sync(serial, port, trusting) == first
            key.write_bytes(renewed_key.read_bytes())
            assert certificate.look()
            assert not certificate.look()
            second = await anyio.to_thread.run_sync(serial, port, trusting)
            assert second != first
            assert (await client.get("/")).status_code == 200
            key.write_text("nonsense")
            assert not certificate.look()
            assert await anyio.to_thread.run_sync(serial, port, trusting) == second


async def test_who_does_not_trust_the_authority_says_nothing(authority: Authority, tmp_path: Path) -> None:
    """Neither does an agent, whose token would be lost, nor one that calls by another name."""
    file, key = authority.issue("gateway", "DNS:elsewhere")
    other = Authority(tmp_path / "other", "other")
    token = tmp_path / "token"
    token.write_text("secret")
    async with served(Certificate(certificate=file, key=key)) as port:
        for trusted in (other.file, authority.file):
            agent = GatewayClient(url=f"https://127.0.0.1:{port}", token_file=str(token), ca_file=str(trusted))
            with pytest.raises(Unavailable, match=r"certificate verify failed|match"):
                await agent.drain(DrainRequest("a"))
            agent.close()


async def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    mine, my_key = authority.issue("agent", usage="clientAuth")
    token = tmp_path / "token"
    token.write_text("secret")
    certificate = Certificate(certificate=file, key=key, client_ca=authority.file)
    async with served(certificate) as port:
        url, ca = f"https://127.0.0.1:{port}", str(authority.file)
        known = GatewayClient(url=url, token_file=str(token), ca_file=ca, certificate=str(mine), key=str(my_key))
        assert (await known.drain(DrainRequest("a"))).hosts == ["https"]
        known.close()
        unknown = GatewayClient(url=url, token_file=str(token), ca_file=ca)
        with pytest.raises(Unavailable):
            await unknown.drain(DrainRequest("a"))
        unknown.close()


async def test_an_authority_that_left_the_file_is_trusted_no_longer(authority: Authority, tmp_path: Path) -> None:
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    mine, my_key = authority.issue("agent", usage="clientAuth")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(authority.file.read_bytes())
    certificate = Certificate(certificate=file, key=key, client_ca=trusted)
    token = tmp_path / "token"
    token.write_text("secret")
    async with served(certificate) as port:
        url, ca = f"https://127.0.0.1:{port}", str(authority.file)

        async def drained() -> list[str]:
            agent = GatewayClient(url=url, token_file=str(token), ca_file=ca, certificate=str(mine), key=str(my_key))
            try:
                return list((await agent.drain(DrainRequest("a"))).hosts)
            finally:
                agent.close()

        assert await drained() == ["https"]
        trusted.write_bytes(Authority(tmp_path / "other", "other").file.read_bytes())
        assert certificate.look()
        with pytest.raises(Unavailable):
            await drained()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_clients_without_a_handshake_are_counted_too(authority: Authority, loop: str) -> None:
    """Who says nothing makes room; one that has been answered and keeps its connection does too, at once."""
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    certificate = Certificate(certificate=file, key=key)
    trusting = ssl.create_default_context(cafile=str(authority.file))
    most = 16 + LINGERING  # those beyond 16 are to be told that there is no room

    def crowd(port: int) -> None:
        with contextlib.ExitStack() as stack:
            before = len(os.listdir("/proc/self/fd"))
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(most + 40)]

            def held(ours: int) -> int:
                """By the server, which is this process too; a few are others'."""
                return len(os.listdir("/proc/self/fd")) - before - ours - 5

            deadline = time.monotonic() + 30
            while len(select.select(silent, [], [], 0)[0]) < 40:
                assert held(len(silent)) <= most and time.monotonic() < deadline
                time.sleep(0.05)
            assert held(len(silent)) <= most
            found = shown(port, trusting, stack)
            assert len(found) == 20
            assert held(len(silent) + len(found)) <= most

    async def main() -> None:
        async with served(certificate, max_connections=16, client_timeout=300) as port:
            await anyio.to_thread.run_sync(crowd, port)

    anyio.run(main, backend_options={"use_uvloop": loop == "uvloop"})


def shown(port: int, trusting: ssl.SSLContext, stack: contextlib.ExitStack) -> list[ssl.SSLSocket]:
    """Twenty clients that are answered, each in its turn, and stay."""
    found: list[ssl.SSLSocket] = []
    deadline = time.monotonic() + 30
    while len(found) < 20 and time.monotonic() < deadline:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        with contextlib.suppress(OSError):
            secure = stack.enter_context(trusting.wrap_socket(plain, server_hostname="127.0.0.1"))
            secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            if b"200 OK" in secure.recv(1000):
                found.append(secure)
                continue
        plain.close()
        time.sleep(0.1)
    return found


async def test_a_handshake_has_its_time(authority: Authority) -> None:
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    async with served(Certificate(certificate=file, key=key), client_timeout=1) as port:
        with socket.create_connection(("127.0.0.1", port), 20) as silent:
            assert await anyio.to_thread.run_sync(silent.recv, 1) == b""


async def test_health_is_told_over_tls(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the gateway of the own machine without a word about TLS, also where it wants certificates."""
    file, key = authority.issue("gateway", "IP:127.0.0.1")

    async def told(url: str, *words: str) -> str:
        done = await anyio.to_thread.run_sync(CliRunner().invoke, app, ["health", "--url", url, *words])
        return done.exception.sentence if isinstance(done.exception, Failure) else done.stdout

    async with served(Certificate(certificate=file, key=key)) as port:
        for url in (f"http://127.0.0.1:{port}", f"https://localhost:{port}"):
            assert await told(url) == "healthy\n"
        monkeypatch.setattr("tesgate.cli.health._is_loopback", lambda host: False)
        assert "verify failed" in await told(f"https://127.0.0.1:{port}")
        assert "does not answer" in await told(f"http://127.0.0.1:{port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        assert await told(f"https://127.0.0.1:{port}") == "healthy\n"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file.with_name("none")))
        assert "No such file" in await told(f"https://127.0.0.1:{port}")
    monkeypatch.undo()
    async with served(Certificate(certificate=file, key=key, client_ca=authority.file)) as port:
        assert "asks for clients' certificates" in await told(f"http://127.0.0.1:{port}")
        assert "leave --ready away" in await told(f"https://127.0.0.1:{port}", "--ready")


async def test_the_end_waits_for_no_idle_client(authority: Authority) -> None:
    """A client that keeps a connection does not answer TLS' last word; a plain one is just closed."""
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(authority.file))
    with socket.socket() as plain:
        async with served(Certificate(certificate=file, key=key), shutdown_grace=30) as port:

            def idle() -> ssl.SSLSocket:
                plain.connect(("127.0.0.1", port))
                secure = trusting.wrap_socket(plain, server_hostname="127.0.0.1")
                secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert b"200 OK" in secure.recv(1000)
                return secure

            kept = await anyio.to_thread.run_sync(idle)
            began = time.monotonic()
        assert time.monotonic() - began < 20  # of the 30 that it would wait for an open request
        kept.close()


async def test_a_refused_request_is_answered_over_tls(authority: Authority) -> None:
    file, key = authority.issue("gateway", "IP:127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(authority.file))
    async with served(Certificate(certificate=file, key=key)) as port:

        def refused() -> bytes:
            with socket.create_connection(("127.0.0.1", port), 10) as plain:
                with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                    secure.sendall(b"nonsense\r\n\r\n")
                    return secure.recv(1000)

        assert b"400 Bad Request" in await anyio.to_thread.run_sync(refused)


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    file, key = authority.issue("one", "IP:127.0.0.1")
    _, other = authority.issue("two", "IP:127.0.0.1")
    for certificate, private, said in (
        (file, other, "key values mismatch"),
        (file, tmp_path / "none", "No such file"),
        (key, key, "no start line|PEM|pem"),
    ):
        with pytest.raises(ConfigError, match=said):
            Certificate(certificate=certificate, key=private)


@pytest.mark.parametrize(
    ("server", "more", "said"),
    [
        ({"tls_certificate": "/c"}, {}, "server.tls_key"),
        ({"tls_client_ca": "/c"}, {}, "means nothing without"),
        ({"tls_certificate": "/c", "tls_key": "/k"}, {}, "server.public_url"),
        ({"tls_certificate": "/c", "tls_key": "/k", "public_url": "http://x"}, {}, "https://"),
        ({"tls_certificate": "/c", "tls_key": "/k", "tls_client_ca": "/a"}, {}, "has no certificate"),
        ({"tls_certificate": "/c", "tls_key": "/k", "tls_client_ca": "/a"}, {"agent": {"start": False}}, None),
        ({}, {"pools": [{"name": "a"}]}, "agent.pool"),
        ({}, {"pools": [{"name": "default"}, {"name": "default"}]}, "two pools"),
        ({}, {"pools": [{"name": "default"}]}, None),
    ],
)
def test_settings_that_do_not_go_together(server: dict[str, Any], more: dict[str, Any], said: str | None) -> None:
    lines = Settings(server=server, **more).check()
    assert (lines == []) if said is None else any(said in line for line in lines)
