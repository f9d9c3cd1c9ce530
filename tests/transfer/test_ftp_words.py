"""FTP's URLs, listings and answers, without a server."""

from __future__ import annotations

import ftplib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tesgate.runner.access import AccessAnswer, AccessRequest, Fault, Login
from tesgate.runner.gateway import Unauthorized, Unavailable
from tesgate.runner.plan import Output, Plan, UrlPolicy
from tesgate.runner.transfer.faults import PathRefused, StagingError, Stopped
from tesgate.runner.transfer.ftp import FtpServers, FtpStorage
from tesgate.runner.transfer.ftpcontrol import Control
from tesgate.runner.transfer.ftpfaults import FtpPassing, FtpRefused, explain
from tesgate.runner.transfer.ftplist import Listed, read_list, read_mlsd
from tesgate.runner.transfer.ftplogin import FtpLogin, Logins
from tesgate.runner.transfer.ftpsession import FtpSession, FtpSettings, Habits, Trust
from tesgate.runner.transfer.ftpurl import read_url, split_target
from tesgate.runner.transfer.policy import AddressPolicy
from tesgate.runner.transfer.threads import Stop
from tesgate.runner.transfer.urls import listed, redact


@pytest.mark.parametrize(
    ("url", "server", "path"),
    [
        ("ftp://h/a/b", "ftp://h:21", "a/b"),
        ("FTP://H./a//./b/", "ftp://h:21", "a/b/"),
        ("ftp://h:2121", "ftp://h:2121", ""),
        ("ftp://h/%2Fetc/x", "ftp://h:21", "/etc/x"),
        ("ftp://h//etc/x", "ftp://h:21", "/etc/x"),
        ("ftp://h/a%2520b?c#d;type=I", "ftp://h:21", "a%20b?c#d"),
        ("ftp://h/caf%E9", "ftp://h:21", "caf\udce9"),
        ("ftps://[2001:DB8::1]:990/a", "ftps://[2001:db8::1]:990", "a"),
        ("ftp://u%40x:p%2F@h/a", "ftp://u%40x@h:21", "a"),
    ],
)
def test_urls(url: str, server: str, path: str) -> None:
    spot = read_url(url)
    assert (spot.server, spot.path) == (server, path)
    assert split_target(spot.target + "/x") == [server, path + "/x"]


def test_what_a_url_says_of_tls_and_user() -> None:
    assert [read_url(url).implicit for url in ("ftp://h/", "ftps://h/", "ftps://h:21/", "ftps://h:2121/")] == [
        False,
        True,
        False,
        True,
    ]
    spot = read_url("ftp://me:a%3Ab@c#d@h/x")
    assert (spot.user, spot.password, spot.host) == ("me", "a:b@c#d", "h")
    assert "a:b" not in repr(spot) + spot.target
    for show in (redact, listed):
        assert show("ftp://me:a%3Ab@c#d?e@h/x?y") == "ftp://h/x?y"
        assert show("https://me:secret@h/x") == "https://h/x"


@pytest.mark.parametrize(
    "url",
    [
        "ftp:/h/x",
        "ftp:///x",
        "ftp://h:0/",
        "ftp://h:99999/",
        "ftp://h h/",
        "ftp://[::1/",
        "ftp://u%0Ax@h/",
        "ftp://:p@h/",
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(PathRefused) as caught:
        read_url(url)
    assert "u\n" not in caught.value.why


LINES: list[tuple[bytes, Listed]] = [
    (b"-rw-r--r--   1 ftp      ftp         16384 Nov 21 13:50 a b", Listed("a b", "file", 16384)),
    (b"-rw-r--r--    1 1000 1000 5 Jan 01  2020  leading", Listed(" leading", "file", 5)),
    (
        b"-rw-r--r--+ 1 DOM\\me DOM\\Domain Users 7 Dec 31 2019 x 1 Jan 1 10:00 y",
        Listed("x 1 Jan 1 10:00 y", "file", 7),
    ),
    (b"drwxr-xr-x 2 u g 4096 2026-01-02 10:11 d", Listed("d", "directory", None)),
    (b"drwxrwxrwt. 2 u g 4096 2. Mai 10:11 d", Listed("d", "directory", None)),
    (b"lrwxrwxrwx 1 u g 4 Nov 21 13:50 link -> to", Listed("link", "link", None)),
    (b"crw-rw-rw- 1 u g 3 Nov 21 13:50 null", Listed("null", "other", 3)),
    (b"drwxr-xr-x 2 u g 4096 Nov 21 13:50 ..", Listed("..", "self", None)),
    (b"01-23-26  03:04PM       <DIR>          Some Thing", Listed("Some Thing", "directory", None)),
    (b"2026-01-23  15:04             123 x.txt", Listed("x.txt", "file", 123)),
    (b"01-23-26  03:04 PM         7   x", Listed("x", "file", 7)),
    (b"-rw-r--r-- 1 u g 1 Nov 21 13:50 caf\xe9", Listed("caf\udce9", "file", 1)),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=str)
def test_lines_of_list(line: bytes, expected: Listed) -> None:
    assert list(read_list([b"total 4", line, b""])) == [expected]


def test_lines_of_mlsd() -> None:
    lines = [
        b"type=cdir;modify=20260101000000; .",
        b"Type=file;Size=12;modify=20260101000000; a; b",
        b"type=dir;sizd=4096; d",
        b"type=OS.unix=slink:/x;size=3; l",
        b"type=OS.unix=chr-1/3; c",
        b"modify=20260101000000; x",
    ]
    assert list(read_mlsd(lines)) == [
        Listed(".", "self"),
        Listed("a; b", "file", 12),
        Listed("d", "directory"),
        Listed("l", "link"),
        Listed("c", "other"),
        Listed("x", "other"),
    ]


@pytest.mark.parametrize(
    "line", [b"ls: cannot open", b"whatever", b"\xff\xfe", b"-rw-r--r-- 1 u g many Nov 21 13:50 x"]
)
def test_a_listing_that_cannot_be_understood_is_no_empty_one(line: bytes) -> None:
    with pytest.raises(FtpRefused):
        list(read_list([line]))
    with pytest.raises(FtpRefused):
        list(read_mlsd([b"type=file;size=1;"]))


@pytest.mark.parametrize("line", [b"drwxrwxrwx%sx", b"01-23-26 03:04%sx", b"drwxrwxrwx%s1 Nov 21 13:50"])
def test_a_line_of_spaces_costs_no_more_than_its_length(line: bytes) -> None:
    """With a cost that grows as its square this takes longer than any test may."""
    with pytest.raises(FtpRefused):
        list(read_list([line % (b" " * 1_000_000)]))


def test_answers_hold_no_secret_and_no_control_characters() -> None:
    found = explain(ftplib.error_perm("552 \x1b[31mfull for hush\r\nmore"), "hush")
    assert found == ("the user's room on the server is used up (552); free some or ask for more", False)
    found = explain(ftplib.error_perm("552 \x1b[31mfull."))
    assert found is not None and found[0].endswith("(552); free some or ask for more: [31mfull")
    assert explain(KeyError("x")) is None


@pytest.mark.parametrize("url", ["ftp://h//", "ftp://h/%2F", "ftp://h//{a,b}"])
def test_outputs_do_not_go_to_the_root_of_a_server(url: str) -> None:
    """Its last slash would be lost, and they would lie in the login directory."""
    storage = FtpStorage(Plan("t", 1, "x", [], "token"), ask=AccessAnswer, servers=FtpServers())
    with pytest.raises(StagingError, match="is the server's root directory"):
        storage.check_output(Output("/o/{a,b}", url))
    for fine in ("ftp://h/", "ftp://h//d/", "ftp://h//d/{a,b}", "ftp://h//x", "ftp://h/{a,b}"):
        storage.check_output(Output("/o/{a,b}", fine))


def test_tls_contexts_are_of_the_whole_agent_and_few() -> None:
    trust = Trust()
    offered = trust.context(FtpLogin(tls="offered"))
    assert trust.context(FtpLogin(tls="offered", ca="x")) is offered
    for number in range(40):
        trust._made[(True, str(number))] = offered
        trust.context(FtpLogin(tls="offered"))
    trust.context(FtpLogin(tls="required"))
    assert len(trust._made) <= 16
    assert trust.context(FtpLogin(tls="offered")) is offered


class Quick(Stop):
    """Waits no longer than it must, and counts."""

    waits = 0

    def wait(self, seconds: float) -> None:
        self.waits += 1
        self.check()


def test_a_gateway_that_is_away_is_waited_for() -> None:
    faults = [Unavailable("away"), Unauthorized("not yet")] * 30

    def ask(request: AccessRequest) -> AccessAnswer:
        if faults:
            raise faults.pop()
        return AccessAnswer(logins=[Login(url, user="me", password="secret") for url in request.login])

    stop = Quick()
    login = Logins(ask=ask, urls=[]).of("ftp://h/x", read_url("ftp://h/x"), stop)
    assert (login.user, stop.waits) == ("me", 60)


def test_a_passing_fault_is_asked_about_again_and_a_stop_ends_the_questions() -> None:
    answers: list[Fault | None] = [Fault("not now", "passing"), None]

    def ask(request: AccessRequest) -> AccessAnswer:
        return AccessAnswer(logins=[Login(url, fault=answers.pop(0)) for url in request.login])

    spot = read_url("ftp://h/x")
    assert Logins(ask=ask, urls=[]).of("ftp://h/x", spot, Quick()).user == "anonymous"
    answers += [Fault("not now", "passing")] * 8
    with pytest.raises(StagingError, match="not now") as caught:
        Logins(ask=ask, urls=[]).of("ftp://h/x", spot, Quick())
    assert caught.value.transient and not answers
    stop = Stop()
    stop.set()
    with pytest.raises(Stopped):
        Logins(ask=ask, urls=[]).of("ftp://h/x", spot, stop)


@contextmanager
def cutting(cuts: int, *, before: threading.Event | None = None) -> Iterator[tuple[int, list[str]]]:
    """Serve sessions that are cut in the TLS handshake, so many; the others hear that there is no TLS, and no user."""
    heard: list[str] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock, sock.makefile("rb") as lines:
                sock.sendall(b"220 hello\r\n")
                for line in lines:
                    heard.append(line.decode("latin-1").split()[0])
                    if heard[-1] == "AUTH" and heard.count("AUTH") <= cuts:
                        sock.sendall(b"234 go on\r\n")
                        if before is not None:
                            sock.recv(1)
                            before.set()
                            sock.recv(1 << 16)
                            sock.recv(1)
                        break
                    sock.sendall(b"502 no\r\n" if heard[-1] == "AUTH" else b"530 no\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def session_of(port: int, habits: Habits, stop: Stop) -> FtpSession:
    return FtpSession(
        read_url(f"ftp://127.0.0.1:{port}/"),
        FtpLogin(user="me", password="secret", tls="offered"),
        policy=AddressPolicy(UrlPolicy(allowed_hosts=["127.0.0.1"])),
        settings=FtpSettings(),
        habits=habits,
        trust=Trust(),
        stop=stop,
    )


@pytest.mark.parametrize(("cuts", "expected"), [(1, ["AUTH", "AUTH", "USER"]), (9, ["AUTH", "AUTH", "USER"])])
def test_one_handshake_that_is_cut_does_not_turn_tls_off(cuts: int, expected: list[str]) -> None:
    habits = Habits()
    with cutting(cuts) as (port, heard):
        for _ in expected[:-1]:
            with pytest.raises((FtpPassing, ftplib.error_perm)):
                session_of(port, habits, Stop())
        assert (habits.plain_until > 0) is (cuts > 1)
        if cuts > 1:
            with pytest.raises(ftplib.error_perm):
                session_of(port, habits, Stop())
        assert heard == expected


def test_a_stop_in_the_middle_of_a_handshake_teaches_nothing() -> None:
    habits, stop, begun = Habits(), Stop(), threading.Event()
    with cutting(1, before=begun) as (port, _):
        ender = threading.Thread(target=lambda: (begun.wait(20), stop.set()))
        ender.start()
        with pytest.raises(Stopped):
            session_of(port, habits, stop)
        ender.join()
    assert habits == Habits()


@pytest.mark.parametrize("kernel", [True, False])
def test_patience_is_held_where_it_is_shorter_than_a_tick(kernel: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        control = Control(Stop())
        control.listen(ours, 500.0, kernel=kernel)
        control.patience = 0.2
        # It ends by this one if the patience does not.
        timer = threading.Timer(30, theirs.shutdown, [socket.SHUT_RDWR])
        timer.start()
        try:
            with pytest.raises(socket.timeout):
                control.getresp()
        finally:
            timer.cancel()
        if kernel:
            assert struct.unpack("@ll", ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)) == (500, 0)
        else:
            assert ours.gettimeout() == 500.0
