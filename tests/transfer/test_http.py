"""Downloads from a real server that misbehaves, and the addresses that are never reached."""

from __future__ import annotations

import email.utils
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.plan import Input, UrlPolicy
from tesgate.runner.transfer.stage import HttpSettings, StagingError
from tests.authority import Authority
from tests.transfer.conftest import Bed
from tests.transfer.http_server import Misbehaving, Server

BODY = bytes(range(256)) * 40


def fails(bed: Bed, url: str, match: str, transient: bool) -> str:
    with pytest.raises(StagingError, match=match) as caught:
        bed.stage(url)
    assert caught.value.transient is transient
    return caught.value.sentence


def test_a_file_is_downloaded(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    staged = bed.stage(f"{server.url}/x y?a=b#part")
    assert staged.read_bytes() == BODY
    assert staged.stat().st_mode & 0o777 == 0o644
    assert bed.notes == []
    assert server.requests[0]["path"] == "/x%20y?a=b"
    assert server.requests[0]["accept-encoding"] == "identity"
    assert "authorization" not in server.requests[0]


def test_several_at_once_and_an_empty_one(bed: Bed, server: Misbehaving) -> None:
    server.body = b""
    bed.stage_in(*(Input(f"/{n}", f"rw/{n}", url=f"{server.url}/{n}", writable=True) for n in range(10)))
    assert sorted(path.stat().st_size for path in bed.rw.iterdir()) == [0] * 10
    assert {path.stat().st_mode & 0o777 for path in bed.rw.iterdir()} == {0o666}


def test_a_cut_answer_is_resumed_where_it_ended(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    server.cut_after = [100, 200, 3000]
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    ranges = [(request.get("range"), request.get("if-range")) for request in server.requests]
    assert ranges == [
        (None, None),
        ("bytes=100-", '"one"'),
        ("bytes=300-", '"one"'),
        ("bytes=3300-", '"one"'),
    ]


def test_many_cuts_with_progress_do_not_give_up(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    server.cut_after = [200] * 30
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY


def test_a_server_without_ranges_begins_anew(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    server.cut_after = [5000, 100]
    server.ranges = False
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY


def test_another_version_begins_anew(bed: Bed, server: Misbehaving) -> None:
    server.body = b"A" * 9000
    server.cut_after = [5000]

    def change(be: Misbehaving, count: int) -> None:
        if count == 2:
            be.body, be.etag = b"B" * 4000, '"two"'

    server.before = change
    assert bed.stage(f"{server.url}/x").read_bytes() == b"B" * 4000


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_validator_nothing_is_joined(bed: Bed, server: Misbehaving, etag: str | None) -> None:
    server.body, server.etag, server.cut_after = BODY, etag, [5000]
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    assert [request.get("range") for request in server.requests] == [None, None]


def test_last_modified_serves_as_validator(bed: Bed, server: Misbehaving) -> None:
    server.body, server.etag, server.cut_after = BODY, None, [5000]
    server.modified = email.utils.formatdate(time.time() - 3600, usegmt=True)
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    assert server.requests[1]["range"] == "bytes=5000-"


def test_a_lie_about_the_length_is_noticed(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    server.lengths = [len(BODY) + 1] * 50
    server.ranges = False
    server.cut_after = [len(BODY)] * 50
    fails(bed, f"{server.url}/x", "the connection was cut .tried 6 times", True)


def test_chunked_answers_are_whole_or_tried_again(bed: Bed, server: Misbehaving) -> None:
    server.body, server.chunked, server.cut_after = BODY, True, [3000]
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    assert bed.notes == []
    assert len(server.requests) == 2


def test_an_answer_without_length_is_noted(bed: Bed, server: Misbehaving) -> None:
    server.body, server.no_length = BODY, True
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    assert "could not be verified" in bed.notes[0]


def test_an_encoded_answer_is_stored_as_sent_and_noted(bed: Bed, server: Misbehaving) -> None:
    server.body, server.headers = b"not really gzip", {"Content-Encoding": "gzip"}
    assert bed.stage(f"{server.url}/x").read_bytes() == b"not really gzip"
    assert "Content-Encoding gzip" in bed.notes[0]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_faults_are_tried_again(bed: Bed, server: Misbehaving, status: int) -> None:
    server.body, server.statuses = BODY, [status, status]
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
def test_other_faults_are_final(bed: Bed, server: Misbehaving, status: int) -> None:
    server.statuses = [status]
    fails(bed, f"{server.url}/x", f"answered {status}", False)
    assert len(server.requests) == 1


def test_faults_without_end_are_given_up(bed: Bed, server: Misbehaving) -> None:
    server.statuses = [503] * 50
    fails(bed, f"{server.url}/x", r"answered 503 .*tried 6 times", True)
    assert len(server.requests) == 6


def test_retry_after_is_obeyed(bed: Bed, server: Misbehaving) -> None:
    server.body, server.statuses, server.headers = BODY, [503], {"Retry-After": "1"}
    begun = time.monotonic()
    bed.stage(f"{server.url}/x")
    assert time.monotonic() - begun >= 1


def test_a_silent_server_is_left_and_resumed(bed: Bed, server: Misbehaving) -> None:
    bed.http = HttpSettings(read_timeout=0.3, first_pause=0.01, max_pause=0.05)
    server.body, server.stall_after = BODY, 4000

    def recover(be: Misbehaving, count: int) -> None:
        be.stall_after = 4000 if count == 1 else None

    server.before = recover
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY
    assert server.requests[1]["range"] == "bytes=4000-"


def test_nobody_there_is_worth_another_attempt(bed: Bed) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        fails(bed, f"http://127.0.0.1:{port}/x", "no connection .Connection refused", True)


def test_redirects_are_followed_and_bounded(bed: Bed, server: Misbehaving) -> None:
    server.body = BODY
    server.redirects = {"/a": "/b?c=d", "/b": f"{server.url}/x", "/loop": "/loop"}
    assert bed.stage(f"{server.url}/a").read_bytes() == BODY
    fails(bed, f"{server.url}/loop", "redirects more than 10 times", False)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/"])
def test_redirects_to_other_schemes_are_refused(bed: Bed, server: Misbehaving, target: str) -> None:
    server.redirects = {"/a": target}
    fails(bed, f"{server.url}/a", "which is refused", False)


@pytest.fixture
def closed(bed: Bed, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve as a test says; only `server`'s own port on 127.0.0.1 may be reached by the name ok.test."""
    names: dict[str, list[str]] = {"ok.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any) -> Any:
        if host in names:
            found = names[host]
            if len(found) > 1 and found[0] == "then":
                names[host] = found[2:]
                found = [found[1]]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]
        return real(host, port, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    bed.policy = UrlPolicy(allowed_hosts=[f"ok.test:{server.port}"])
    return names


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_this_host_is_not_reached(bed: Bed, server: Misbehaving, closed: Any, host: str) -> None:
    fails(bed, f"http://{host}:{server.port}/x", "was refused", False)
    assert server.requests == []


def test_metadata_is_not_reached_even_by_a_redirect(bed: Bed, server: Misbehaving, closed: Any) -> None:
    server.redirects = {"/a": "http://169.254.169.254/latest/meta-data/", "/b": f"http://127.0.0.1:{server.port}/x"}
    fails(bed, f"http://ok.test:{server.port}/a", "169.254.169.254 is a cloud metadata address", False)
    fails(bed, f"http://ok.test:{server.port}/b", "127.0.0.1 is a loopback address", False)
    assert [request["path"] for request in server.requests] == ["/a", "/b"]


def test_a_name_that_resolves_to_a_private_address(bed: Bed, server: Misbehaving, closed: dict[str, list[str]]) -> None:
    closed["evil.test"] = ["1.1.1.1", "127.0.0.1"]
    fails(bed, f"http://evil.test:{server.port}/x", r"evil\.test resolves to 127\.0\.0\.1, a loopback", False)
    assert server.requests == []


def test_a_name_that_changes_its_mind(bed: Bed, server: Misbehaving, closed: dict[str, list[str]]) -> None:
    """The address that was checked is the one that is used: the second answer of the resolver is never asked for."""
    closed["evil.test"] = ["then", "192.0.2.1", "127.0.0.1"]
    bed.http = HttpSettings(connect_timeout=0.2, tries=1)
    bed.policy = UrlPolicy(allowed_hosts=["192.0.2.0/24"])
    with pytest.raises(StagingError) as caught:
        bed.stage(f"http://evil.test:{server.port}/x")
    assert "could not be downloaded" in caught.value.sentence
    assert closed["evil.test"] == ["127.0.0.1"]
    assert server.requests == []


def test_an_allowed_name_is_reached_with_its_host_header(bed: Bed, server: Misbehaving, closed: Any) -> None:
    server.body = BODY
    assert bed.stage(f"http://ok.test:{server.port}/x").read_bytes() == BODY
    assert server.requests[0]["host"] == f"ok.test:{server.port}"


def test_an_unknown_name_is_final(bed: Bed) -> None:
    fails(bed, "http://no-such-host.invalid/x", "could not be resolved", False)


def test_user_information_is_sent_and_never_shown(bed: Bed, server: Misbehaving, closed: Any) -> None:
    server.statuses = [404]
    url = f"http://us%40er:s3cret@ok.test:{server.port}/dir/x?token=t0ken"
    sentence = fails(bed, url, "answered 404", False)
    assert server.requests[0]["authorization"] == "Basic dXNAZXI6czNjcmV0"
    for secret in ("s3cret", "us%40er", "us@er", "t0ken"):
        assert secret not in sentence
    assert f"http://ok.test:{server.port}/dir/x" in sentence


def test_user_information_does_not_follow_a_redirect(bed: Bed, server: Misbehaving, closed: Any) -> None:
    server.body = BODY
    server.redirects = {"/a": f"http://ok.test:{server.port}/x"}
    bed.stage(f"http://u:p@ok.test:{server.port}/a")
    assert "authorization" in server.requests[0]
    assert "authorization" not in server.requests[1]


def test_proxies_of_the_environment_are_ignored(bed: Bed, server: Misbehaving, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.body = BODY
    assert bed.stage(f"{server.url}/x").read_bytes() == BODY


@pytest.mark.parametrize("url", ["http:///x", "http://[::1/x", "http://a:99999999/x", "http://exa mple/x"])
def test_nonsense_urls_are_final(bed: Bed, url: str) -> None:
    with pytest.raises(StagingError) as caught:
        bed.stage(url)
    assert not caught.value.transient


def test_the_first_failure_stops_the_others(bed: Bed, server: Misbehaving) -> None:
    bed.http = HttpSettings(read_timeout=100.0)
    server.body, server.stall_after = BODY, 10
    begun = time.monotonic()

    def fail_late(be: Misbehaving, count: int) -> None:
        if count == 2:
            be.stalled.wait(40)
            be.statuses = [404]

    server.before = fail_late
    with pytest.raises(StagingError, match="answered 404"):
        bed.stage_in(*(Input(f"/{n}", f"ro/{n}", url=f"{server.url}/{n}") for n in range(2)))
    assert time.monotonic() - begun < 50  # of the 100 that the other would wait


@pytest.mark.parametrize("where", ["body", "pause", "connect"])
def test_a_cancel_is_prompt(bed: Bed, server: Misbehaving, where: str) -> None:
    bed.http = HttpSettings(first_pause=60.0, read_timeout=60.0, connect_timeout=60.0)
    server.body, url = BODY, f"{server.url}/x"
    reached = server.stalled
    full = socket.socket()
    fillers = [socket.socket() for _ in range(4)]
    if where == "body":
        server.stall_after = 100
    elif where == "pause":
        server.statuses = [503]
        server.before = lambda be, count: reached.set()
    else:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/x"
        threading.Timer(0.2, reached.set).start()

    async def run() -> float:
        async with anyio.create_task_group() as group:
            group.start_soon(bed.stager().stage_in, [Input("/x", "ro/x", url=url)], str(bed.attempt))
            assert await anyio.to_thread.run_sync(reached.wait, 20)
            begun = anyio.current_time()
            group.cancel_scope.cancel()
        return anyio.current_time() - begun

    assert anyio.run(run) < 30  # of 60
    for opened in (full, *fillers):
        opened.close()


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Misbehaving, str]]:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ok.test "
        f"-addext subjectAltName=DNS:ok.test -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server(context) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running.behaviour, str(certificate)
        running.behaviour.release.set()
        running.shutdown()


def test_https_verifies_the_name_not_the_address(
    bed: Bed, secure: tuple[Misbehaving, str], closed: dict[str, list[str]]
) -> None:
    behaviour, certificate = secure
    closed["other.test"] = ["127.0.0.1"]
    behaviour.body, behaviour.cut_after = BODY, [3000]
    bed.policy = UrlPolicy(allowed_hosts=["ok.test", "other.test"])
    bed.http = HttpSettings(first_pause=0.01, ca_file=certificate)
    assert bed.stage(f"https://ok.test:{behaviour.port}/x").read_bytes() == BODY
    fails(bed, f"https://other.test:{behaviour.port}/x", "certificate was not accepted", False)
    bed.http = HttpSettings(first_pause=0.01)
    fails(bed, f"https://ok.test:{behaviour.port}/x", "certificate was not accepted", False)


def test_the_agents_authorities_are_trusted_besides_the_systems(
    bed: Bed, secure: tuple[Misbehaving, str], closed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaviour, certificate = secure
    behaviour.body = BODY
    bed.policy = UrlPolicy(allowed_hosts=["ok.test"])
    monkeypatch.setenv("SSL_CERT_FILE", certificate)  # what the system trusts
    bed.http = HttpSettings(ca_file=str(Authority(tmp_path / "site").file))
    assert bed.stage(f"https://ok.test:{behaviour.port}/x").read_bytes() == BODY


def test_https_never_falls_back_to_http(
    bed: Bed, server: Misbehaving, secure: tuple[Misbehaving, str], closed: Any
) -> None:
    behaviour, certificate = secure
    behaviour.redirects = {"/a": f"http://ok.test:{server.port}/x"}
    bed.policy = UrlPolicy(allowed_hosts=["ok.test"])
    bed.http = HttpSettings(ca_file=certificate)
    fails(bed, f"https://ok.test:{behaviour.port}/a", "from https to http", False)
    assert server.requests == []


def test_a_cancel_wakes_a_tls_connection(bed: Bed, secure: tuple[Misbehaving, str], closed: Any) -> None:
    behaviour, certificate = secure
    behaviour.body, behaviour.stall_after = BODY, 100
    bed.policy = UrlPolicy(allowed_hosts=["ok.test"])
    bed.http = HttpSettings(ca_file=certificate, read_timeout=60.0)

    async def run() -> float:
        async with anyio.create_task_group() as group:
            item = Input("/x", "ro/x", url=f"https://ok.test:{behaviour.port}/x")
            group.start_soon(bed.stager().stage_in, [item], str(bed.attempt))
            assert await anyio.to_thread.run_sync(behaviour.stalled.wait, 20)
            begun = anyio.current_time()
            group.cancel_scope.cancel()
        return anyio.current_time() - begun

    assert anyio.run(run) < 30  # of 60


def test_no_descriptor_is_left_open(bed: Bed, server: Misbehaving) -> None:
    server.body, server.cut_after = BODY, [100]
    server.redirects = {"/a": "/b"}
    bed.stage(f"{server.url}/a")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        server.cut_after = [100]
        bed.stage(f"{server.url}/a")
        with pytest.raises(StagingError):
            bed.stage(f"{bed.root}/missing/x")
    assert len(os.listdir("/proc/self/fd")) <= before + 2
