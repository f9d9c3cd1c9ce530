"""Outputs by PUT and inputs from servers that want named credentials, end to end: the secrets are nowhere but there."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.e2e.conftest import Web
from tests.e2e.harness import Gateway, contents_below, gateway_of, sh
from tests.transfer.put_server import Storing, put_server

pytestmark = pytest.mark.timeout(240)

SECRET, PASSWORD = "s3cr3t-of-a-header", "s3cr3t-of-a-user"


@pytest.fixture(scope="module")
def store() -> Generator[Storing]:
    with put_server() as running:
        yield running


@pytest.fixture(scope="module")
def elsewhere() -> Generator[Storing]:
    with put_server() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(
    bubblewrap: object, tmp_path_factory: pytest.TempPathFactory, web: Web, store: Storing, elsewhere: Storing
) -> Generator[Gateway]:
    base = tmp_path_factory.mktemp("web-outputs")
    (base / "token").write_text(SECRET + "\n")
    credentials = [
        {"name": "store", "prefix": f"{store.url}/lab/", "header_files": {"X-Token": str(base / "token")}},
        {"name": "web", "prefix": f"http://{web.address}/private", "user": "me", "password": PASSWORD},
        {"name": "others", "prefix": f"{store.url}/others", "headers": {"X-Token": "others"}, "owners": ["nobody"]},
    ]
    allowed = [web.address, f"127.0.0.1:{store.port}", f"127.0.0.1:{elsewhere.port}"]
    with gateway_of(
        base, "bubblewrap", CREDENTIALS=json.dumps(credentials), URL_POLICY__ALLOWED_HOSTS=json.dumps(allowed)
    ) as started:
        yield started


def test_outputs_and_inputs_with_named_credentials(
    gateway: Gateway, web: Web, store: Storing, elsewhere: Storing
) -> None:
    web.bodies["/private/in.txt"] = b"from the web\n"
    web.asked.clear()
    store.redirects = {"/lab/moved.txt": (307, f"{elsewhere.url}/there.txt")}
    task = gateway.run(
        sh("mkdir -p /out/d/sub; cat /in.txt > '/out/d/a b'; echo b > /out/d/sub/b; echo x > /out/x"),
        inputs=[{"path": "/in.txt", "url": web.url("/private/in.txt"), "type": "FILE"}],
        outputs=[
            {"path": "/out/d", "url": f"{store.url}/lab/d/", "type": "DIRECTORY"},
            {"path": "/out/x", "url": f"{store.url}/lab/moved.txt", "type": "FILE"},
            {"path": "/out/x", "url": f"{store.url}/others/x", "type": "FILE"},
            {"path": "/out/x", "url": f"{elsewhere.url}/lab/x?sig=abc%2F", "type": "FILE"},
        ],
    )
    assert task["state"] == "COMPLETE", task
    assert {path: body.decode() for path, body in store.files.items()} == {
        "/lab/d/a%20b": "from the web\n",
        "/lab/d/sub/b": "b\n",
        "/others/x": "x\n",
    }
    assert elsewhere.files == {"/there.txt": b"x\n", "/lab/x?sig=abc%2F": b"x\n"}
    seen = {request["path"]: request.get("x-token") for request in store.requests}
    assert seen == {"/lab/d/a%20b": SECRET, "/lab/d/sub/b": SECRET, "/lab/moved.txt": SECRET, "/others/x": None}
    assert [request.get("x-token") for request in elsewhere.requests] == [None, None]
    assert web.asked == ["Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()]
    assert {(found["url"], found["path"]) for found in task["logs"][0]["outputs"]} == {
        (f"{store.url}/lab/d/a%20b", "/out/d/a b"),
        (f"{store.url}/lab/d/sub/b", "/out/d/sub/b"),
        (f"{store.url}/lab/moved.txt", "/out/x"),
        (f"{store.url}/others/x", "/out/x"),
        (f"{elsewhere.url}/lab/x?sig=abc%2F", "/out/x"),
    }


def test_a_refused_output_says_so_and_secrets_are_nowhere(gateway: Gateway, store: Storing) -> None:
    """In no file of gateway and agent (their database too), no environment of theirs but the gateway's own, no view."""
    store.statuses, store.body = [403], b"<Code>AccessDenied</Code> " + SECRET.encode()
    task = gateway.run(
        sh("echo x > /out/x"), outputs=[{"path": "/out/x", "url": f"{store.url}/lab/refused?sig=q", "type": "FILE"}]
    )
    assert task["state"] == "SYSTEM_ERROR"
    (said,) = [line for line in task["logs"][0]["system_logs"] if "could not be stored" in line]
    assert "403 Forbidden (AccessDenied)" in said
    assert "sig=q" not in said
    gateway.rows("CHECKPOINT")
    postgres = (gateway.data / "postgres").resolve()
    for path, content in contents_below(gateway.data, postgres):
        for secret in (SECRET, PASSWORD):
            assert secret.encode() not in content, path
    for path in (gateway.log_path, *gateway.log_path.parent.glob("*.log")):
        assert SECRET not in path.read_text()
        assert PASSWORD not in path.read_text()
    agent = gateway.agent()
    assert agent is not None
    assert PASSWORD.encode() not in Path(f"/proc/{agent.pid}/cmdline").read_bytes()
    if os.geteuid() == 0:
        assert PASSWORD.encode() not in Path(f"/proc/{agent.pid}/environ").read_bytes()
