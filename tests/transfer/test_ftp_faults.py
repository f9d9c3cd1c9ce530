"""FTP servers that cut, drop, stall, forget and refuse: nothing is lost in silence, and what passes is survived."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from tesgate.runner.plan import Input
from tesgate.runner.transfer import ftppool, ftpsource, ftptree
from tesgate.runner.transfer.faults import LeaseLost, StagingError
from tests.beds.ftp import Faulty, Servers
from tests.transfer.ftp_world import World

BODY = os.urandom(2 << 20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.servers.drop()
    assert world.servers.count() == 0


@pytest.fixture
def server(ftp: Servers) -> Iterator[Faulty]:
    server = ftp.faulty()
    (server.root / "body").write_bytes(BODY)
    yield server
    server.set()
    for path in sorted(server.root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def words(server: Faulty, *which: str) -> list[str]:
    return [line for line in server.log() if line.split()[0] in which]


def store(world: World, server: Faulty, body: bytes = BODY) -> None:
    (world.rw / "o").write_bytes(body)
    world.store(world.to("/o", server.url("new/o")))
    assert (server.root / "new/o").read_bytes() == body
    assert [path.name for path in server.root.rglob("*") if path.is_file() and path.name != "body"] == ["o"]


DOWN = [
    {"short": [100_000, 5, 300_000]},
    {"hangup": [100_000, 0, 700_000]},
    {"mute": 1},
    {"gone": 1},
    {"dead_epsv": True},
    {"dead_epsv": True, "pasv": "192.0.2.1"},
    {"without": ["EPSV"]},
    {"without": ["SIZE"]},
    {"without": ["SIZE", "MLSD", "MLST"]},
    {"without": ["REST"], "short": [100_000]},
    {"without": ["FEAT", "PWD", "OPTS"]},
    {"answers": {"RETR": ["425 no", "426 cut", "450 busy"], "EPSV": ["421 idle"], "USER": ["421 too many"]}},
    {"answers": {"PASS": ["530 Sorry, too many users"], "TYPE": ["hang up"]}},
]


@pytest.mark.parametrize("faults", DOWN, ids=str)
def test_a_download_survives(world: World, server: Faulty, faults: dict[str, Any]) -> None:
    server.set(**faults)
    assert world.stage(server.url("body")).read_bytes() == BODY
    assert world.notes == []


def test_a_download_goes_on_where_it_ended(world: World, server: Faulty) -> None:
    server.set(short=[100_000], hangup=[None, 500_000])
    assert world.stage(server.url("body")).read_bytes() == BODY
    assert words(server, "REST") == ["REST 100000", "REST 600000"]


def test_progress_is_no_failure(world: World, server: Faulty) -> None:
    server.set(short=[100_000] * 12)
    assert world.stage(server.url("body")).read_bytes() == BODY


def test_another_file_in_its_place(world: World, server: Faulty) -> None:
    (server.root / "body").write_bytes(BODY[:-1] + b"xyz")
    # It is longer than what SIZE said before.
    server.set(answers={"SIZE": [f"213 {len(BODY)}"]})
    assert world.stage(server.url("body")).read_bytes() == BODY[:-1] + b"xyz"


def test_another_file_of_the_same_size_in_its_place(world: World, server: Faulty) -> None:
    changed = os.urandom(len(BODY))
    (server.root / "body").write_bytes(changed)
    # Of the file that was there before, and of this one.
    server.set(short=[1_500_000], answers={"MDTM": ["213 20010101000000"]})
    assert world.stage(server.url("body")).read_bytes() == changed
    assert words(server, "REST") == []


def test_a_silent_truncation_that_stays_is_found(world: World, server: Faulty) -> None:
    server.set(short=[1000, *[0] * 50])
    with pytest.raises(StagingError, match=r"the server sent 1000 of 2097152 bytes \(tried 4 times\)") as caught:
        world.stage(server.url("body"))
    assert caught.value.transient


UP = [
    {"lost": [100_000, 5]},
    {"lost": [0]},
    {"hangup": [100_000, 0, 700_000]},
    {"mute": 1},
    {"gone": 1},
    {"no_stream": True, "lost": [100_000]},
    {"no_stream": True, "lost": [100_000], "without": ["APPE"]},
    {"without": ["SIZE"], "lost": [100_000]},
    {"without": ["MKD"], "answers": {"MKD": ["450 no"]}},
    {"answers": {"STOR": ["452 full", "425 no"], "RNFR": ["450 busy"], "RNTO": ["hang up"], "MKD": ["450 busy"]}},
]


@pytest.mark.parametrize("faults", UP, ids=str)
def test_an_upload_survives(world: World, server: Faulty, faults: dict[str, Any]) -> None:
    if "MKD" in faults.get("without", ()):
        (server.root / "new").mkdir()
    server.set(**faults)
    store(world, server)


def test_an_upload_goes_on_where_it_ended(world: World, server: Faulty) -> None:
    server.set(lost=[100_000])
    store(world, server)
    assert words(server, "REST", "APPE") == ["REST 100000"]


def test_an_upload_is_appended_to_where_there_is_no_rest(world: World, server: Faulty) -> None:
    server.set(lost=[100_000], no_stream=True)
    store(world, server)
    assert [line.split()[0] for line in words(server, "REST", "APPE")] == ["APPE"]


def test_a_rename_whose_answer_was_lost(world: World, server: Faulty) -> None:
    """It happened; the next session finds the file where it is to be."""
    (world.rw / "o").write_bytes(b"x")
    prepared = world.prepare(world.to("/o", server.url("o")))
    temporary = next(server.root.glob(".tesgate-*"))
    real = prepared.items[0]
    real.renaming = True  # type: ignore[attr-defined]
    temporary.rename(server.root / "o")
    world.publish(prepared)
    assert real.done and (server.root / "o").read_bytes() == b"x"


def test_a_temporary_file_that_somebody_removed(world: World, server: Faulty) -> None:
    (world.rw / "o").write_bytes(b"x")
    prepared = world.prepare(world.to("/o", server.url("o")))
    next(server.root.glob(".tesgate-*")).unlink()
    with pytest.raises(StagingError, match="removed by somebody") as caught:
        world.publish(prepared)
    assert caught.value.transient


def test_a_server_that_does_not_rename_over_a_file(world: World, server: Faulty) -> None:
    (server.root / "new").mkdir()
    (server.root / "new/o").write_bytes(b"old")
    server.set(once=True)
    store(world, server)
    renamed = [line.rpartition("/")[2] for line in words(server, "RNFR", "RNTO", "DELE")]
    new, old = ".tesgate-tg-x-1-0.part", ".tesgate-old-tg-x-1-0.part"
    assert renamed == [new, "o", "o", old, new, "o", old]


@pytest.mark.parametrize("refused", [["553 no"], ["550 no", "", "553 no"]], ids=str)
def test_a_refused_rename_leaves_what_was_there(world: World, server: Faulty, refused: list[str]) -> None:
    (world.rw / "o").write_bytes(b"new")
    (server.root / "o").write_bytes(b"old")
    # The name itself is not allowed, also where nothing is in its way.
    server.set(answers={"RNTO": refused if len(refused) > 1 else ["553 no", "553 no"]})
    with pytest.raises(StagingError, match="does not allow this name"):
        world.store(world.to("/o", server.url("o")))
    assert (server.root / "o").read_bytes() == b"old"
    server.set(answers={"RNFR": ["550 not yours"]})
    with pytest.raises(StagingError, match="may not use it"):
        world.store(world.to("/o", server.url("o")))
    assert (server.root / "o").read_bytes() == b"old"
    assert words(server, "DELE") == []


@pytest.mark.parametrize("meanwhile", [False, True])
def test_what_was_put_aside_gets_its_name_again(world: World, server: Faulty, meanwhile: bool) -> None:
    (world.rw / "o").write_bytes(b"new")
    output = world.to("/o", server.url("o"))
    prepared = world.prepare(output)
    # As after a kill in the middle.
    (server.root / ".tesgate-old-tg-x-1-0.part").write_bytes(b"old")
    if meanwhile:
        (server.root / "o").write_bytes(b"another's")
    anyio.run(world.stager().discard, prepared.temporaries)
    assert (server.root / "o").read_bytes() == (b"another's" if meanwhile else b"old")
    assert not list(server.root.glob(".tesgate-*"))


def test_what_an_attempt_left_is_removed_also_when_the_gateway_has_given_it_up(world: World, server: Faulty) -> None:
    (world.rw / "o").write_bytes(b"x")
    output = world.to("/o", server.url("o"))
    prepared = world.prepare(output)
    world.gone = True
    with pytest.raises(StagingError, match="does not tell this attempt any more"):
        world.prepare(output, tag="tg-x-2")
    anyio.run(world.stager().discard, prepared.temporaries)
    assert not list(server.root.glob(".tesgate-*"))


def test_an_agent_that_ends_waits_for_no_silent_server(world: World, server: Faulty) -> None:
    world.ftp = world.ftp.__class__(read_timeout=1000.0, reply_timeout=1000.0)
    (world.rw / "o").write_bytes(b"x")
    prepared = world.prepare(world.to("/o", server.url("o")))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        elsewhere = [trace.replace(f":{server.port}", f":{port}") for trace in prepared.temporaries]
        world._urls = ([], [world.to("/o", server.url("o").replace(f":{server.port}", f":{port}"))])

        async def run() -> None:
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(world.stager().discard, elsewhere)
                    connection, _ = await anyio.to_thread.run_sync(silent.accept)
                    group.cancel_scope.cancel()
                connection.close()

        anyio.run(run)


def test_what_is_left_is_removed_with_the_tls_that_it_was_stored_with(
    world: World, ftp: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    secure, plain = ftp.faulty(tls=True), ftp.faulty()
    world.options = {"tls": "required", "ca": ftp.certificate.read_text()}
    for name in ("o", "p"):
        (world.rw / name).write_bytes(b"x")

    def outputs(server: Faulty) -> list[Any]:
        base = server.url("").replace("://", "://lab:lab%3Asecret%2F1@")
        return [world.to(f"/{name}", base + name) for name in ("o", "p")]

    prepared = world.prepare(*outputs(secure))
    assert len(list(secure.root.glob(".tesgate-*"))) == 2
    world.gone = True
    # Somebody else has the server's place by now, and offers no TLS: the URL's own password is not for him.
    plain.log()
    world._urls = ([], outputs(plain))
    elsewhere = [trace.replace(f":{secure.port}", f":{plain.port}") for trace in prepared.temporaries]
    assert elsewhere != prepared.temporaries
    anyio.run(world.stager().discard, elsewhere)
    assert "temporary files of outputs may be left" in caplog.text
    assert not words(plain, "USER", "PASS")
    world._urls = ([], outputs(secure))
    anyio.run(world.stager().discard, prepared.temporaries)
    assert not list(secure.root.glob(".tesgate-*"))


def test_a_rename_that_the_lease_does_not_cover_any_more(world: World, server: Faulty) -> None:
    """The server takes longer than the lease lives for the first half of it."""
    (world.rw / "o").write_bytes(b"x")
    prepared = world.prepare(world.to("/o", server.url("o")))
    server.log()
    seen: list[str] = []

    def lease() -> float:
        seen.extend(server.log())
        return 0.0 if any(line.startswith("RNFR") for line in seen) else 100.0

    with pytest.raises(LeaseLost):
        world.publish(prepared, lease)
    assert not (server.root / "o").exists()
    assert not [line for line in (*seen, *server.log()) if line.startswith("RNTO")]
    world.publish(prepared)
    assert (server.root / "o").read_bytes() == b"x"


def test_a_server_that_nobody_uses_is_forgotten(world: World, server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    known = world.servers._servers
    world.stage(server.url("body"))
    monkeypatch.setattr(ftppool, "_MEMORY", -1.0)
    world.stage(server.url("body").replace("localhost", "127.0.0.1"))
    assert [host for host, _, _ in known] == ["127.0.0.1"]


REFUSALS = [
    ("RETR", "550 gone", "no such file, or that this user may not use it", False),
    ("RETR", "450 busy", "file is busy", True),
    ("RETR", "451 oops", "error of its own", True),
    ("RETR", "425 no", "could not open the data connection", True),
    ("EPSV", "421 bye", "takes no more sessions now", True),
    ("PASS", "530 wrong secret/1", "did not take the user", False),
    ("PASS", "332 account", "asks for an account", False),
    ("STOR", "552 quota", r"room on the server is used up \(552\).*: quota", False),
    ("STOR", "553 name", "does not allow this name", False),
    ("STOR", "452 full", "no room left now", True),
    ("RNTO", "553 name", "does not allow this name", False),
    ("MKD", "550 no", "no such file, or that this user may not", False),
]


@pytest.mark.parametrize(("command", "answer", "sentence", "transient"), REFUSALS, ids=str)
def test_an_answer_is_one_sentence(
    world: World, server: Faulty, command: str, answer: str, sentence: str, transient: bool
) -> None:
    (world.rw / "o").write_bytes(b"x" * 100)
    server.set(answers={command: [answer] * 30})
    world.login, world.options = {"user": "lab", "password": "lab:secret/1"}, {"tls": "never"}
    outwards = command in ("STOR", "RNTO", "MKD")

    def act() -> None:
        if outwards:
            world.store(world.to("/o", server.url("new/o")))
        else:
            world.stage(server.url("body"))

    with pytest.raises(StagingError, match=sentence) as caught:
        act()
    assert caught.value.transient is transient
    assert "secret/1" not in caught.value.sentence and "\n" not in caught.value.sentence
    server.set()
    if command == "STOR":
        assert not list(server.root.glob(".tesgate-*"))


@pytest.mark.parametrize("fault", ["stall", "stuck"])
def test_a_server_that_falls_silent_in_a_transfer(world: World, server: Faulty, fault: str) -> None:
    world.ftp = world.ftp.__class__(**{**world.ftp.__dict__, "read_timeout": 0.4})
    server.set(**{fault: 1})
    if fault == "stall":
        assert world.stage(server.url("body")).read_bytes() == BODY
    else:
        store(world, server, BODY * 4)


@pytest.mark.parametrize("fault", ["stall", "stuck"])
def test_a_stop_in_the_middle_of_a_transfer(world: World, server: Faulty, fault: str) -> None:
    world.ftp = world.ftp.__class__(read_timeout=1000.0)
    server.set(**{fault: 50})
    item, output = Input("/i", "rw/i", url=server.url("body")), world.to("/o", server.url("o"))
    (world.rw / "o").write_bytes(BODY * 4)
    world._urls = ([item], [output])
    command = "RETR" if fault == "stall" else "STOR"

    async def run() -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                if fault == "stall":
                    group.start_soon(world.stager().stage_in, [item], str(world.attempt))
                else:
                    group.start_soon(world.stager().prepare_outputs, [output], [], str(world.attempt), "tg-x-1")
                seen: list[str] = []
                while not any(line.startswith(command) for line in seen):
                    seen += await anyio.to_thread.run_sync(server.log)
                group.cancel_scope.cancel()

    anyio.run(run)


LISTINGS: list[dict[str, Any]] = [{}, {"without": ["MLSD"]}, {"without": ["MLSD"], "dos": True}]


@pytest.mark.parametrize("faults", LISTINGS, ids=str)
def test_trees_by_every_kind_of_listing(world: World, server: Faulty, faults: dict[str, Any]) -> None:
    names = {"a b", ".dot", "x/y/ü", "x/empty"}
    for name in names:
        path = server.root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "x/empty" else name)
    server.set(**faults)
    staged = world.stage(server.url("tree"))
    assert {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()} == names
    assert (staged / "x/y/ü").read_text() == "x/y/ü"


def test_names_that_are_no_utf8(world: World, server: Faulty) -> None:
    (server.root / os.fsdecode(b"tree")).mkdir()
    (server.root / "tree" / os.fsdecode(b"caf\xe9")).write_text("x")
    staged = world.stage(server.url("tree"))
    assert os.listdir(bytes(staged)) == [b"caf\xe9"]
    assert world.stage(server.url("tree/caf%E9")).read_text() == "x"
    # A server without UTF-8: the name is tried in Latin-1 as well.
    server.set(without=["FEAT"])
    assert world.stage(server.url("tree/caf%C3%A9")).read_text() == "x"


@pytest.mark.parametrize("path", ["a%0D%0ADELE%20body", "a%0aQUIT", "a%00b", "a/%2e%2e/b"])
def test_commands_cannot_be_smuggled_in(world: World, server: Faulty, path: str) -> None:
    for act in (world.stage, lambda url: world.store(world.to("/o", url))):
        with pytest.raises(StagingError, match=r"line break|'\.\.'") as caught:
            act(server.url(path))
        assert not caught.value.transient
    (world.rw / "out").mkdir()
    (world.rw / "out/x\r\nDELE body").write_text("x")
    with pytest.raises(StagingError, match="its name holds a line break"):
        world.store(world.to("/out", server.url("out")))
    assert server.log() == []


def test_a_path_counts_from_the_login_directory(world: World, ftp: Servers) -> None:
    server = ftp.faulty(home="home/lab")
    world.login, world.options = {"user": "lab", "password": "lab:secret/1"}, {"tls": "offered"}
    (world.rw / "o").write_text("x")
    # pyftpdlib's login directory is its root; what is absolute is the same there.
    world.store(world.to("/o", server.url("one/o")), world.to("/o", server.url("%2Ftwo/o")))
    assert (server.root / "home/lab/one/o").read_text() == (server.root / "home/lab/two/o").read_text() == "x"
    assert world.stage(server.url("/one/o")).read_text() == world.stage(server.url("two/o;type=i")).read_text() == "x"


def test_tls_without_session_reuse(world: World, ftp: Servers) -> None:
    server = ftp.faulty(tls=True)
    (server.root / "body").write_bytes(BODY)
    world.options = {"tls": "required", "ca": ftp.certificate.read_text()}
    world.login = {"user": "lab", "password": "lab:secret/1"}
    assert world.stage(server.url("body")).read_bytes() == BODY
    store(world, server)
    server.set(short=[100_000], lost=[100_000])
    assert world.stage(server.url("body")).read_bytes() == BODY
    store(world, server)


def test_many_uploads_at_once_make_their_directories(world: World, server: Faulty) -> None:
    for n in range(60):
        world.write(f"/out/{n % 3}/{n}", str(n))
    world.store(world.to("/out", server.url("a/b/c")))
    assert len([path for path in (server.root / "a/b/c").rglob("*") if path.is_file()]) == 60
    assert len(words(server, "USER")) <= 4


@pytest.mark.parametrize("without", [[], ["MLSD"]], ids=str)
def test_a_listing_whose_lines_are_no_entries(world: World, server: Faulty, without: list[str]) -> None:
    (server.root / "tree").mkdir()
    server.set(listing="drwxrwxrwx" + " " * 5000 + "x\r\n", without=without)
    with pytest.raises(StagingError, match="has a line that is too long") as caught:
        world.stage(server.url("tree"))
    assert not caught.value.transient


@pytest.mark.parametrize("without", [[], ["SIZE"], ["MLSD"], ["MLSD", "SIZE"]], ids=str)
def test_a_listing_without_end(
    world: World, server: Faulty, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftptree, "MAX_ENTRIES", 5000)
    monkeypatch.setattr(ftpsource, "MAX_ENTRIES", 5000)
    (server.root / "tree").mkdir()
    line = "-rw-r--r-- 1 u g 1 Nov 21 13:50 x\r\n" if "MLSD" in without else "type=file;size=1; x\r\n"
    server.set(listing=line * 500, endless=True, without=without)
    for path in ("tree/", "body"):
        if path == "tree/" or "SIZE" in without:
            with pytest.raises(StagingError, match="holds more than 5000 entries") as caught:
                world.stage(server.url(path))
            assert not caught.value.transient
    assert world.servers.count() == 0
