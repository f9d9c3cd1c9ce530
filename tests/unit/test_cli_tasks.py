"""``tesgate task …`` against a small TES server that plays a script."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from tesgate.cli.failure import Failure
from tesgate.cli.main import app


class Server(http.server.ThreadingHTTPServer):
    """Each task goes through its list of states, one at each GET of BASIC."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prefix = "/ga4gh/tes/v1"
        self.tasks: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, list[str]] = {}
        self.created: list[dict[str, Any]] = []
        self.next_script = ["QUEUED", "RUNNING", "COMPLETE"]
        self.faults: list[int] = []
        self.log: bytes | None = None
        self.requests: list[str] = []
        self.authorization: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, task_id: str, states: list[str], **more: Any) -> None:
        self.tasks[task_id] = {"id": task_id, "state": states[0], "executors": [{}], "logs": [], **more}
        self.scripts[task_id] = states


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.server.requests.append(self.path)
        self.server.authorization.append(self.headers["authorization"])
        if not url.path.startswith(self.server.prefix + "/"):
            return self.answer(404, {})
        parts = url.path.removeprefix(self.server.prefix).strip("/").split("/")
        if parts == ["service-info"]:
            return self.answer(200, {"id": "fake"})
        if self.server.faults:
            return self.answer(self.server.faults.pop(0), {"msg": "sorry"})
        if parts == ["tasks"]:
            return self.page(query)
        task = self.server.tasks.get(parts[1])
        if task is None:
            return self.answer(404, {"msg": "no"})
        if len(parts) > 2:
            return self.log_range()
        states = self.server.scripts[parts[1]]
        if query["view"] == "BASIC" and len(states) > 1:
            states.pop(0)
        self.answer(200, {**task, "state": states[0]})

    def page(self, query: dict[str, str]) -> None:
        tasks = [task for task in self.server.tasks.values() if query.get("state") in (None, task["state"])]
        start, size = int(query.get("page_token", 0)), min(int(query["page_size"]), 2)
        following = {"next_page_token": str(start + size)} if start + size < len(tasks) else {}
        self.answer(200, {"tasks": tasks[start : start + size], **following})

    def log_range(self) -> None:
        if self.server.log is None or not self.path.endswith("/1/0/stdout"):
            return self.answer(404, {})
        begin = int((self.headers["range"] or "bytes=0-")[6:-1])
        data = self.server.log[begin : begin + 4]
        self.answer(416 if begin and not data else 206 if begin else 200, data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.path.endswith(":cancel"):
            task_id = self.path.rpartition("/")[2].removesuffix(":cancel")
            self.server.scripts[task_id] = ["CANCELED"]
            return self.answer(200, {})
        document = json.loads(body)
        if "executors" not in document:
            return self.answer(400, {"msg": "executors: is missing"})
        self.server.created.append(document)
        task_id = f"t{len(self.server.created)}"
        self.server.add(task_id, list(self.server.next_script), **document)
        self.answer(200, {"id": task_id})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TESGATE_"):
            monkeypatch.delenv(name)


def cli(server: Server, *words: str, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(app, ["task", *words, "--url", server.url], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit | Failure):
        raise result.exception
    return result


def failure(result: Result) -> Failure:
    assert isinstance(result.exception, Failure)
    return result.exception


HELLO = json.dumps({"name": "hello", "executors": [{"image": "i", "command": ["${WORD}"]}]})
LOGS = [{"logs": [{"exit_code": 0, "stdout": "hello\n", "stderr": "warned\n"}], "outputs": []}]


@pytest.mark.parametrize("prefix", ["/ga4gh/tes/v1", "/v1", ""])
def test_submit_finds_the_api(server: Server, prefix: str) -> None:
    server.prefix = prefix
    result = cli(server, "submit", "-", "--var", "WORD=hi", "--set", "tags={a: b}", stdin=HELLO)
    assert (result.exit_code, result.stdout) == (0, "t1\n")
    assert server.created[0]["executors"][0]["command"] == ["hi"]
    assert server.created[0]["tags"] == {"a": "b"}


def test_submit_takes_a_url_with_the_prefix(server: Server) -> None:
    result = CliRunner().invoke(app, ["task", "submit", "-", "--url", server.url + "/ga4gh/tes/v1/"], input=HELLO)
    assert result.stdout == "t1\n"
    assert server.requests == ["/ga4gh/tes/v1/service-info"]


@pytest.mark.parametrize(
    ("state", "code"), [("COMPLETE", 0), ("EXECUTOR_ERROR", 1), ("SYSTEM_ERROR", 3), ("CANCELED", 4)]
)
def test_submit_and_wait_tells_the_end(server: Server, state: str, code: int) -> None:
    server.next_script = ["QUEUED", "INITIALIZING", "RUNNING", state]
    result = cli(server, "submit", "-", "--wait", stdin=HELLO)
    assert result.exit_code == code
    lines = [line.split() for line in result.stderr.splitlines()]
    assert [line[2] for line in lines if line[0] == "t1"] == ["INITIALIZING", "RUNNING", state]


def test_wait_shows_what_the_command_said(server: Server, tmp_path: Path) -> None:
    document = {**json.loads(HELLO), "logs": LOGS}
    result = cli(server, "submit", "-", "--wait", stdin=json.dumps(document))
    assert result.stdout == "hello\n"
    server.next_script = ["RUNNING", "EXECUTOR_ERROR"]
    document["logs"][0]["logs"][0]["exit_code"] = 7
    result = cli(server, "submit", "-", "--wait", stdin=json.dumps(document))
    assert "exit code 7" in result.stderr
    assert "| warned" in result.stderr


def test_wait_as_json_is_json_alone(server: Server) -> None:
    result = cli(server, "submit", "-", "--wait", "--json", stdin=HELLO)
    assert json.loads(result.stdout)["state"] == "COMPLETE"
    assert result.stderr == ""


def test_wait_gives_up_in_time(server: Server) -> None:
    server.add("slow", ["RUNNING"])
    result = cli(server, "wait", "slow", "--timeout", "0.2")
    assert failure(result).code == 124
    assert "slow" in failure(result).sentence


def test_wait_outlives_faults_that_pass(server: Server) -> None:
    server.add("t", ["RUNNING", "COMPLETE"])
    server.faults = [503, 500, 429]
    assert cli(server, "wait", "t").exit_code == 0


def test_wait_for_several_tells_the_worst(server: Server) -> None:
    server.add("a", ["QUEUED", "RUNNING", "COMPLETE"])
    server.add("b", ["CANCELED"])
    assert cli(server, "wait", "a", "b").exit_code == 4


def test_unknown_task(server: Server) -> None:
    for words in (["get", "none"], ["wait", "none"], ["logs", "none"]):
        assert failure(cli(server, *words)).code == 6


def test_refused_document(server: Server) -> None:
    result = cli(server, "submit", "-", stdin="{}")
    assert failure(result).code == 5
    assert "executors: is missing" in failure(result).sentence


def test_nobody_listens() -> None:
    result = CliRunner().invoke(app, ["task", "get", "x", "--url", "http://127.0.0.1:9"])
    assert failure(result).code == 5
    assert "tesgate serve" in failure(result).sentence


def test_something_else_listens(server: Server) -> None:
    server.prefix = "/else"
    assert "not as a TES server" in failure(cli(server, "list")).sentence


@pytest.mark.parametrize("url", ["ftp://h", "http://[", "http://a b"])
def test_bad_url(url: str) -> None:
    assert failure(CliRunner().invoke(app, ["task", "get", "x", "--url", url])).code in (2, 5)


def test_usage() -> None:
    assert CliRunner().invoke(app, ["task", "get"]).exit_code == 2
    assert failure(CliRunner().invoke(app, ["task", "get", "x", "--view", "ALL"])).code == 2


def test_credentials(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("t", ["COMPLETE"])
    monkeypatch.setenv("TESGATE_TOKEN", "one")
    cli(server, "get", "t")
    (tmp_path / "token").write_text("two\n")
    cli(server, "get", "t", "--token-file", str(tmp_path / "token"))
    monkeypatch.setenv("TESGATE_PASSWORD", "p")
    cli(server, "get", "t", "--user", "u")
    assert server.authorization[::2] == ["Bearer one", "Bearer two", "Basic dTpw"]
    assert server.authorization[1::2] == server.authorization[::2]


def test_list_walks_the_pages(server: Server) -> None:
    for index in range(5):
        server.add(f"t{index}", ["COMPLETE" if index else "RUNNING"], name=f"n{index}")
    everything = cli(server, "list", "--json", "--limit", "0")
    assert [task["id"] for task in json.loads(everything.stdout)] == ["t0", "t1", "t2", "t3", "t4"]
    assert len(json.loads(cli(server, "list", "--json", "--limit", "3").stdout)) == 3
    assert cli(server, "list", "--state", "running").stdout == "t0\tRUNNING\t\tn0\n"


def test_get(server: Server) -> None:
    server.add("t", ["COMPLETE"], name="[bold]n", logs=LOGS)
    shown = cli(server, "get", "t").stdout
    assert "[bold]n" in shown
    assert "hello" in shown
    assert json.loads(cli(server, "get", "t", "--json").stdout)["name"] == "[bold]n"


def test_cancel(server: Server) -> None:
    server.add("t", ["RUNNING"])
    assert cli(server, "cancel", "t", "--wait").stdout == "t  CANCELED\n"


def test_logs_of_a_server_without_the_route(server: Server) -> None:
    server.add("t", ["COMPLETE"], logs=LOGS)
    result = cli(server, "logs", "t")
    assert (result.stdout, result.stderr) == ("hello\n", "warned\n")


def test_logs_by_range(server: Server) -> None:
    server.add("t", ["COMPLETE"], logs=LOGS)
    server.log = b"0123456789"
    result = cli(server, "logs", "t", "--stream", "stdout")
    assert (result.stdout, result.stderr) == ("0123456789", "")
    assert failure(cli(server, "logs", "t", "--attempt", "2")).code == 6


def test_logs_are_followed_while_the_executor_runs(server: Server) -> None:
    # No entry in logs[] yet: only the route knows.
    server.add("t", ["RUNNING"], logs=[{"logs": []}])
    server.log = b"first"
    done = threading.Event()

    def later() -> None:
        done.wait(5)
        server.log = b"first, second"
        server.tasks["t"]["logs"] = LOGS
        server.scripts["t"] = ["COMPLETE"]

    thread = threading.Thread(target=later)
    thread.start()
    done.set()
    result = cli(server, "logs", "t", "-f", "--stream", "stdout")
    thread.join()
    assert result.stdout == "first, second"
