"""``tesgate health`` where nothing, or something else, answers; a gateway's own answer is in tests/deploy."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from tesgate.cli.failure import Failure
from tesgate.cli.main import app


class Paths(http.server.BaseHTTPRequestHandler):
    """Lives, and is not ready."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Paths) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_healthy_and_ready_are_two_things(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # is not asked
    done = CliRunner().invoke(app, ["health", "--url", url + "/ga4gh/tes/v1"])
    assert (done.exit_code, done.stdout) == (0, "healthy\n")
    monkeypatch.setenv("TESGATE_URL", url)
    assert CliRunner().invoke(app, ["health"]).exit_code == 0
    done = CliRunner().invoke(app, ["health", "--ready"])
    assert isinstance(done.exception, Failure)
    assert done.exception.code == 5 and "/readyz answers 503" in done.exception.sentence


def test_nothing_answers() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and listening to nobody
        done = CliRunner().invoke(app, ["health", "--url", f"127.0.0.1:{taken.getsockname()[1]}"])
    assert isinstance(done.exception, Failure)
    assert done.exception.code == 5 and "does not answer" in done.exception.sentence
