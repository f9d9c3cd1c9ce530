"""The client of presigned requests on answers that are HTTP, and on some that are not."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tesgate.runner.transfer.connect import HttpSettings
from tesgate.runner.transfer.s3http import Broken, Connections
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
