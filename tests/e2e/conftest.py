"""Gateways that many tests share, and a web server that they stage from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import pytest

from tests.beds.docker import USUAL_SOCKET
from tests.e2e.harness import Gateway, gateway_of

Test = TypeVar("Test", bound=Callable[..., Any])

RUNTIMES = ("docker", "bubblewrap")


def only(wanted: Callable[..., bool]) -> Callable[[Test], Test]:
    """Of a test's cases, only those whose parameters `wanted` answers True for; the others are not even collected."""

    def mark(test: Test) -> Test:
        test.only = wanted  # type: ignore[attr-defined]
        return test

    return mark


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _is_wanted(item)]


def _is_wanted(item: pytest.Item) -> bool:
    wanted = getattr(getattr(item, "function", None), "only", None)
    return wanted is None or wanted(**item.callspec.params)  # type: ignore[attr-defined]


class Web:
    """A loopback web server: bodies by path; a path in `held` gives half of its body and waits for `let_go`."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.held: set[str] = set()
        self.asked: list[str | None] = []
        """The authorization of each request."""
        self.let_go = threading.Event()
        self.halfway = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.answer(self)

            def log_message(self, *words: object) -> None:
                del words

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.headers.get("Authorization"))
        body = self.bodies.get(request.path)
        if body is None:
            request.send_error(404)
            return
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        try:
            request.wfile.write(body[: len(body) // 2])
            if request.path in self.held:
                request.wfile.flush()
                self.halfway.set()
                self.let_go.wait(60)
            request.wfile.write(body[len(body) // 2 :])
        except OSError:
            return  # whoever asked was killed

    def close(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def web() -> Generator[Web]:
    """A web server that the gateways' URL policy allows."""
    server = Web()
    yield server
    server.close()


@pytest.fixture(scope="session")
def strange_web() -> Generator[Web]:
    """A web server that the gateways' URL policy does not allow."""
    server = Web()
    yield server
    server.close()


@pytest.fixture(scope="module", params=RUNTIMES)
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, web: Web) -> Generator[Gateway]:
    """One gateway for each runtime and module. At its end nothing may be left of any task."""
    bed = request.getfixturevalue(request.param)
    base = tmp_path_factory.mktemp(request.param)
    socket = getattr(bed, "socket", USUAL_SOCKET)
    with gateway_of(base, request.param, socket=socket, URL_POLICY__ALLOWED_HOSTS=web.address) as started:
        yield started
