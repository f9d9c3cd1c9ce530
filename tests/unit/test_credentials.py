"""Named credentials: which one serves a URL, for whom, and what is never said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tesgate.config import Credential, Settings, load_settings
from tesgate.errors import ConfigError
from tesgate.storage.credentials import Credentials


def named(name: str, prefix: str, **more: Any) -> Credential:
    if not {"user", "headers", "header_files", "tls"} & set(more):
        more.update(user=name, password=f"{name}-secret")
    return Credential(name=name, prefix=prefix, **more)


def user_of(credentials: list[Credential], url: str, owner: str = "ann", groups: tuple[str, ...] = ()) -> str | None:
    login = Credentials(credentials).login(url, owner=owner, groups=groups)
    assert login.fault is None
    return login.user


LAB = [
    named("all", "ftp://ftp.example.org"),
    named("lab", "ftp://ftp.example.org/lab"),
    named("deep", "ftp://FTP.example.org:21/lab/deep%20er/"),
    named("secure", "ftps://ftp.example.org/"),
    named("root", "ftp://ftp.example.org/%2Fsrv/"),
]


@pytest.mark.parametrize(
    ("url", "user"),
    [
        ("ftp://ftp.example.org/x", "all"),
        ("ftp://ftp.example.org", "all"),
        ("FTP://someone@Ftp.Example.org.:21/lab/x", "lab"),
        ("ftp://ftp.example.org/l%61b/x?y#z", "lab"),
        ("ftp://ftp.example.org/lab%2Fx", "lab"),
        ("ftp://ftp.example.org/laboratory/x", "all"),
        ("ftp://ftp.example.org/lab/./deep%20er//x", "deep"),
        ("ftp://ftp.example.org/lab/deep er/x", "deep"),
        ("ftps://ftp.example.org:990/lab/x", "secure"),
        ("ftp://ftp.example.org//srv/x", "root"),
        ("ftp://ftp.example.org/srv/x", "all"),
        ("ftp://ftp.example.org/%2Flab/x", "all"),
        ("ftp://ftp.example.org:2121/lab/x", None),
        ("ftp://ftp.example.org.evil.org/lab/x", None),
        ("ftp://ftp.example.org@evil.org/lab/x", None),
        ("ftp://evil.org/ftp.example.org/lab", None),
        ("http://ftp.example.org/lab/x", None),
        ("ftp://ftp.example.org:port/lab/x", None),
        ("/lab/x", None),
    ],
)
def test_the_longest_prefix_wins(url: str, user: str | None) -> None:
    assert user_of(LAB, url) == user


@pytest.mark.parametrize(
    "url",
    ["ftp://ftp.example.org/lab/../x", "ftp://u:pw@ftp.example.org/lab/%2e%2E/x", "ftp://ftp.example.org/lab/..%5Cx"],
)
def test_a_path_that_leads_out_gets_nothing(url: str) -> None:
    login = Credentials(LAB).login(url, owner="ann")
    assert login.user is None and login.password is None
    assert login.fault is not None and login.fault.kind == "refused" and "pw" not in login.fault.sentence
    assert Credentials([]).login(url, owner="ann").fault is None


def test_only_for_its_owners_and_groups() -> None:
    both = [named("open", "ftp://h/"), named("ours", "ftp://h/x/", owners=["ann"], groups=["lab"])]
    assert user_of(both, "ftp://h/x/y") == "ours"
    assert user_of(both, "ftp://h/x/y", "bob", ("lab",)) == "ours"
    assert user_of(both, "ftp://h/x/y", "bob", ("ann",)) == "open"


def test_a_file_rotates(tmp_path: Path) -> None:
    secret, header = tmp_path / "password", tmp_path / "header"
    secret.write_text("one\n")
    header.write_text("Bearer 1\n")
    credentials = Credentials(
        [
            named("ftp", "ftp://h/", user="u", password_file=secret, tls="never", sessions=2),
            named("web", "https://h/", header_files={"Authorization": header}, headers={"X-Site": "here"}),
        ]
    )
    login = credentials.login("ftp://h/x", owner="ann")
    assert (login.user, login.password, login.options) == ("u", "one", {"tls": "never", "sessions": "2"})
    web = credentials.login("https://h/x?y", owner="ann")
    assert (web.user, web.headers, web.options) == (None, {"Authorization": "Bearer 1", "X-Site": "here"}, {})
    secret.write_text("two")
    assert credentials.login("ftp://h/x", owner="ann").password == "two"
    for wrong in (b"", b"two\nlines", b"\xff", None):
        secret.unlink()
        if wrong is not None:
            secret.write_bytes(wrong)
        else:
            secret.mkdir()
        fault = credentials.login("ftp://h/x", owner="ann").fault
        assert fault is not None and fault.kind == "passing"
        assert "credential ftp" in fault.sentence and str(secret) not in fault.sentence


def test_tls_is_required_with_a_user_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("PEM")
    made = [named("a", "ftp://a/"), named("b", "ftp://b/", tls="offered", ca_file=tmp_path / "ca")]
    made.append(Credential(name="c", prefix="ftp://c/", sessions=1))
    options = [Credentials(made).login(f"ftp://{host}/", owner="x").options for host in "abc"]
    assert options == [{"tls": "required"}, {"tls": "offered", "ca": "PEM"}, {"tls": "never", "sessions": "1"}]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prefix: sftp://h/, user: u, password: hush", "must be a URL of ftp"),
        ("prefix: 'ftp://u:hush@h/', user: u, password: hush", "must not hold a user"),
        ("prefix: 'ftp://h:x/', user: u, password: hush", "must be a URL"),
        ("prefix: 'https://h/?hush', headers: {A: hush}", "neither"),
        ("prefix: ftp://h/, user: u", "no password"),
        ("prefix: ftp://h/, password: hush", "no user"),
        ("prefix: ftp://h/, user: u, password: hush, password_file: /x", "both"),
        ('prefix: ftp://h/, user: u, password: "hush\\nQUIT"', "one line"),
        ("prefix: ftp://h/, headers: {A: hush}", "headers are for"),
        ("prefix: https://h/, headers: {'A b': hush}", "not a header"),
        ("prefix: https://h/, headers: {Host: hush}", "not a header"),
        ('prefix: https://h/, headers: {A: "hush\\r\\nB: c"}', "one line"),
        ("prefix: https://h/, headers: {A: hush}, header_files: {a: /x}", "header a"),
        ("prefix: https://h/, headers: {A: hush}, tls: never", "for ftp"),
        ("prefix: ftp://h/, user: u, password: [hush]", "password"),
    ],
)
def test_what_is_refused_is_said_without_the_secret(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"credentials:\n  - {{name: n, {text}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert word in str(caught.value) and "hush" not in str(caught.value)
    assert "credentials[0]" in str(caught.value)


def test_settings_do_not_show_what_is_secret() -> None:
    settings = Settings(credentials=[named("n", "https://h/", user="u", password="hush", headers={"A": "hush"})])
    assert "hush" not in repr(settings) + str(settings.model_dump(mode="json"))
    twice = Settings(credentials=[named("n", "ftp://a/"), named("n", "ftp://b/")])
    assert [line for line in twice.check() if "credentials" in line]
    with pytest.raises(ConfigError, match=r"\.\."):
        Credentials([named("n", "ftp://h/a/../b")])
