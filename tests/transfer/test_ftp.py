"""FTP and FTPS on real servers: vsftpd (plain, explicit TLS with session reuse, implicit TLS) and pure-ftpd (plain and
explicit TLS); and what a rename leaves."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tesgate.runner.plan import Input, UrlPolicy
from tesgate.runner.transfer.faults import LeaseLost, StagingError
from tesgate.runner.transfer.ftprename import TRACE
from tests.beds.ftp import PASSWORD, Servers, Site
from tests.transfer.ftp_world import World

TLS = ("", "explicit", "implicit", "pure", "pure explicit")
BOTH = pytest.mark.parametrize("kind", ["", "pure"], ids=["vsftpd", "pure-ftpd"])
NAMES = ("plain", "with space", "-a", ".hidden", "a[1]*?", "100%25#;x", "é√", "sub/deeper/x", "sub/empty")
_numbers = itertools.count(1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.servers.drop()
    assert world.servers.count() == 0


def fresh() -> str:
    return f"d{next(_numbers)}"


def site_of(ftp: Servers, world: World, tls: str = "") -> Site:
    """Which `tls` of `TLS`: a word of it may also say which server."""
    kind, _, more = tls.partition(" ")
    site: Site = ftp.pure(more) if kind == "pure" else ftp.vsftpd(tls)
    tls = more if kind == "pure" else tls
    world.named(site, **({"tls": "required", "ca": ftp.certificate.read_text()} if tls else {}))
    return site


def on_server(site: Site, below: str) -> dict[str, str | None]:
    base = site.root / below
    return {
        str(path.relative_to(base)): None if path.is_dir() else path.read_text() for path in sorted(base.rglob("*"))
    }


@pytest.mark.parametrize("tls", TLS)
def test_a_tree_goes_out_and_comes_back(world: World, ftp: Servers, tls: str) -> None:
    site, top = site_of(ftp, world, tls), fresh()
    for name in NAMES:
        world.write(f"/out/{name}", "" if "empty" in name else f"text of {name}\n")
    (world.rw / "out/no files").mkdir()
    big = os.urandom(3 << 20)
    (world.rw / "out/big").write_bytes(big)
    files = world.store(world.to("/out", site.url(top + "/a/b"), "DIRECTORY"))
    there = site.root / top / "a/b"
    assert {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()} == {*NAMES, "big"}
    assert (there / "no files").is_dir() and (there / "big").read_bytes() == big
    assert not list(site.root.rglob("*.part"))
    assert {file.path for file in files} == {f"/out/{name}" for name in (*NAMES, "big")}
    assert site.url(top + "/a/b/" + quote("100%25#;x")) in {file.url for file in files}

    staged = world.stage(site.url(top), type="DIRECTORY") / "a/b"
    assert {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()} == {*NAMES, "big"}
    assert (staged / "big").read_bytes() == big and (staged / "no files").is_dir()
    assert all((staged / name).read_text() == (there / name).read_text() for name in NAMES)
    for name in ("100%25#;x", "é√", "sub/empty"):
        one = world.stage(site.url(f"{top}/a/b/{quote(name)}"))
        assert one.read_text() == (there / name).read_text() and one.stat().st_mode & 0o777 == 0o644
    assert world.notes == []
    assert world.servers.count() == 0, "an attempt's sessions end with its step"


@BOTH
def test_a_directory_that_is_declared_as_file(world: World, ftp: Servers, kind: str) -> None:
    site, top = site_of(ftp, world, kind), fresh()
    (site.root / top).mkdir()
    (site.root / top / "x").write_text("x")
    assert (world.stage(site.url(top)) / "x").read_text() == "x"
    with pytest.raises(StagingError, match="declare it as FILE"):
        world.stage(site.url(top + "/x"), type="DIRECTORY")
    with pytest.raises(StagingError, match="no such file or directory") as caught:
        world.stage(site.url(top + "/y"))
    assert not caught.value.transient


@BOTH
def test_links_on_the_server(world: World, ftp: Servers, kind: str) -> None:
    site, top = site_of(ftp, world, kind), fresh()
    base = site.root / top
    (base / "real").mkdir(parents=True)
    (base / "real/file").write_text("x")
    (base / "to-file").symlink_to("real/file")
    (base / "to-directory").symlink_to("real")
    (base / "real/up").symlink_to("..")
    (base / "nowhere").symlink_to("nothing")
    staged = world.stage(site.url(top) + "/")
    assert sorted(str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()) == [
        "real/file",
        "to-directory/file",
        "to-file",
    ]
    assert len([note for note in world.notes if "repeats" in note]) == 2
    assert [note for note in world.notes if "nowhere" in note and "left out" in note]


@BOTH
def test_nothing_is_half_visible(world: World, ftp: Servers, kind: str) -> None:
    site, top = site_of(ftp, world, kind), fresh()
    (site.root / top).mkdir()
    os.chown(site.root / top, site.root.stat().st_uid, -1)
    (site.root / top / "old").write_text("old")
    world.write("/out/old", "new")
    world.write("/out/deep/er/x", "x")
    prepared = world.prepare(world.to("/out", site.url(top)))
    parts = [path.relative_to(site.root / top) for path in (site.root / top).rglob("*") if path.name != "old"]
    assert len(parts) == 2 and all(str(path).startswith(".tesgate-tg-x-1-") for path in parts), parts
    assert (site.root / top / "old").read_text() == "old"
    assert PASSWORD not in "".join(prepared.temporaries)
    with pytest.raises(LeaseLost):
        world.publish(prepared, lease=lambda: 0.0)
    assert sorted(on_server(site, top)) == sorted(["old", *map(str, parts)])
    world.publish(prepared)
    assert on_server(site, top) == {"old": "new", "deep": None, "deep/er": None, "deep/er/x": "x"}


@BOTH
def test_what_was_not_published_is_removed(world: World, ftp: Servers, kind: str) -> None:
    import anyio

    site, top = site_of(ftp, world, kind), fresh()
    for name in ("a", "b/c", "b/d/e"):
        world.write(f"/out/{name}")
    output = world.to("/out", site.url(top))
    prepared = world.prepare(output)
    assert len(list(site.root.glob(".tesgate-*"))) == 3
    # As a later runner does it, which has nothing but the plan and the journal.
    again = World.__new__(World)
    again.__dict__.update(world.__dict__)
    again._urls = ([], [output])
    anyio.run(again.stager().discard, prepared.temporaries)
    assert not list(site.root.glob(".tesgate-*")) and not (site.root / top).exists()
    anyio.run(again.stager().discard, prepared.temporaries)


@BOTH
def test_a_directory_in_the_way(world: World, ftp: Servers, kind: str) -> None:
    site, top = site_of(ftp, world, kind), fresh()
    world.write("/out/x")
    world.store(world.to("/out", site.url(f"{top}/x/y")))
    with pytest.raises(StagingError, match="a directory is there") as caught:
        world.store(world.to("/out/x", site.url(f"{top}/x/y")))
    assert not caught.value.transient


@pytest.mark.parametrize("tls", ["explicit", "implicit"])
def test_a_certificate_that_is_not_trusted(world: World, ftp: Servers, tls: str) -> None:
    site = site_of(ftp, world, tls)
    world.options.pop("ca")
    with pytest.raises(StagingError, match="certificate was not accepted") as caught:
        world.stage(site.url("x"))
    assert not caught.value.transient and PASSWORD not in caught.value.sentence


def test_tls_by_configuration(world: World, ftp: Servers) -> None:
    plain, secure = ftp.vsftpd(""), ftp.vsftpd("explicit")
    for site in (plain, secure):
        (site.root / "tls").write_text("x")
    world.named(plain, tls="required", ca=ftp.certificate.read_text())
    with pytest.raises(StagingError, match="has no TLS, and nothing may be sent"):
        world.stage(plain.url("tls"))
    world.options = {"tls": "offered"}
    for site in (plain, secure):
        assert world.stage(site.url("tls")).read_text() == "x"
    world.options = {"tls": "never"}
    with pytest.raises(StagingError, match=r"wants TLS \(530\)"):
        world.stage(secure.url("tls"))
    world.options = {"tls": "never", "ca": "no certificate"}
    implicit = ftp.vsftpd("implicit")
    with pytest.raises(StagingError, match="holds no certificates"):
        world.stage(implicit.url("tls"))


def test_who_logs_in(world: World, ftp: Servers) -> None:
    site = site_of(ftp, world)
    (site.root / "who").write_text("x")
    world.login = {"user": "anonymous", "password": "wrong-hush"}
    with pytest.raises(StagingError, match=r"did not take the user and its password \(530\)") as caught:
        world.stage(site.url("who"))
    assert "hush" not in caught.value.sentence and not caught.value.transient
    assert len(world.questions) == 2, "it may have rotated"
    inside = site.url("who").replace("://", f"://anonymous:{quote(PASSWORD)}@")
    assert world.stage(inside).read_text() == "x"
    world.login = {}
    with pytest.raises(StagingError) as caught:
        world.stage(inside.replace("who", "missing"))
    assert PASSWORD not in caught.value.sentence and quote(PASSWORD) not in caught.value.sentence
    files = world.prepare(world.to(str(world.write("/o")).removeprefix(str(world.rw)), inside + "-out")).files
    assert [file.url for file in files] == [site.url("who-out")]


def test_logins_are_asked_for_together(world: World, ftp: Servers) -> None:
    site = site_of(ftp, world)
    (site.root / "who").write_text("x")
    inputs = [Input(f"/{n}", f"rw/{n}", url=site.url(f"./who?{n}"[: -len(f"?{n}")]) + ";type=i") for n in range(3)]
    inputs.append(Input("/other", "rw/other", url=site.url("who")))
    world.stage_in(*inputs)
    assert len(world.questions) == 1 and len(world.questions[0]) == 2


def test_addresses_go_through_the_policy(world: World, ftp: Servers) -> None:
    site = site_of(ftp, world)
    world.policy = UrlPolicy()
    with pytest.raises(StagingError, match="loopback address, which is refused") as caught:
        world.stage(site.url("x"))
    assert not caught.value.transient
    with pytest.raises(StagingError, match="loopback address, which is refused"):
        world.store(world.to(str(world.write("/o")).removeprefix(str(world.rw)), site.url("o")))


def test_so_many_sessions_and_no_more(world: World, ftp: Servers) -> None:
    site = ftp.vsftpd("", max_clients="2", max_per_ip="2")
    world.named(site)
    for n in range(40):
        (site.root / f"n{n}").write_text(str(n))
    # The server's "too many" is heard: four threads end up with two sessions.
    world.ftp = world.ftp.__class__(**{**world.ftp.__dict__, "tries": 8, "max_pause": 0.5})
    world.stage_in(*(Input(f"/{n}", f"rw/{n}", url=site.url(f"n{n}")) for n in range(40)))
    assert sorted(path.read_text() for path in world.rw.iterdir()) == sorted(map(str, range(40)))


def test_a_stop_wakes_every_wait(world: World, ftp: Servers) -> None:
    """A server that accepts and says nothing; and the wait for a place at it."""
    import anyio

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        accepted: list[Any] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        world.options = {"sessions": "1"}
        world.ftp = world.ftp.__class__(read_timeout=1000.0)
        inputs = [Input(f"/{n}", f"rw/{n}", url=f"ftp://127.0.0.1:{port}/{n}") for n in range(3)]
        world._urls = (inputs, [])

        async def run() -> None:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(world.stager().stage_in, inputs, str(world.attempt))
                    while not accepted:
                        await anyio.sleep(0.01)
                    group.cancel_scope.cancel()

        anyio.run(run)
        assert len(accepted) == 1 and world.servers.count() == 0
        listener.shutdown(socket.SHUT_RDWR)
        for connection, _ in accepted:
            connection.close()


def test_a_listing_that_the_server_cut_short_is_no_directory(world: World, ftp: Servers) -> None:
    """pure-ftpd lists 10,000 entries at most if nothing else is said, and ends with a 226 that says so."""
    site = ftp.pure("", "-L", "6:3")
    world.named(site)
    for count, top in ((3, "few"), (9, "many")):
        (site.root / top).mkdir()
        for number in range(count):
            (site.root / top / str(number)).write_text(str(number))
    assert len(list(world.stage(site.url("few"), type="DIRECTORY").iterdir())) == 3
    with pytest.raises(StagingError, match="lists only a part of it") as caught:
        world.stage(site.url("many"), type="DIRECTORY")
    assert not caught.value.transient


def test_what_is_left_is_removed_where_the_listing_is_cut_short(world: World, ftp: Servers) -> None:
    import anyio

    site, top = ftp.pure("", "-L", "6:3"), fresh()
    world.named(site)
    base = site.root / top
    base.mkdir()
    for number in range(9):
        (base / f"another's {number}").touch()
        world.write(f"/out/{number}", "new")
    for path in (base, *base.iterdir()):
        os.chown(path, site.root.stat().st_uid, -1)
    output = world.to("/out", site.url(top))
    prepared = world.prepare(output)
    parts = {
        name: temporary
        for _, name, temporary, _ in (json.loads(one.removeprefix(TRACE)) for one in prepared.temporaries)
    }
    assert len(list(base.glob(".tesgate-*"))) == len(parts) == 9
    # As after a kill in the middle of two renames, of which one went on by another's hand.
    for number in (1, 2):
        aside = base / parts[f"pub/{top}/{number}"].replace(".tesgate-", ".tesgate-old-")
        aside.write_text("old")
        os.chown(aside, site.root.stat().st_uid, -1)
    (base / "2").write_text("another's")
    anyio.run(world.stager().discard, prepared.temporaries)
    assert not list(base.glob(".tesgate-*"))
    assert (base / "1").read_text() == "old" and (base / "2").read_text() == "another's"
    assert len(list(base.iterdir())) == 11
