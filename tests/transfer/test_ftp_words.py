"""FTP's URLs, listings and answers, without a server."""

from __future__ import annotations

import ftplib

import pytest

from tesgate.runner.transfer.faults import PathRefused
from tesgate.runner.transfer.ftpfaults import FtpRefused, explain
from tesgate.runner.transfer.ftplist import Listed, read_list, read_mlsd
from tesgate.runner.transfer.ftpurl import read_url, split_target
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
