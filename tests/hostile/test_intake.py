"""Bodies, queries and paths of POST and GET that are meant to break something."""

from __future__ import annotations

import gzip
import json
import random
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest

from tests.hostile.gateways import TES, Answer, Gateways, exchange, expect_error, request, task

JSON = "Content-Type: application/json"


def post(port: int, body: bytes | Any, *headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=headers or [JSON], body=data))
    return answer


def get(port: int, path: str) -> Answer:
    (answer,) = exchange(port, request(path=f"{TES}{path}"))
    return answer


def executor(**fields: Any) -> dict[str, Any]:
    return {"executors": [{"image": "alpine", "command": ["true"], **fields}]}


def with_input(path: Any, **fields: Any) -> dict[str, Any]:
    return task(inputs=[{"path": path, "content": "x", **fields}])


def with_output(path: Any, url: str = "/data/x", **fields: Any) -> dict[str, Any]:
    return task(outputs=[{"path": path, "url": url, **fields}])


BAD_PATHS = [
    "",
    "a",
    "./a",
    "../a",
    "/..",
    "/a/../b",
    "/a/..",
    "/a/./../b",
    "//..",
    "/a//../b",
    "/.tesgate",
    "/./.tesgate/x",
]
BAD_PATHS += ["//.tesgate//x", "/proc/self/environ", "/sys/fs", "/dev/shm/x", "/" + "x" * 4096, "/" + "\u00e9" * 2048]
BAD_IMAGES = [
    "",
    "-v /host:/x busybox",
    "--privileged",
    "-",
    "a b",
    "a\tb",
    "a\nb",
    "a\u00a0b",
    "a\u2028b",
    "a\x0bb",
    "\x7fa",
]
BAD_IMAGES += ["a\x01b", "\u3000a", "x" * 70_000]

REFUSED: dict[str, Any] = {
    **{f"image {image[:20]!r}": executor(image=image) for image in BAD_IMAGES},
    **{f"input at {path[:20]!r}": with_input(path) for path in [*BAD_PATHS, "/", "/usr", "/etc", "/tmp"]},
    **{f"output at {path[:20]!r}": with_output(path) for path in [*BAD_PATHS, "/", "/*/**"]},
    **{f"volume at {path[:20]!r}": task(volumes=[path]) for path in [*BAD_PATHS, "/", "/usr/bin", "/etc", "/lib"]},
    **{f"workdir {path[:20]!r}": executor(workdir=path) for path in BAD_PATHS[:4] + BAD_PATHS[4:11] if path},
    **{f"stdout {path[:20]!r}": executor(stdout=path) for path in BAD_PATHS[1:11]},
    **{f"command {command!r}": executor(command=command) for command in ([], [""], "true", [None], [1], [["a"]], {})},
    **{
        f"env {env!r}": executor(env=env) for env in ({"": "x"}, {"a=b": "x"}, {"=": ""}, {"a": 1}, {"a": ["b"]}, ["a"])
    },
    "a command beyond the kernel's bound": executor(command=["true", "x" * 2_000_000]),
    "an environment beyond the kernel's bound": executor(env={f"v{n}": "x" * 1000 for n in range(2000)}),
    "a field of 2 MB": task(name="x" * 2_000_000),
    "content of 2 MB": with_input("/in/a", content="x" * 2_000_000),
    "100,000 tags": task(tags={f"tag{n}": "x" for n in range(100_000)}),
    "100,000 executors": {"executors": [{"image": "a", "command": ["b"]}] * 100_000},
    "30,000 inputs": task(inputs=[{"path": f"/in/{n}", "content": ""} for n in range(30_000)]),
    "one path twice": task(inputs=[{"path": path, "content": path} for path in ("/in/a", "/in//./a")]),
    "prefix that is none": with_output("/out/*", path_prefix="/ou/t"),
    "prefix that climbs": with_output("/out/*", path_prefix="/out/../etc"),
    "no prefix": with_output("/out/*"),
    "no body": b"",
    "blanks": b" \r\n\t ",
    "no object": b"[]",
    "a text": b'"task"',
    "null": b"null",
    "two documents": b"{}{}",
    "a comment": b'{"executors": [] /* */}',
    "single quotes": b"{'executors': []}",
    "a comma too many": b'{"executors": [],}',
    "double keys": b'{"executors":[{"image":"a","command":["b"],"image":"-v"}]}',
    "double keys by escape": b'{"executors":[{"image":"a","command":["b"],"im\\u0061ge":"c"}]}',
    "double keys in what is ignored": b'{"executors":[{"image":"a","command":["b"]}],"logs":{"a":1,"a":2}}',
    "100,000 levels of lists": b"[" * 100_000,
    "100,000 levels, closed": b'{"executors":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 levels of objects": b'{"a":' * 100_000,
    "500 levels where it is ignored": b'{"executors":[{"image":"a","command":["b"]}],"x":'
    + b"[" * 500
    + b"]" * 500
    + b"}",
    **{
        f"cpu_cores {word[:12]}": b'{"executors":[{"image":"a","command":["b"]}],"resources":{"cpu_cores":%b}}'
        % word.encode()
        for word in (
            "NaN",
            "Infinity",
            "-Infinity",
            "1e999",
            "-1",
            "0",
            "-0.0",
            "1e-400",
            "9" * 400,
            "9" * 5000,
            "01",
            "+1",
            "1.",
        )
    },
    "exponent without end": b'{"executors":[{"image":"a","command":["b"]}],"resources":{"ram_gb":1e'
    + b"9" * 9000
    + b"}}",
    "a raw control character": b'{"executors":[{"image":"a","command":["b\x01"]}]}',
    "a raw NUL": b'{"executors":[{"image":"a","command":["b\x00"]}]}',
    **{
        f"{word} in {where}": template % word.encode()
        for word in ("\\u0000", "\\ud800", "\\udfff", "\\ude00\\ud83d")
        for where, template in {
            "a command": b'{"executors":[{"image":"a","command":["%b"]}]}',
            "an environment": b'{"executors":[{"image":"a","command":["b"],"env":{"a":"%b"}}]}',
            "a name of an environment": b'{"executors":[{"image":"a","command":["b"],"env":{"%b":"a"}}]}',
            "a tag": b'{"executors":[{"image":"a","command":["b"]}],"tags":{"%b":"x"}}',
            "the name": b'{"executors":[{"image":"a","command":["b"]}],"name":"%b"}',
            "a path": b'{"executors":[{"image":"a","command":["b"]}],"inputs":[{"path":"/in/%b","content":""}]}',
            "what is ignored": b'{"executors":[{"image":"a","command":["b"]}],"other":"%b"}',
        }.items()
    },
    "BOM": b"\xef\xbb\xbf" + json.dumps(task()).encode(),
    **{
        code: json.dumps(task()).encode(code)
        for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-7")
        if code != "utf-7"
    },
    "Latin-1": json.dumps(task(name="\u00e9"), ensure_ascii=False).encode("latin-1"),
    "overlong": b'{"executors":[{"image":"a","command":["\xc0\xaf"]}]}',
    "overlong NUL": b'{"executors":[{"image":"a","command":["\xc0\x80"]}]}',
    "surrogate in UTF-8": b'{"executors":[{"image":"a","command":["\xed\xa0\x80"]}]}',
    "beyond Unicode": b'{"executors":[{"image":"a","command":["\xf4\x90\x80\x80"]}]}',
    "half a character": b'{"executors":[{"image":"a","command":["\xe2\x82"]}]}',
    "random bytes": random.Random(1).randbytes(10_000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(port: int, name: str) -> None:
    msg = expect_error(post(port, REFUSED[name]), 400)
    assert len(msg) < 1500
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in msg), msg


TEXTS = {
    "newlines": "a\r\nX-Evil: b\r\n\r\n<html>",
    "markup": "<script>alert(1)</script>'\"&{{7*7}}${7*7}",
    "SQL": "'; DROP TABLE task; --",
    "shell": "$(reboot) `reboot` ; reboot | reboot && reboot",
    "format": "%s%n{0}{a.__class__}",
    "control": "".join(map(chr, range(1, 32))) + "\x7f\x80\x9b31m",
    "right to left": "\u202egnp.exe\u202c\u2066\u2069\u200f",
    "invisible": "\u200b\u200d\ufeff\u00ad",
    "composed": "\u00e9\u212b\ufb01",
    "decomposed": "e\u0301A\u030afi",
    "beyond the BMP": "\U0001f9ec\U0010ffff",
    "no characters": "\ufffe\uffff\ufdd0",
    "options": "--privileged -v /:/host",
    "traversal": "../../../../etc/passwd",
    "long": "x" * 60_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_come_back_as_they_were(port: int, name: str) -> None:
    """No text means anything to us: it is kept, shown and found again character by character."""
    text = TEXTS[name]
    body = task(
        name=text,
        description=text,
        tags={text[:1000]: text[:2000], "k": text[:2000]},
        inputs=[{"path": "/in/" + text.replace("/", "_")[:1000].replace("..", "__"), "content": text, "name": text}],
        executors=[{"image": "alpine", "command": [text or "a", text], "env": {text.replace("=", "")[:999]: text}}],
    )
    id = post(port, body).json()["id"]
    full = get(port, f"/tasks/{id}?view=FULL").json()
    for field in ("name", "description", "tags", "executors"):
        assert full[field] == body[field]
    assert {**full["inputs"][0], "type": None} == {**body["inputs"][0], "type": None}
    keys = quote(text[:1000], safe="")
    for query in (f"name_prefix={quote(text, safe='')}", f"tag_key={keys}&tag_value={quote(text[:2000], safe='')}"):
        if len(query) < 60_000:
            found = get(port, f"/tasks?{query}").json()["tasks"]
            assert id in [item["id"] for item in found], query


def test_urls_are_kept_and_never_fetched_here(port: int) -> None:
    """What a URL leads to is the agent's matter; none of them may trip the gateway."""
    urls = [
        "http://[",
        "http://[::1",
        "http://a:b:c/",
        "file://",
        "file://other/x",
        "file:///../x",
        "s3://",
        "://",
        "\\\\x\\y",
    ]
    urls += [
        "javascript:alert(1)",
        "data:,x",
        "http://169.254.169.254/latest",
        "http://a\r\nb/",
        "//x",
        "http://" + "a" * 60_000,
    ]
    urls += [
        "http://\u2100.example/",
        "http://xn--/",
        "http://a@b@c/",
        "HTTP://USER:PASS@x/?#",
        "file:///%00",
        "file:///%2e%2e/x",
        "%",
    ]
    for url in urls:
        for body in (task(inputs=[{"path": "/in/a", "url": url}]), with_output("/out/a", url)):
            answer = post(port, body)
            assert answer.status in (200, 400), (url, answer)
            if answer.status == 200:
                full = get(port, f"/tasks/{answer.json()['id']}?view=FULL")
                assert full.status == 200
                found = full.json()
                assert [*found.get("inputs", []), *found.get("outputs", [])][0]["url"] == url
            else:
                expect_error(answer, 400)


def test_a_task_that_cannot_be_explained_stops_nobody(gateways: Gateways) -> None:
    """The reason why a task waits or is refused quotes its paths, in which a URL can have any byte but NUL.

    One such task stopped the dispatcher, and so every task of everybody.
    """
    gateway = gateways.open
    odd = ["file:///%ff%fe/x", "file:///%ed%a0%80", "file:///nowhere/%C0%AF", "file:///nowhere/%1b%5b31m%0a"]
    poison = [post(gateway.port, with_output("/out/a", url)).json()["id"] for url in odd]
    expect_error(post(gateway.port, with_output("/out/a", "file:///%00")), 400)
    expect_error(post(gateway.port, task(inputs=[{"path": "/in/a", "url": "FILE:///a%00b"}])), 400)
    after = post(gateway.port, with_output("/out/a", "file:///nowhere/x")).json()["id"]
    for task_id in (*poison, after):
        ended = gateway.wait(task_id, "SYSTEM_ERROR", seconds=60)
        assert "root" in str(ended["logs"]), ended


def test_much_of_everything_that_is_allowed(port: int) -> None:
    inputs = [{"path": f"/in/{number}/{'x' * 60}", "content": ""} for number in range(10_000)]
    tags = {f"t{number}": "x" * 100 for number in range(1000)}
    answer = post(port, task(inputs=inputs, tags=tags, name="y" * 65_536))
    assert answer.status == 200, answer
    assert len(get(port, f"/tasks/{answer.json()['id']}?view=BASIC").json()["inputs"]) == 10_000


def test_double_keys_are_found_in_time(port: int) -> None:
    """The time to find them must not grow with the square of how many keys there are: it was hours, it is a second."""
    keys = ",".join(f'"{number}":0' for number in range(200_000))
    expect_error(post(port, f'{{{keys},"199999":1}}'.encode()), 400)


KINDS = {
    "text/plain": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/form-data; boundary=x": 415,
    "application/jsonx": 415,
    "application": 415,
    "application/xml+json": 200,
    "application/json; charset=utf-16": 200,  # RFC 8259: JSON has no such parameter, and is UTF-8
    "APPLICATION/JSON ;charset=latin-1": 200,
    "x" * 5000: 415,
    "<b>/<script>": 415,
    "\u00ff\u00fe": 415,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_bodies(port: int, kind: str) -> None:
    (answer,) = exchange(
        port,
        request(
            "POST",
            f"{TES}/tasks",
            headers=[f"Content-Type: {kind}".encode("latin-1")],
            body=json.dumps(task()).encode(),
        ),
    )
    if KINDS[kind] == 200:
        assert answer.status == 200, answer
    else:
        expect_error(answer, KINDS[kind])


def test_packed_bodies_are_not_unpacked(port: int) -> None:
    bomb = gzip.compress(b" " * (16 << 20))
    for encoding, body in (
        ("gzip", bomb),
        ("gzip, identity", bomb),
        ("br", b"x"),
        ("deflate", b"x"),
        ("x" * 3000, b"x"),
    ):
        expect_error(post(port, body, JSON, f"Content-Encoding: {encoding}"), 415)
    expect_error(post(port, bomb, JSON), 400)
    assert post(port, task(), JSON, "Content-Encoding: identity").status == 200


def test_large_bodies(port: int) -> None:
    for size in ((16 << 20) + 1, 1 << 30, 1 << 62):
        data = request("POST", f"{TES}/tasks", headers=[f"Content-Length: {size}"])
        (answer,) = exchange(port, data + b" " * min(size, (16 << 20) + 1))
        expect_error(answer, 413)
    head = request("POST", f"{TES}/tasks", headers=["Transfer-Encoding: chunked"])
    (answer,) = exchange(port, head + b"100000\r\n%b\r\n" % (b" " * (1 << 20)) * 17 + b"0\r\n\r\n")
    expect_error(answer, 413)


BAD_QUERIES = [
    "page_size=0",
    "page_size=-1",
    "page_size=1e3",
    "page_size=+5",
    "page_size=%D9%A1",
    "page_size=2048",
    "page_size=1_0",
]
BAD_QUERIES += [
    "page_size=" + "9" * 5000,
    "page_size=1.0",
    "page_size=%00",
    "state=COMPLETE%00",
    "state=complete",
    "state=NOPE",
]
BAD_QUERIES += ["view=full", "view=%00", "view=FULL%20", "tag_value=x", "tag_key=a&tag_value=b&tag_value=c", "%00=1"]
BAD_QUERIES += ["&".join(f"tag_key=k{number}" for number in range(101)), "name_prefix=%00", "tag_key=%00"]
BAD_QUERIES += [
    f"page_token={token}"
    for token in (
        "x",
        "%00",
        "..",
        "1" * 5000,
        "MTIz",
        "%ff",
        "AAAA====",
        "' OR 1=1",
        "01arz3ndektsv4rrffq69g5fav",
        "-_-_",
    )
]
GOOD_QUERIES = [
    "",
    "&",
    "&&==&",
    "=",
    "unknown=1",
    "unknown=" + "x" * 50_000,
    "a=1&" * 10_000,
    "view=",
    "state=",
    "page_size=",
]
GOOD_QUERIES += [
    "page_size=1&page_size=2",
    "name_prefix=%25",
    "name_prefix=_",
    "name_prefix=%5C",
    "name_prefix=%ff",
    "%ff=%fe",
]
GOOD_QUERIES += [
    "tag_key=%27%3B--",
    "tag_key=",
    "tag_key=a&tag_key=a&tag_value=b",
    "view[]=x",
    "name_prefix=" + "%F0%9F%A7%AC" * 4000,
]


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: query[:30])
def test_queries_that_are_refused(port: int, query: str) -> None:
    expect_error(get(port, f"/tasks?{query}"), 400)


@pytest.mark.parametrize("query", GOOD_QUERIES, ids=lambda query: query[:30])
def test_queries_that_are_answered(port: int, query: str) -> None:
    answer = get(port, f"/tasks?{query}")
    assert answer.status == 200 and set(answer.json()) <= {"tasks", "next_page_token"}, answer


def test_tokens_of_pages(port: int) -> None:
    """One of another filter goes on from the same place; a changed one is refused, and none shows anything new."""
    ids = [post(port, task(name=name)).json()["id"] for name in ("pages-a", "pages-b", "pages-a", "pages-b", "pages-a")]
    token = get(port, "/tasks?page_size=1&name_prefix=pages-a").json()["next_page_token"]
    other = get(port, f"/tasks?page_size=2047&name_prefix=pages-b&page_token={token}").json()
    assert [item["id"] for item in other["tasks"]] == [ids[3], ids[1]]
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        expect_error(get(port, f"/tasks?page_token={changed}"), 400)
    for broken in (token[:-1], token + "A", token + "%3D", token * 2, token[::-1]):
        answer = get(port, f"/tasks?page_size=1&page_token={broken}")
        if broken != token + "%3D":  # padding that was left away
            expect_error(answer, 400)


PATHS = {
    # What a path means after decoding is what counts, once.
    "/tasks/%2e%2e/service-info": 404,
    "/tasks/../service-info": 404,
    "/./tasks": 404,
    "/tasks/": 404,
    "/tasks//": 404,
    "//tasks": 404,
    "/tasks;a=b": 404,
    "/tasks%00": 404,
    "/tasks%2500": 404,
    "/tasks%3fview=FULL": 404,
    "/TASKS": 404,
    "/tasks%20": 404,
    "/tasks/%0d%0aSet-Cookie:%20a=b": 404,
    "/tasks/" + "x" * 50_000: 404,
    "/tasks/%F0%9F%A7%AC": 404,
    "/tasks/%ff%fe%c0%af": 404,
    "/tasks/%ed%a0%80": 404,
    "/tasks/<script>alert(1)</script>": 404,
    "/tasks/%3Cscript%3E": 404,
    "/tasks/:cancel": 404,
    "/tasks/x:cancel": 405,
    "/tasks/x:cancel:cancel": 405,
    "/tasks/x%2Flogs%2F1%2F0%2Fstdout": 404,
    "/tasks/01ARZ3NDEKTSV4RRFFQ69G5FAV": 404,
    "/tasks/x/logs/1/0/..": 400,
    "/tasks/x/logs/0/0/stdout": 400,
    "/tasks/x/logs/1/-1/stdout": 400,
    "/tasks/x/logs/1/0/stdin": 400,
    "/tasks/x/logs/" + "9" * 5000 + "/0/stdout": 400,
    "/tasks/x/logs/1e1/0/stdout": 400,
    "/tasks/x/logs/%D9%A1/0/stdout": 400,
    "/tasks/..%2f..%2f..%2fetc/logs/1/0/stdout": 404,
    "/tasks/%2e%2e/logs/1/0/stdout": 404,
    "/../../../docs/static/../../etc/passwd": 404,
}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
def test_paths(port: int, path: str) -> None:
    msg = expect_error(get(port, path), PATHS[path])
    assert len(msg) < 500
    (answer,) = exchange(port, request("HEAD", f"{TES}{path}"), methods=["HEAD"])
    expect_error(answer, PATHS[path])


def test_static_files_stay_in_their_directory(port: int) -> None:
    names = [
        "",
        ".",
        "..",
        "../openapi.json",
        "%2e%2e/__init__.py",
        "..%2f__init__.py",
        "%2fetc/passwd",
        "/etc/passwd",
        "a%00.css",
    ]
    names += [
        "....//....//etc/passwd",
        "..\\..\\x",
        "swagger-ui.css%00.js",
        "x" * 5000,
        "%ff",
        "\\\\x\\c$",
    ]
    for name in names:
        (answer,) = exchange(port, request(path=f"/docs/static/{name}"))
        expect_error(answer, 404, 405)


METHODS = ["TRACE", "PUT", "DELETE", "PATCH", "PROPFIND", "QUERY", "LINK", "PURGE", "M-SEARCH", "ACL"]


@pytest.mark.parametrize("method", METHODS)
def test_other_methods(port: int, method: str) -> None:
    for path in ("/tasks", "/tasks/x", "/service-info", "/tasks/x:cancel", "/tasks/x/logs/1/0/stdout"):
        (answer,) = exchange(port, request(method, f"{TES}{path}", body=b"x", headers=["Cookie: secret"]))
        expect_error(answer, 405)
        assert answer.header("allow") and b"secret" not in answer.body
    for path in ("/healthz", "/docs", "/internal/v1/agents", "/openapi.json", "/docs/static/swagger-ui.css"):
        (answer,) = exchange(port, request(method, path))
        expect_error(answer, 405)


def test_a_method_is_what_the_first_line_says(port: int) -> None:
    override = ["X-HTTP-Method-Override: POST", "X-HTTP-Method: DELETE", "X-Method-Override: PUT"]
    before = len(get(port, "/tasks?page_size=2047&name_prefix=override").json()["tasks"])
    body = json.dumps(task(name="override")).encode()
    (answer,) = exchange(
        port, request("GET", f"{TES}/tasks?_method=POST&name_prefix=override", headers=override, body=body)
    )
    assert answer.status == 200 and len(answer.json()["tasks"]) == before


def test_options(port: int) -> None:
    for path, allowed in (("/tasks", "GET, HEAD, POST, OPTIONS"), ("/tasks/x:cancel", "POST, OPTIONS")):
        asked = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"]
        (answer,) = exchange(port, request("OPTIONS", f"{TES}{path}", headers=asked))
        assert (answer.status, answer.header("allow")) == (204, allowed)
        assert not [name for name, _ in answer.headers if name.startswith("access-control")]
    (answer,) = exchange(port, request("OPTIONS", "*"))
    expect_error(answer, 404)


def test_headers_of_proxies_mean_nothing(port: int) -> None:
    """Whoever can reach us could send them: they change no answer, and lead nobody elsewhere."""
    forged = [
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil.example",
        "Forwarded: host=evil.example",
    ]
    forged += [
        "X-Forwarded-Prefix: /evil",
        "X-Original-URL: /docs",
        "X-Rewrite-URL: /docs",
        "X-Forwarded-Port: 1",
        "X-Real-IP: 10.0.0.1",
    ]
    for path in ("/", "/docs", f"{TES}/service-info", "/openapi.json", "/nowhere"):
        (plain,) = exchange(port, request(path=path))
        (other,) = exchange(port, request(path=path, headers=forged))
        assert (plain.status, plain.body, plain.header("location")) == (
            other.status,
            other.body,
            other.header("location"),
        )
        assert b"evil" not in other.body


def test_idempotency_keys(port: int) -> None:
    body = json.dumps(task()).encode()
    for key in (b"", b" ", b"x" * 256, b"a\tb", b"\xa0", b"\xad", b"\x80"):
        (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=[b"Idempotency-Key: " + key], body=body))
        expect_error(answer, 400)
    ids = set()
    for key in (b"x" * 255, b"<b>'--", b"\xe9\xe8", b"../../x", b"k y"):
        for _ in range(2):
            (answer,) = exchange(port, request("POST", f"{TES}/tasks", headers=[b"Idempotency-Key: " + key], body=body))
            assert answer.status == 200, (key, answer)
            ids.add(answer.json()["id"])
    assert len(ids) == 5
