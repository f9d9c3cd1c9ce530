"""Real clients against a real uvicorn."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import anyio.to_thread
import pytest
import requests
import tes

from tests.api.conftest import TES, Serve, task

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tes")


def _drive(client: tes.HTTPClient) -> None:
    """Every call of py-tes 1.1."""
    info = client.get_service_info()
    assert info.type["artifact"] == "tes"
    sent = tes.Task(
        name="py-tes",
        executors=[tes.Executor(image="alpine", command=["echo", "hello"], env={"A": "b"})],
        inputs=[tes.Input(path="/in/a", content="text"), tes.Input(path="/in/b", url="s3://b/k", type="FILE")],
        outputs=[tes.Output(path="/out/a", url="/data/a")],
        resources=tes.Resources(cpu_cores=1, ram_gb=0.5),
        tags={"a": "b"},
    )
    id = client.create_task(sent)
    assert client.get_task(id, "MINIMAL").state == "QUEUED"
    basic, full = client.get_task(id, "BASIC"), client.get_task(id, "FULL")
    assert basic.inputs[0].content is None and full.inputs[0].content == "text"
    assert full.executors == sent.executors and full.creation_time is not None
    other = client.create_task(sent)
    page = client.list_tasks(view="MINIMAL", page_size=1)
    assert [item.id for item in page.tasks] == [other]
    rest = client.list_tasks(view="FULL", page_size=1, page_token=page.next_page_token)
    assert [item.id for item in rest.tasks] == [id] and rest.next_page_token is None
    client.cancel_task(id)
    assert client.wait(id, timeout=10).state == "CANCELED"
    assert client.get_task(id, "FULL").logs[0].logs == []
    with pytest.raises(requests.HTTPError, match="404"):
        client.get_task("01h00000000000000000000000", "MINIMAL")
    with pytest.raises(requests.HTTPError, match="400"):
        client.create_task(tes.Task(executors=[tes.Executor(image="", command=["x"])]))


def test_py_tes_drives_every_call(live: Serve) -> None:
    with live() as url:
        _drive(tes.HTTPClient(url, timeout=10))


def test_py_tes_with_credentials(live: Serve, tmp_path) -> None:
    from tesgate.auth.authenticator import Authenticator
    from tesgate.auth.tokens import TokensFile

    (tmp_path / "tokens").write_text("alice:0123456789abcdef0123:lab\n")

    def prepare(context) -> None:
        context.authenticator = Authenticator(mode="tokens", tokens_file=TokensFile(tmp_path / "tokens"))

    with live(prepare, auth={"mode": "tokens"}) as url:
        _drive(tes.HTTPClient(url, timeout=10, token="0123456789abcdef0123"))
        basic = tes.HTTPClient(url, timeout=10, user="alice", password="0123456789abcdef0123")
        assert len(basic.list_tasks().tasks) == 2
        with pytest.raises(requests.HTTPError, match="401"):
            tes.HTTPClient(url, timeout=10, token="wrong").list_tasks()


async def test_a_task_that_was_answered_survives_the_server(live: Serve) -> None:
    def once(previous: str | None) -> str:
        with live() as url:
            if previous is not None:
                assert requests.get(f"{url}{TES}/tasks/{previous}", timeout=5).json()["state"] == "QUEUED"
                page = requests.get(f"{url}{TES}/tasks?page_size=1", timeout=5).json()
                assert "next_page_token" not in page
            return str(requests.post(f"{url}{TES}/tasks", json=task(), timeout=5).json()["id"])

    first = await anyio.to_thread.run_sync(once, None)
    await anyio.to_thread.run_sync(once, first)


def _raw(url: str, data: bytes) -> bytes:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as connection:
        connection.sendall(data)
        connection.settimeout(10)
        answer = b""
        while b"\r\n\r\n" not in answer or b"status_code" not in answer:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
        return answer


def test_the_wire(live: Serve) -> None:
    """What only a real server shows: sizes, chunks, encodings and the root path."""
    with live(limits={"max_body_bytes": 1 << 18}) as url:
        big = 1 << 18
        answer = requests.post(f"{url}{TES}/tasks", data=b" " * (big + 1), timeout=10)
        assert answer.status_code == 413 and answer.json()["status_code"] == 413
        # A body that is announced as huge is refused before it is sent.
        head = b"POST /v1/tasks HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        assert b" 413 " in _raw(url, head + b"Content-Length: 99999999999\r\n\r\n")
        internal = head.replace(b"/v1/tasks", b"/internal/v1/x")
        assert b" 404 " in _raw(url, internal + b"Content-Length: 99999999999\r\n\r\n")
        # One that does not say its size is cut off when it has passed the limit.
        chunk = b"%x\r\n%b\r\n" % (1 << 16, b" " * (1 << 16))
        assert b" 413 " in _raw(url, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5)
        assert requests.get(f"{url}{TES}/tasks/x%3Acancel", timeout=5).status_code == 405
        assert requests.options(f"{url}{TES}/tasks", timeout=5).headers["allow"] == "GET, HEAD, POST, OPTIONS"
        head_answer = requests.head(f"{url}{TES}/tasks", timeout=5)
        assert head_answer.status_code == 200 and head_answer.content == b""
        assert b" 404 " in _raw(url, b"GET /ga4gh/tes/v1/tasks/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        posted = requests.post(f"{url}//v1/tasks", json=task(), timeout=5)
        assert posted.status_code == 200
