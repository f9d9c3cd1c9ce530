"""Real gateways for hostile clients, and clients that write their own bytes."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio

from tesgate.auth.attempt_tokens import AttemptTokens
from tesgate.auth.tokens import hash_token, make_token
from tesgate.store.database import Database
from tesgate.store.tokens import TokenStore
from tests.beds.postgres import Server
from tests.replicas.fleet import Fleet, Replica, wait_for

__all__ = ["TES", "Answer", "Gateways", "exchange", "expect_error", "opened", "request", "standing", "task"]

TES = "/ga4gh/tes/v1"
DEADLINE = 30.0
"""Seconds after which a test gives up waiting for the gateway's bytes."""

CALM = {"CONTROL__HEARTBEAT": "2", "CONTROL__TRUST_WINDOW": "8", "CONTROL__ADOPT_AFTER": "15"}
PEOPLE = {"alice": "lab", "bob": "lab", "carol": "other", "root": ""}


def task(**fields: Any) -> dict[str, Any]:
    return {"executors": [{"image": "alpine", "command": ["echo", "hello"]}], **fields}


@dataclass
class Gateways:
    """Three replicas of one deployment: without authentication, with tokens, and one that is quick to lose patience."""

    fleet: Fleet
    open: Replica
    guarded: Replica
    hasty: Replica
    tokens: dict[str, str] = field(default_factory=dict)
    """By whose it is: alice, bob (of her group), carol, root; agent, revoked, expired, expired-agent."""

    def attempt_token(self, task_id: str, number: int) -> str:
        """As the gateway gives it to the runner of an attempt."""
        return AttemptTokens(key=self.fleet.key.read_bytes().strip()).mint(task_id, number)

    def complaints(self) -> list[str]:
        """What the gateways wrote into their logs that no client may cause."""
        logs = [(self.fleet.base / f"{name}.log").read_text() for name in self.fleet.replicas]
        # Heartbeats that came late are the machine's doing.
        lines = [line for text in logs for line in text.splitlines() if "no heartbeat" not in line]
        return [line[:2000] for line in lines if re.search(r'"level": ?"(error|critical)"|Traceback', line)]


@contextmanager
def standing(server: Server, base: Path) -> Generator[Gateways]:
    """Start them on a database of their own."""
    name = f"hostile_{os.getpid()}"
    anyio.run(server.run, f"CREATE DATABASE {name} TEMPLATE {server.template} STRATEGY FILE_COPY")
    fleet = Fleet(base, server.url(name), migrate=False)
    try:
        tokens = {who: secrets.token_hex(20) for who in PEOPLE}
        lines = [f"{who}:{tokens[who]}:{group}" for who, group in PEOPLE.items()]
        (base / "tokens").write_text("\n".join(lines).replace(f"{tokens['root']}:", f"{tokens['root']}::admin"))
        tokens |= anyio.run(_make_tokens, server.url(name))
        guard = {"AUTH__TOKENS_FILE": str(base / "tokens"), "AUTH__CACHE_SECONDS": "0"}
        quick = {"SERVER__CLIENT_TIMEOUT": "1.5", "SERVER__MAX_CONNECTIONS": "40", "SERVER__KEEP_ALIVE": "600"}
        begun = fleet.replicas
        begun["open"] = Replica(fleet, "open", **CALM).begin()
        begun["guarded"] = Replica(fleet, "guarded", "--auth", "tokens", **CALM, **guard).begin()
        begun["hasty"] = Replica(fleet, "hasty", "--roles", "api", **CALM, **quick).begin()
        for replica in begun.values():
            _wait_started(replica)
        gateways = Gateways(fleet, *(begun[name].started() for name in ("open", "guarded", "hasty")), tokens)
        yield gateways
        assert all(not replica.is_dead() for replica in fleet.replicas.values())
        assert gateways.complaints() == []
    finally:
        for replica in fleet.replicas.values():
            if not replica.is_dead():
                replica.signal(signal.SIGTERM)  # all at once; `close` waits for each
        fleet.close()
        anyio.run(server.run, f"DROP DATABASE {name} WITH (FORCE)")


def _wait_started(replica: Replica) -> None:
    """Three at once, beside the rest of a suite, may take longer than one alone."""
    out = replica.log.with_suffix(".out")
    wait_for("the gateway to listen", lambda: replica.is_dead() or "listens" in out.read_text(), seconds=100)


async def _make_tokens(url: str) -> dict[str, str]:
    made: dict[str, str] = {}
    async with Database(url, min_size=1, max_size=1, application_name="tests") as database:
        store = TokenStore(database=database)
        for name, kind in (("agent", "agent"), ("revoked", "user"), ("expired", "user"), ("expired-agent", "agent")):
            token = made[name] = make_token("agent" if kind == "agent" else "user")
            assert await store.create(
                name=name,
                kind="agent" if kind == "agent" else "user",
                hash=hash_token(token),
                subject="alice",
                pool="default" if kind == "agent" else None,
                expires=timedelta(days=-1) if name.startswith("expired") else None,
            )
        assert await store.revoke("revoked")
    return made


@dataclass(frozen=True)
class Answer:
    """One answer, as it came over the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, (name, found)
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    method: str = "GET",
    path: str = f"{TES}/service-info",
    *,
    headers: Sequence[str | bytes] = (),
    body: bytes | None = None,
    host: str | None = "127.0.0.1",
    close: bool = True,
) -> bytes:
    """The bytes of a request; what is given is sent as it is."""
    lines = [f"{method} {path} HTTP/1.1".encode("utf-8", "surrogateescape")]
    lines += [f"Host: {host}".encode()] if host is not None else []
    lines += [line if isinstance(line, bytes) else line.encode("utf-8", "surrogateescape") for line in headers]
    lines += [b"Content-Length: %d" % len(body)] if body is not None else []
    lines += [b"Connection: close"] if close else []
    return b"\r\n".join([*lines, b"", b""]) + (body or b"")


def opened(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(port: int, data: bytes, *, methods: Sequence[str] = ()) -> list[Answer]:
    """Send the bytes and read all answers until the gateway closes the connection.

    `methods` are those of the requests, where one is HEAD: its answer has no body.
    """
    with opened(port) as connection:
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused before it had sent everything; the answer may be there
        return answers_of(read_all(connection), methods)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes. TimeoutError if it does not."""
    received = bytearray()
    while True:
        try:
            chunk = connection.recv(1 << 16)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return bytes(received)
        received += chunk


def answers_of(received: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """Every answer must be framed in good form, and nothing may be left over."""
    found: list[Answer] = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        assert end, received[:2000]
        first, *lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 ([1-5]\d\d) [A-Za-z' -]*", first)
        assert match, first
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        assert all(re.fullmatch(r"[a-z0-9-]+", name) for name, _ in headers), headers
        status, fields = int(match[1]), dict(headers)
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        if status < 200:
            received = rest
            continue
        if status == 204 or method == "HEAD":
            body, received = b"", rest
        elif fields.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size, _, rest = rest.partition(b"\r\n")
                piece, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
                body += piece
                if not piece:
                    break
            received = rest
        else:
            length = int(fields["content-length"])
            assert len(rest) >= length
            body, received = rest[:length], rest[length:]
        found.append(Answer(status, headers, body))
    return found


def expect_error(answer: Answer, *statuses: int) -> str:
    """The one shape, in the one kind, with nothing that a browser could take for a page; its message."""
    assert answer.status in statuses, (answer.status, statuses, answer.body[:500])
    assert answer.header("content-type") == "application/json", answer
    assert answer.header("x-content-type-options") == "nosniff", answer
    if answer.body:  # none to HEAD
        found = answer.json()
        assert set(found) == {"msg", "status_code"} and found["status_code"] == answer.status, found
        assert isinstance(found["msg"], str) and found["msg"] and "\n" not in found["msg"], found
        assert len(answer.body) < 4000, len(answer.body)
        msg: str = found["msg"]
        return msg
    return ""
