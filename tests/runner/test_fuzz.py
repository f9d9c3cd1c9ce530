"""What the runner reads that others wrote, mutated: a reader gives a value or its own error.

Derandomized: the same examples in each run.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tesgate.runner import wire
from tesgate.runner.journal import Journal
from tesgate.runner.plan import Executor, Input, Limits, Mount, Output, Plan, UrlPolicy
from tesgate.runner.record import MOST_NOTES, Record
from tesgate.runner.report import Answer, OutputFile, Report, Snapshot
from tesgate.runner.runtime.base import ImageRefused
from tesgate.runner.runtime.reference import parse_reference
from tesgate.runner.transfer import patterns
from tesgate.runner.transfer.faults import PathRefused, StagingError
from tesgate.runner.transfer.http import Downloader, HttpSettings
from tesgate.runner.transfer.policy import AddressPolicy
from tesgate.runner.transfer.threads import Stop
from tesgate.runner.transfer.urls import is_local, join, local_path, printable, redact, unsupported
from tesgate.runner.verdict import Garbled, Result, parse_result

fuzz = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
)

HUGE = st.sampled_from([10**400, -(10**400), 2**63, -1, float("nan"), float("inf"), -0.0, 1e308])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | HUGE | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)

PLAN = Plan(
    task="t1",
    attempt=1,
    external_name="tg-test-t1-1",
    token="tgt_t1.1",
    executors=[Executor(image="i", command=["true"], env={"A": "b"}, timeout=5.0)],
    inputs=[Input(path="/in/a", place="ro/in/a", content="x")],
    outputs=[Output(path="/out/*", url="file:///x", path_prefix="/out")],
    mounts=[Mount(source="rw/out", target="/out")],
    limits=Limits(cpu_cores=1.5, ram_bytes=10),
    timeout=10.0,
)


@st.composite
def mutated(draw: st.DrawFn, base: Any) -> Any:
    """`base` (JSON values) with some places replaced, removed or doubled."""
    value = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 4))):
        here = value
        while isinstance(here, (dict, list)) and here:
            keys: list[Any] = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], (dict, list)) and here[key] and draw(st.booleans()):
                here = here[key]
                continue
            if draw(st.booleans()):
                here[key] = draw(VALUES)
            elif isinstance(here, dict):
                here.pop(key)
            else:
                here.append(here[key])
            break
    return value


@fuzz
@given(mutated(wire.encode(PLAN)))
def test_plans(value: Any) -> None:
    try:
        plan = wire.decode(Plan, value)
    except wire.WireError as error:
        assert "message" in str(error)  # noqa: PT017
    else:
        assert wire.decode(Plan, wire.encode(plan)) == plan
        json.dumps(wire.encode(plan), allow_nan=False)


REPORT = Report(
    version=1, instance="i", snapshot=Snapshot(start_time="x", system_logs=["a"]), outputs=[OutputFile("u", "p", 1)]
)


@fuzz
@given(mutated(wire.encode(REPORT)), VALUES)
def test_reports_and_answers(value: Any, answer: Any) -> None:
    for cls, given_value in ((Report, value), (Answer, answer), (Report, answer)):
        with contextlib.suppress(wire.WireError):
            wire.decode(cls, given_value)


RESULT = {
    "wire": 1, "exit_code": 0, "signal": None, "terminated": None, "timed_out": False, "oom_killed": False,
    "killed": False,
    "error": None, "errno": 0, "start_ns": 1, "end_ns": 2, "user_us": 3, "system_us": 4, "max_rss_bytes": 5,
}  # fmt: skip


@fuzz
@given(mutated(RESULT), st.binary(max_size=40), st.integers(0, 400))
def test_results(value: Any, junk: bytes, cut: int) -> None:
    """The one file that every task can write."""
    text = json.dumps(value).encode()
    for data in (text, text[:cut], text[:cut] + junk + text[cut:], junk, b"[" * 65_000):
        try:
            assert isinstance(parse_result(data), Result)
        except Garbled as error:
            assert any(words in str(error) for words in ("it is", "is not what it can be", "neither"))  # noqa: PT017


JOURNAL: list[dict[str, Any]] = [
    {"what": "begun", "at": 1.0},
    {"what": "resumed", "at": 1.0, "run": 3},
    {"what": "note", "at": 1.0, "text": "n"},
    {"what": "starting", "at": 1.0, "executor": 0, "digest": "d", "limit": None, "by_task": False},
    {"what": "ended", "at": 2.0, "executor": 0, "kind": "next", "report": {"start_time": "x", "exit_code": 0}},
    {"what": "outcome", "at": 2.0, "state": "COMPLETE"},
    {"what": "published", "at": 2.0, "outputs": [{"url": "u", "path": "p", "size_bytes": 1}]},
    {"what": "final", "at": 3.0, "message": "finish", "state": "COMPLETE", "outputs": []},
]


@fuzz
@given(mutated(JOURNAL), st.binary(max_size=30), st.integers(0, 600))
def test_journals(entries: Any, junk: bytes, cut: int) -> None:
    """Torn, overwritten, or of another program: what is read is a prefix, or the directory is given up as damaged."""
    whole = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    for data in (whole, whole[:cut], whole[:cut] + junk + whole[cut:], junk + b"\n" + whole):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "journal")
            path.write_bytes(data)
            journal = Journal(str(path))
            try:
                with contextlib.suppress(ValueError):
                    record = Record(plan=PLAN, journal=journal, metadata={})
                    record.find_final()
                    record.find_published()
                journal.append("note", text="goes on")
                journal.close()
                again = Journal(str(path))
                assert again.entries[-1]["what"] == "note"
                again.close()
            finally:
                journal.close()


@fuzz
@given(st.lists(st.text(max_size=50), max_size=20))
def test_notes_are_what_a_database_can_keep(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(str(Path(directory, "journal")))
        record = Record(plan=PLAN, journal=journal, metadata={})
        record.notes([*texts, "\0", "\ud800", "x" * 100_000])
        for line in record.snapshot.system_logs:
            assert "\0" not in line
            assert len(line.encode()) < 40_000
        journal.close()


def test_notes_have_an_end(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "journal"))
    record = Record(plan=PLAN, journal=journal, metadata={})
    record.notes([str(number) for number in range(3 * MOST_NOTES)])
    assert len(record.snapshot.system_logs) == MOST_NOTES + 1
    again = Record(plan=PLAN, journal=journal, metadata={})
    assert again.snapshot.system_logs == record.snapshot.system_logs
    again.note("more")
    assert len(again.snapshot.system_logs) == MOST_NOTES + 1
    journal.close()


PATTERNS = st.text(alphabet="ab*?[]!^-{},\\/.:é", max_size=30)


@fuzz
@given(PATTERNS, st.text(alphabet="ab[]-{},\\/.é", max_size=30))
def test_patterns(pattern: str, text: str) -> None:
    try:
        alternatives = patterns.expand_braces(pattern)
    except ValueError:
        return
    patterns.has_wildcards(pattern)
    patterns.base_of(pattern)
    patterns.unescape(pattern)
    for plain in alternatives:
        matcher = patterns.Matcher(plain)
        assert matcher.fullmatch(text) in (True, False)
        if not patterns.has_wildcards(plain):
            assert matcher.fullmatch(patterns.unescape(plain))


@pytest.mark.parametrize(
    "pattern",
    ["[" * 4000, "{" * 4000, "{" * 3999 + "}", "[" * 3000 + "\\]", "*a" * 120 + "b",
     "**a" * 120 + "b", "{a,b}" * 800, "*" * 4000],
)  # fmt: skip
def test_patterns_of_full_length_cost_little(pattern: str) -> None:
    """Were one of them exponential (or cubic), this would not end."""
    patterns.has_wildcards(pattern)
    patterns.base_of(pattern + "/x")
    try:
        for plain in patterns.expand_braces(pattern):
            for text in ("a" * 255, ("a" * 255 + "/") * 15):
                patterns.Matcher(plain).fullmatch(text)
    except ValueError as error:
        assert "the pattern has more than" in str(error)  # noqa: PT017


@fuzz
@given(
    st.text(max_size=40) | st.from_regex(r"(file:|http://|HTTPS://u:p@|/|s3:|x)[\x00-\xff]{0,20}", fullmatch=True),
    st.text(max_size=10),
)
def test_urls(url: str, name: str) -> None:
    unsupported(url)
    printable(url).encode()
    shown = redact(url)
    assert "u:p@" not in shown or "/" in url.split("u:p@")[0].removeprefix("HTTPS://")
    if is_local(url):
        with contextlib.suppress(PathRefused):
            assert local_path(url).startswith("/")
        printable(join(url, [name.replace("/", "_")])).encode()
    with contextlib.suppress(ImageRefused):
        parse_reference(url)


class Raw:
    """A server that sends the bytes it was given last, whatever is asked, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        quick = HttpSettings(
            connect_timeout=5, read_timeout=5, tries=2, first_pause=0.001, max_pause=0.002, max_redirects=2
        )
        stop = Stop()
        stop.wait = lambda seconds: None  # type: ignore[method-assign]  # Retry-After of two minutes
        policy = AddressPolicy(UrlPolicy(allowed_hosts=["127.0.0.1"]))
        self.downloader = Downloader(policy=policy, settings=quick, stop=stop)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), peer:
                peer.recv(65536)
                peer.sendall(self.answer)
                peer.shutdown(socket.SHUT_WR)
                peer.recv(1)

    def close(self) -> None:
        self.downloader.close()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    server = Raw()
    yield server
    server.close()


NAMES = ["Content-Length", "Content-Range", "Location", "ETag", "Last-Modified", "Date", "Retry-After",
         "Transfer-Encoding",
         "Content-Encoding", "Connection", "X"]  # fmt: skip
WORDS = [
    "5", "-1", "9" * 5000, "\u00b2", "5, 5", "bytes 0-4/5", "bytes 0-4/" + "9" * 5000, "http://[::1", "http://[v1.x]/", "file:///etc/passwd",
    "//", "http://x:99999999/", "http://\x7f/", "gopher://x", "/\u00e9 \x01", "W/\"x\"",
    "Mon, 99 Foo 0000 99:99:99 +9999", "Thu, 01 Jan 0001 00:00:00",
    "chunked", "chunked, chunked", "gzip", "", " ", "Sun, 06 Nov 1994 08:49:37 GMT", "1e9", "0x10",
    "http://169.254.169.254/", "?" * 70_000,
]  # fmt: skip
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(WORDS)), max_size=6)
STATUSES = st.sampled_from(
    [
        "200 OK",
        "206 Partial",
        "302 Found",
        "307 x",
        "416 x",
        "429 x",
        "503 x",
        "404 \u00e9\x00\x1b[31m",
        "999 x",
        "20",
        "abc",
        "-1 x",
        "204 No",
        "100 x",
    ]
)


@settings(fuzz, max_examples=100)
@given(
    STATUSES,
    HEADERS,
    st.sampled_from([b"hello", b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-5\r\nx", b"\xff" * 70_000]),
    st.sampled_from(["\r\n", "\n"]),
)
def test_http_answers(raw: Raw, status: str, headers: list[tuple[str, str]], body: bytes, line: str) -> None:
    """Whatever a server says, a download ends with the bytes or with a sentence."""
    head = "HTTP/1.1 %s%s" % (status, line) + "".join("%s: %s%s" % (name, word, line) for name, word in headers) + line
    raw.answer = head.encode("latin-1") + body
    with tempfile.TemporaryFile() as target:
        try:
            size, _ = raw.downloader.download("http://127.0.0.1:%d/x?secret=hidden" % raw.port, target.fileno())
        except StagingError as error:
            assert error.sentence.startswith("input http")  # noqa: PT017
            assert "hidden" not in error.sentence  # noqa: PT017
        else:
            target.seek(0)
            assert len(target.read()) == size
