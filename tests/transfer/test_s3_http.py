"""The client of presigned requests on answers that are HTTP, and on some that are not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tesgate.runner.access import Found, Signed
from tesgate.runner.transfer.connect import HttpSettings
from tesgate.runner.transfer.faults import Stopped
from tesgate.runner.transfer.s3access import presigned
from tesgate.runner.transfer.s3http import Connections
from tesgate.runner.transfer.s3object import REQUESTS, Fetcher, Remote, Renewer
from tesgate.runner.transfer.s3wire import Broken
from tesgate.runner.transfer.threads import Stop


@contextmanager
def saying(*answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives these answers on one connection, whatever is asked, and then ends it; and what was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.settimeout(10)
                for answer in answers:
                    asked.append(connection.recv(65536))
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/key?X-Amz-Signature=secret", asked
        thread.join(10)


def body_of(connections: Connections, url: str) -> tuple[int, bytes]:
    with connections.request("GET", url, {}) as answer:
        room = memoryview(bytearray(3))
        data = b""
        while count := answer.read_into(room):
            data += room[:count]
        return answer.status, data


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections(settings=HttpSettings(read_timeout=5.0), stop=Stop())
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello", 200, b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", 200, b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nchun\r\n2;x=y\r\nks\r\n0\r\nTrailer: x\r\n\r\n",
            200,
            b"chunks",
        ),
    ],
)
def test_an_answer(connections: Connections, answer: bytes, status: int, body: bytes) -> None:
    with saying(answer) as (url, asked):
        assert body_of(connections, url) == (status, body)
        assert asked[0].startswith(b"GET /key?X-Amz-Signature=secret HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_no_answer(connections: Connections, answer: bytes) -> None:
    with saying(answer) as (url, _), pytest.raises(Broken) as caught:
        body_of(connections, url)
    assert "secret" not in str(caught.value) + repr(caught.value.__dict__)


def test_a_connection_is_kept(connections: Connections) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"
    with saying(one, one, one) as (url, asked):
        assert [body_of(connections, url)[1] for _ in range(3)] == [b"1"] * 3
        assert len(asked) == 3


@pytest.mark.parametrize("url", ["http://h/a b", "http://h/\r\nX: y", "ftp://h/", "http:///x", "http://u:p@h/", "h"])
def test_what_is_no_request(connections: Connections, url: str) -> None:
    with pytest.raises(Broken, match="the gateway gave"), connections.request("GET", url, {}):
        pass
    with pytest.raises(Broken, match="cannot be sent"), connections.request("GET", "http://h/", {"a": "b\r\nc: d"}):
        pass


def test_a_body_is_not_sent_beyond_the_lease(connections: Connections) -> None:
    """Where the store reads nothing, though it may be silent for longer."""
    connections.settings = HttpSettings(read_timeout=600.0)
    end = time.monotonic() + 0.2
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts in its backlog, and reads nothing
        url = f"http://127.0.0.1:{server.getsockname()[1]}/key"
        body = bytes(64 << 20)
        with pytest.raises(Broken, match="took no more bytes"):
            with connections.request("PUT", url, {}, body, lease=lambda: end - time.monotonic()):
                pass


class _Nothing(Renewer):
    def renew(self, remote: Remote, stop: Stop) -> Found:
        raise AssertionError("a fresh request is not renewed")


def fetcher(connections: Any) -> Fetcher:
    settings = HttpSettings(read_timeout=20.0, first_pause=0.01, max_pause=0.02)
    return Fetcher(connections=connections, renewer=_Nothing(), settings=settings, stop=connections.stop)


def remote(url: str) -> Remote:
    return Remote("s3://b/k", None, None, {}, presigned(Signed("GET", url, {}, 3600.0), time.monotonic()))


def test_an_object_of_unknown_size_goes_on_where_it_was_cut(connections: Connections, tmp_path: Path) -> None:
    first, rest = bytes(300_000), b"the rest"
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (len(first) + 1) + first,
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 300000-300007/*\r\nContent-Length: 8\r\n\r\n" + rest,
    ]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                with server.accept()[0] as connection:
                    connection.settimeout(10)
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with (tmp_path / "x").open("w+b") as file:
            url = f"http://127.0.0.1:{server.getsockname()[1]}/key"
            assert fetcher(connections).fetch(remote(url), file.fileno()) == 300_008
        thread.join(10)
    assert (tmp_path / "x").read_bytes() == first + rest


def test_requests_at_a_time_are_bounded(tmp_path: Path) -> None:
    """However many objects are fetched at once; whoever waits for a turn is woken by a stop."""

    class Held:
        def __init__(self) -> None:
            self.stop = Stop()
            self.release = threading.Event()
            self.began: list[str] = []

        @contextmanager
        def request(self, method: str, url: str, headers: dict[str, str]) -> Iterator[None]:
            self.began.append(url)
            assert self.release.wait(20)
            self.stop.check()
            yield

    held = Held()
    made = fetcher(held)

    def fetch() -> None:
        with (tmp_path / "x").open("w+b") as file, pytest.raises(Stopped):
            made.fetch(remote("http://h/"), file.fileno())

    threads = [threading.Thread(target=fetch) for _ in range(REQUESTS)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(held.began) < REQUESTS:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.stop.set()
    fetch()
    held.release.set()
    for thread in threads:
        thread.join(10)
    assert len(held.began) == REQUESTS
