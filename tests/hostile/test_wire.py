"""Bytes that no well-meant client sends: framing, smuggling, pipelines, heads without end."""

from __future__ import annotations

import json

import pytest

from tests.hostile.gateways import TES, Gateways, answers_of, exchange, expect_error, opened, read_all, request, task

POST = f"POST {TES}/tasks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
BODY = json.dumps(task()).encode()
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
INNER = f"GET {TES}/service-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""What an attacker would like to have taken for a request of its own."""

REFUSED = {
    # Two framings, and which of them counts: the classic shapes of smuggling.
    "CL.TE": POST + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE.CL": POST + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + INNER,
    "TE.TE xchunked": POST + "Transfer-Encoding: chunked\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE xchunked": POST + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
    "TE last is identity": POST + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "TE twice": POST + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "TE vertical tab": POST + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "TE parameter": POST + "Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "TE gzip": POST + "Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
    "CL twice, different": POST + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "CL twice, same": POST + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    **{
        f"CL {value!r}": POST + f"Content-Length: {value}\r\n\r\n{{}}"
        for value in ("2, 2", "+2", "-1", "0x2", "1e1", "9" * 30, "", "\u0662", "2 2")
    },
    "chunk of negative size": POST + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk of no number": POST + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk beyond 64 bits": POST + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "chunk longer than it says": POST + "Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "chunk with a bare LF": POST + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    # Lines that end, go on or begin where they should not.
    "bare LF": INNER.replace("\r\n", "\n"),
    "one bare LF": INNER.replace("\r\n", "\n", 1),
    "bare CR": INNER.replace("Host: x", "Host: x\rX: y"),
    "folded line": INNER.replace("Host: x", "X: y\r\n z\r\nHost: x"),
    "folded first header": INNER.replace("Host: x", " X: y\r\nHost: x"),
    "space before the colon": INNER.replace("Host:", "Host :"),
    "tab in a name": INNER.replace("Host:", "Ho\tst:"),
    "no colon": INNER.replace("Host: x", "Host: x\r\nNothing"),
    "empty name": INNER.replace("Host: x", "Host: x\r\n: y"),
    "NUL in a value": INNER.replace("Host: x", "Host: x\r\nX: a\0b"),
    "control character in a value": INNER.replace("Host: x", "Host: x\r\nX: a\x08b"),
    # First lines.
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": INNER.replace("HTTP/1.1", "HTTP/1.2"),
    "HTTP/11": INNER.replace("HTTP/1.1", "HTTP/11"),
    "lower case": INNER.replace("HTTP/1.1", "http/1.1"),
    "method in lower case": INNER.replace("GET", "get"),
    "method that is none": INNER.replace("GET", "BREW"),
    "tunnel": "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "path without slash": INNER.replace("/ga4gh", "ga4gh"),
    "space in the path": INNER.replace("/service", "/ service"),
    "no path": INNER.replace(f"{TES}/service-info", ""),
    "raw UTF-8 in the path": INNER.replace("/service", "/\u00e9"),
    "control character in the path": INNER.replace("/service", "/\x01"),
    # Whose host it is must be beyond doubt.
    "no host": INNER.replace("Host: x\r\n", ""),
    "two hosts": INNER.replace("Host: x", "Host: x\r\nHost: x"),
    "host with a space": INNER.replace("Host: x", "Host: a b"),
    "host with a path": INNER.replace("Host: x", "Host: a/b"),
    "host with a user": INNER.replace("Host: x", "Host: a@b"),
    "host with HTML": INNER.replace("Host: x", "Host: <b>"),
    "host of other letters": INNER.replace("Host: x", "Host: \u00e9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_http_is_refused_once_and_closes(port: int, name: str) -> None:
    (answer,) = exchange(port, REFUSED[name].encode("utf-8"))
    expect_error(answer, 400)
    assert answer.header("connection") == "close"


def test_other_versions_are_refused(port: int) -> None:
    for line in (INNER.replace("HTTP/1.1", "HTTP/2.0"), "GET /\r\n\r\n"):
        (answer,) = exchange(port, line.encode())
        expect_error(answer, 505)
    (answer,) = exchange(port, INNER.replace("HTTP/1.1", "HTTP/1.0").replace("Host: x\r\n", "").encode())
    assert answer.status == 200


@pytest.mark.parametrize(
    "head",
    [
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: Chunked",
        "TRANSFER-ENCODING: chunked",
    ],
)
def test_chunks(port: int, head: str) -> None:
    for body in (CHUNKED, b"".join(b"1;ext=a\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"):
        (answer,) = exchange(port, (POST + head + "\r\n\r\n").encode() + body)
        assert answer.status == 200, answer


def test_trailers_are_no_headers(gateways: Gateways) -> None:
    head = (POST + "Transfer-Encoding: chunked\r\n\r\n").encode()
    trailers = [
        "Content-Type: text/plain",
        "Origin: http://evil.example",
        f"Authorization: Bearer {gateways.tokens['root']}",
        "Host: evil.example",
        "Idempotency-Key: " + "x" * 300,
    ]
    whole = head + CHUNKED[:-2] + "\r\n".join([*trailers, "", ""]).encode()
    (answer,) = exchange(gateways.open.port, whole)
    assert answer.status == 200, answer
    (answer,) = exchange(gateways.guarded.port, whole)
    expect_error(answer, 401)
    (answer,) = exchange(gateways.open.port, head + CHUNKED[:-2] + b"a: b\r\n" * 20_000 + b"\r\n")
    expect_error(answer, 431)


ENDLESS = {
    "headers": (request(close=False)[:-2], b"a: b\r\n", 431),
    "one header": (request(close=False)[:-2] + b"a: ", b"b" * 50, 431),
    "name of a header": (request(close=False)[:-2], b"b" * 50, 431),
    "path": (b"GET /", b"x" * 50, 414),
    "query": (f"GET {TES}/tasks?".encode(), b"x=y&" * 12, 414),
    "method": (b"", b"G" * 50, 400),
    "empty lines": (b"", b"\r\n" * 50, 431),
    "extension of a chunk": ((POST + "Transfer-Encoding: chunked\r\n\r\n2;").encode(), b"a" * 50, 431),
    "trailer": ((POST + "Transfer-Encoding: chunked\r\n\r\n0\r\na: ").encode(), b"a" * 50, 431),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_ended(port: int, name: str) -> None:
    begin, more, status = ENDLESS[name]
    (answer,) = exchange(port, begin + more * (4_000_000 // len(more)))
    expect_error(answer, status)


def test_a_head_may_be_large(port: int) -> None:
    (answer,) = exchange(port, request(path=f"{TES}/tasks?name_prefix=" + "x" * 40_000))
    assert answer.status == 200
    (answer,) = exchange(port, request(headers=[f"X-{number}: {number}" for number in range(200)]))
    assert answer.status == 200
    (answer,) = exchange(port, request(headers=["Cookie: " + "x" * 30_000]))
    assert answer.status == 200


def test_pipelines_are_answered_in_their_order(port: int) -> None:
    first, second = request(close=False), request("POST", f"{TES}/tasks", body=BODY, close=False)
    answers = exchange(port, first + second + request(path="/nowhere", close=False) + first + request())
    assert [answer.status for answer in answers] == [200, 200, 404, 200, 200]
    assert set(answers[1].json()) == {"id"}


@pytest.mark.parametrize(
    "bad",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        (POST + "Transfer-Encoding: chunked\r\n\r\nzz\r\n").encode(),
        (POST + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX").encode(),
        request(headers=[f"a{number}: b" for number in range(1000)]),
    ],
)
def test_a_bad_request_in_a_pipeline_spoils_no_good_one(port: int, bad: bytes) -> None:
    """The refusal of a later request must never be taken for the answer to an earlier one."""
    good = request("POST", f"{TES}/tasks", body=BODY, close=False)
    for count in (1, 3):
        answers = exchange(port, good * count + bad)
        assert [answer.status for answer in answers[:count]] == [200] * count
        assert len({answer.json()["id"] for answer in answers[:count]}) == count
        for answer in answers[count:]:
            expect_error(answer, 400, 431)


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0", "nonsense"])
@pytest.mark.parametrize("pause", [False, True])
def test_an_upgrade_is_an_ordinary_request(port: int, protocol: str, pause: bool) -> None:
    """Java's client asks for HTTP/2 with its first POST, whose body must not be lost, nor be taken for a request."""
    upgrade = [
        f"Upgrade: {protocol}",
        "Connection: Upgrade, HTTP2-Settings",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ]
    framed = request("POST", f"{TES}/tasks", headers=upgrade, body=BODY, close=False)
    chunked = request("POST", f"{TES}/tasks", headers=[*upgrade, "Transfer-Encoding: chunked"], close=False) + CHUNKED
    smuggled = request("POST", f"{TES}/tasks", headers=upgrade, body=request(close=False), close=False)
    pieces = [framed, chunked, request(headers=upgrade, close=False), framed, smuggled, request()]
    with opened(port) as connection:
        for piece in pieces:
            head, blank, body = piece.partition(b"\r\n\r\n")
            connection.sendall(head + blank)
            if pause and body:
                connection.sendall(body[:1])
                connection.sendall(body[1:])
            else:
                connection.sendall(body)
        answers = answers_of(read_all(connection))
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 400, 200]
    expect_error(answers[4], 400)


def test_expectations(port: int) -> None:
    for words in ("100-continue", "100-CONTINUE", "200-maybe"):
        (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=[f"Expect: {words}"], body=BODY))
        assert answer.status == 200
    too_large = ["Expect: 100-continue", f"Content-Length: {1 << 40}"]
    (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=too_large))
    expect_error(answer, 413)


def test_a_body_that_is_shorter_than_it_says(port: int) -> None:
    """The client hangs up in the middle of its body: no task, and no word about it in the log (`gateways` looks)."""
    key = "Idempotency-Key: shorter"
    for path in (f"{TES}/tasks", "/internal/v1/agents"):
        with opened(port) as connection:
            connection.sendall(request("POST", path, headers=[key, "Content-Length: 4000"]) + BODY)
    with opened(port) as connection:
        connection.sendall((POST + f"{key}\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n").encode() + BODY)
    (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=[key], body=json.dumps(task(name="b")).encode()))
    assert answer.status == 200, "the key is still free: nothing was stored"
