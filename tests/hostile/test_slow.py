"""Clients that keep the gateway waiting, and crowds: on a gateway that waits for 1.5 s and takes 40 connections."""

from __future__ import annotations

import contextlib
import socket
import time

import psutil
import pytest

from tests.hostile.gateways import TES, Gateways, answers_of, exchange, expect_error, opened, read_all, request

HEAD = f"POST {TES}/tasks HTTP/1.1\r\nHost: x\r\n".encode()
CLOSED = 25.0
"""Seconds within which the gateway must have let go of a client; it should after two or three."""

SLOW = {
    "half a first line": b"GET /ga4gh",
    "half a head": request()[:-2],
    "no body": HEAD + b"Content-Length: 100\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
    "no last chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "body of an upgrade": HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 100\r\n\r\n{",
    "second request": request(close=False) + b"GET /ga4",
}


@pytest.mark.parametrize("name", SLOW)
def test_who_does_not_go_on_is_let_go(gateways: Gateways, name: str) -> None:
    answers = exchange(gateways.hasty.port, SLOW[name])
    expect_error(answers[-1], 408)
    assert [answer.status for answer in answers[:-1]] == [200] * (len(answers) - 1)


@pytest.mark.parametrize("name", ["half a first line", "half a head", "half a body", "no last chunk"])
def test_who_goes_on_drop_by_drop_is_let_go(gateways: Gateways, name: str) -> None:
    """A byte now and then must not buy more time."""
    drop = b"1\r\nx\r\n" if name == "no last chunk" else b"x"
    with opened(gateways.hasty.port) as connection:
        connection.sendall(SLOW[name])
        connection.settimeout(0.1)
        received, end = b"", time.monotonic() + CLOSED
        while True:
            assert time.monotonic() < end, "the client is still there"
            with contextlib.suppress(TimeoutError):
                chunk = connection.recv(1 << 16)
                if not chunk:
                    break
                received += chunk
                continue
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(drop)
    expect_error(answers_of(received)[-1], 408)


def test_who_says_nothing_is_let_go(gateways: Gateways) -> None:
    with opened(gateways.hasty.port) as connection:
        assert read_all(connection) == b""


def test_a_body_behind_an_answer_has_no_more_time(gateways: Gateways) -> None:
    """The answer (here: 404) came before the body, and the body never comes."""
    with opened(gateways.hasty.port) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx")
        (answer,) = answers_of(read_all(connection))
    expect_error(answer, 404)


def test_who_does_not_read_is_let_go(gateways: Gateways) -> None:
    """Answers are asked for and never taken: what waits for the client is bounded, in bytes and in time."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", gateways.hasty.port))
        connection.settimeout(0.5)
        more, end = request(path="/openapi.json", close=False) * 50, time.monotonic() + CLOSED
        while True:
            assert time.monotonic() < end, "the client is still there"
            try:
                connection.sendall(more)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                return


def test_a_crowd_takes_no_more_than_there_is(gateways: Gateways) -> None:
    """Idle connections make room for new ones; where all are busy, the new one is told so. Nothing is left behind."""
    port, process = gateways.hasty.port, psutil.Process(gateways.hasty.process.pid)  # type: ignore[union-attr]
    with contextlib.ExitStack() as stack:
        idle = []
        for number in range(60):
            idle.append(stack.enter_context(opened(port)))
            idle[-1].sendall(request(close=False))
            received = b""
            while not received.endswith(b"}"):
                received += (piece := idle[-1].recv(1 << 16))
                assert piece, (number, received)
            assert answers_of(received)[0].status == 200, number
        assert process.num_fds() < 40 + 40
        # The first of them had to go, the last are still served.
        assert read_all(idle[0]) == b""
        idle[-1].sendall(request())
        assert answers_of(read_all(idle[-1]))[0].status == 200

        busy = []
        for _ in range(80):
            busy.append(stack.enter_context(opened(port)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                busy[-1].sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        statuses = sorted({answer.status for connection in busy for answer in answers_of(read_all(connection))})
        assert statuses == [408, 503]
    end = time.monotonic() + CLOSED
    while process.num_fds() > 40:
        assert time.monotonic() < end, process.num_fds()
        time.sleep(0.05)
    (answer,) = exchange(port, request())
    assert answer.status == 200


def test_a_crowd_of_half_open_clients(gateways: Gateways) -> None:
    """Those that vanish without a word (reset) leave nothing, whatever they were at."""
    process = psutil.Process(gateways.open.process.pid)  # type: ignore[union-attr]
    before = process.num_fds()
    pieces = [b"", *SLOW.values(), request(close=False), request(path="/openapi.json", close=False) * 20]
    for number in range(200):
        connection = opened(gateways.open.port)
        connection.sendall(pieces[number % len(pieces)])
        # Closed with data unread, or lingering for no time: a reset and not a FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    end = time.monotonic() + CLOSED
    while process.num_fds() > before + 5:
        assert time.monotonic() < end, (before, process.num_fds())
        time.sleep(0.05)
