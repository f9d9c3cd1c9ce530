"""Whatever is wrong at the start ends in one sentence with the way out: exit code not 0, no traceback, no secret."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import pytest_asyncio

from tesgate.store import connections
from tesgate.store.database import Database
from tesgate.store.errors import StoreError
from tests.beds.postgres import Server
from tests.users.program import Program, programs

NOBODY = 65534
SERVE = ("serve", "--port", "0", "--no-agent")


@pytest.fixture(scope="module")
def tesgate() -> Generator[Program]:
    with programs() as program:
        yield program


@pytest.fixture(scope="module")
def disks() -> Generator[Program]:
    """With a disk that is full (``full``), one that is nearly full (``tight``), and a read-only one (``fixed``)."""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here, so no mount namespace with a full disk in it")
    probe = ["unshare", *(["-U", "-r"] if os.geteuid() else []), "-m", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this user may make no mount namespace here (user namespaces are closed)")
    mounts = (
        'cd "$USERS_HOME" && mkdir full tight fixed && mount -t tmpfs -o size=16k tmpfs full && '
        "{ dd if=/dev/zero of=full/filler bs=1k 2>/dev/null || true; } && mount -t tmpfs -o size=3m tmpfs tight && "
        f"chmod 777 full tight && mount -t tmpfs -o ro tmpfs fixed && cd {Path(__file__).parents[2]}"
    )
    with programs(mounts=mounts) as program:
        yield program


# the data directory


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("full", "the disk that holds .*/full is full; free some space, or give another one with --data-dir"),
        ("full/below", "the disk that holds .*/full/below is full; free some space"),
        ("tight", "The disk that holds .*/tight.* is full: free some space and start again"),
        ("fixed", r"fixed cannot be written \(Read-only file system\); give another one with --data-dir"),
        ("fixed/below", r"fixed/below cannot be written \(Read-only file system\); give another one"),
    ],
)
def test_disks(disks: Program, where: str, says: str) -> None:
    assert re.search(says, disks(*SERVE, "--data-dir", str(disks.home / where)).sentence)


def test_commands_beside_serve_say_it_too(disks: Program) -> None:
    for command in (["migrate"], ["token", "list"], ["token", "create", "x"]):
        done = disks(*command, "--data-dir", str(disks.home / "fixed"))
        assert "--data-dir" in done.sentence


def test_a_file_is_no_data_directory(tesgate: Program) -> None:
    file = tesgate.home / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        said = tesgate(*SERVE, "--data-dir", str(place)).sentence
        assert "is not a directory, or lies below a file; give another one with --data-dir" in said
    assert "is not a directory" in tesgate("check-config", "--data-dir", str(file)).sentence


def test_a_data_directory_that_we_may_not_use(tesgate: Program) -> None:
    theirs = tesgate.home / "theirs"
    theirs.mkdir(mode=0o700 if os.geteuid() == 0 else 0o500)
    more = {"uid": NOBODY} if os.geteuid() == 0 else {}
    for command in (SERVE, ("check-config",)):
        said = tesgate(*command, "--data-dir", str(theirs), **more).sentence
        assert re.search(r"cannot be written by user \d+ \(Permission denied\); run tesgate as its owner", said)


# the port


def test_a_taken_port_names_its_holder(tesgate: Program) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = tesgate("serve", "--port", port, "--data-dir", str(tesgate.home / "port")).sentence
    assert f"127.0.0.1:{port} cannot be listened on" in said
    assert f"stop process {os.getpid()} (" in said
    assert "another port with --port" in said


def test_addresses(tesgate: Program) -> None:
    rest = ("--port", "0", "--auth", "tokens", "--data-dir", str(tesgate.home / "address"))
    assert "is no address of this machine; correct --host" in tesgate("serve", "--host", "192.0.2.1", *rest).sentence
    assert "correct --host" in tesgate("serve", "--host", "no.such.host.invalid", *rest).sentence
    assert "--allow-unauthenticated-network" in tesgate(*SERVE, "--host", "0.0.0.0", *rest[4:]).sentence


# configuration


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server:\n  prot: 1\n", r"server.prot: there is no such setting \(did you mean 'port'\?\); remove or correct"),
        ("sever:\n  port: 1\n", r"sever: there is no such setting \(did you mean 'server'\?\)"),
        ("server:\n  host: 5\n", "server.host: must be text .* set it with"),
        ("server: 8000\n", r"server: must be a table of settings \(you gave 8000\)"),
        ("server:\n port: [8\n", "is not YAML in line"),
        ("- 1\n", "must hold settings such as"),
        ("database_url: mysql://u:sekrit@h/d\n", "database_url: must be a URL such as postgresql://"),
        ("database_url: postgres//u:sekrit@h/d\n", "database_url: must be a URL such as postgresql://"),
        ("database_url: postgresql://u:sekrit@h:5x/d\n", "database_url: has a port that is not a number"),
        ("database_url: 'postgresql://u:12#sekrit@h/d'\n", "database_url: has a # .* must be written as %23"),
        ("database_url: postgresql://u:12/sekrit@h/d\n", "database_url: has a # .* must be written as %23"),
        ("database_url: postgresql://[::1/sekrit\n", "database_url: must be a URL"),
    ],
)
def test_configuration_files(tesgate: Program, text: str, says: str) -> None:
    file = tesgate.home / "tesgate.yaml"
    file.write_text(text)
    for command in (SERVE, ("check-config",), ("migrate",)):
        said = tesgate(*command, "--config", str(file)).sentence
        assert re.search(says, said), said
        assert "sekrit" not in said


def test_configuration_files_that_cannot_be_read(tesgate: Program) -> None:
    said = tesgate(*SERVE, "--config", str(tesgate.home / "none.yaml")).sentence
    assert "cannot be read (No such file or directory); give another file with --config" in said


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TESGATE_SERVRE__PORT", r"there is no group 'servre' \(did you mean 'server'\?\)"),
        ("TESGATE_SERVER__PROT", r"server.prot: there is no such setting \(did you mean 'port'\?\)"),
        ("TESGATE_DATABSE_URL", r"there is no such setting \(did you mean TESGATE_DATABASE_URL\?\)"),
        ("TESGATE_DATADIR", r"there is no such setting \(did you mean TESGATE_DATA_DIR\?\)"),
    ],
)
def test_misspelt_variables(tesgate: Program, name: str, says: str) -> None:
    assert re.search(says, tesgate(*SERVE, environment={name: "1"}).sentence)


def test_variables_of_others_are_no_misspelling(tesgate: Program) -> None:
    others = {"TESGATE_SERVICE_HOST": "10.0.0.1", "TESGATE_PORT": "tcp://10.0.0.1:8000", "TESGATE_TOKEN": "x"}
    assert tesgate("check-config", "--data-dir", str(tesgate.home / "good"), environment=others).code == 0


# files with secrets


def test_tokens_files(tesgate: Program) -> None:
    def said(name: str) -> str:
        return tesgate(
            *SERVE, "--data-dir", str(tesgate.home / "t"), "--tokens-file", str(tesgate.home / name)
        ).sentence

    assert "tokens cannot be read (No such file or directory); correct the path" in said("tokens")
    tokens = tesgate.home / "tokens"
    tokens.write_text("# nobody yet\n")
    tokens.chmod(0o600)
    assert "holds no token; add a line `name:token`" in said("tokens")
    tokens.write_text("alice:sekrit\n")
    wrong = said("tokens")
    assert "line 1: the token must have at least 16 characters" in wrong
    assert "sekrit" not in wrong


def test_secret_keys(tesgate: Program) -> None:
    key = tesgate.home / "key"

    def said() -> str:
        environment = {"TESGATE_SECRET_KEY_FILE": str(key)}
        return tesgate(*SERVE, "--data-dir", str(tesgate.home / "k"), environment=environment).sentence

    assert "cannot be read (No such file or directory); correct the path" in said()
    key.write_text("short")
    key.chmod(0o600)
    assert "needs at least 32; make one with: openssl rand -hex 32" in said()


def test_open_secrets_are_named_in_a_line_of_the_log(tesgate: Program) -> None:
    for name, content in (("open.tokens", "alice:0123456789sekrit\n"), ("open.key", "sekrit" * 10)):
        (tesgate.home / name).write_text(content)
        (tesgate.home / name).chmod(0o644)
    done = tesgate(
        *(*SERVE, "--data-dir", str(tesgate.home / "o"), "--tokens-file", str(tesgate.home / "open.tokens")),
        *("--database-url", "postgresql://u@127.0.0.1:9/d"),
        environment={
            "TESGATE_SECRET_KEY_FILE": str(tesgate.home / "open.key"),
            "TESGATE_DATABASE__START_TIMEOUT": "0.1",
        },
    )
    assert "auth.tokens_file is open to every user of this machine; close it with `chmod o= FILE`" in done.err
    assert "secret_key_file is open to every user" in done.err
    assert "sekrit" not in done.err


def test_a_client_without_token_or_server(tesgate: Program) -> None:
    token = tesgate.home / "client.token"
    assert (
        "No such file or directory); check --token-file" in tesgate("task", "list", "--token-file", str(token)).sentence
    )
    token.write_text("\n")
    assert "the file is empty; write the token into it" in tesgate("task", "list", "--token-file", str(token)).sentence
    done = tesgate("task", "list", "--url", "http://127.0.0.1:9")
    assert done.code == 5
    assert "start one with `tesgate serve`, or give --url" in done.sentence


# limits of the host


def test_too_few_open_files(tesgate: Program) -> None:
    said = tesgate(*SERVE, "--data-dir", str(tesgate.home / "files"), files=64).sentence
    assert "only 64 files may be open at once here, and a gateway needs 256; raise the limit (`ulimit -n 4096`" in said


# a PostgreSQL of somebody else's


class Given:
    """Databases by URL on the suite's server."""

    def __init__(self, server: Server, tesgate: Program, url: str) -> None:
        self.server, self.tesgate, self.url = server, tesgate, url

    def as_user(self, user: str, database: str | None = None) -> str:
        parts = urlsplit(self.url)
        place = parts.netloc.rpartition("@")[2]
        path = parts.path if database is None else f"/{database}"
        return urlunsplit(parts._replace(netloc=f"{user}@{place}", path=path))

    def said(self, url: str, *command: str, start: str = "1") -> str:
        done = self.tesgate(
            *(command or SERVE),
            *("--data-dir", str(self.tesgate.home / "given"), "--database-url", url),
            environment={"TESGATE_DATABASE__START_TIMEOUT": start},
        )
        assert "sekrit" not in done.err
        return done.sentence

    async def run(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest_asyncio.fixture
async def empty(postgres_server: Server, tesgate: Program, empty_database_url: str) -> Given:
    return Given(postgres_server, tesgate, empty_database_url)


@pytest_asyncio.fixture
async def given(postgres_server: Server, tesgate: Program, database_url: str) -> Given:
    return Given(postgres_server, tesgate, database_url)


@pytest_asyncio.fixture
async def stranger(given: Given) -> AsyncGenerator[str]:
    """A role that may connect, with a password, and nothing else."""
    name = f"stranger_{os.getpid()}"
    await given.server.run(f"CREATE ROLE {name} LOGIN PASSWORD 'right-sekrit' CONNECTION LIMIT 1")
    yield name
    await given.run(f"DROP OWNED BY {name}")
    await given.server.run(f"DROP ROLE {name}")


async def test_a_database_that_is_not_there(given: Given) -> None:
    said = given.said("postgresql://tesgate:sekrit@127.0.0.1:9/tes", start="0.3")
    assert re.search(r"127.0.0.1:9/tes is not available: .*refused", said)
    assert "It was waited for 0.3 s: start it, or correct database_url." in said
    said = given.said(given.as_user(urlsplit(given.url).username or "tesgate", "no_such_database"))
    assert 'database "no_such_database" does not exist' in said
    assert "Correct user, password or database name in database_url" in said
    assert "Correct user, password or database" in given.said(given.as_user("nobody_at_all:sekrit"))


async def test_an_empty_database(empty: Given) -> None:
    assert "behind this version (next: 0001_spine): run `tesgate migrate` once, then start again" in empty.said(
        empty.url
    )


@pytest.mark.parametrize("table", ["task (id int)", "schema_migration (version text)"])
async def test_the_schema_of_another_program(empty: Given, table: str) -> None:
    await empty.run(f"CREATE TABLE {table}")
    for command in (SERVE, ("migrate",)):
        assert "give tesgate a database of its own" in empty.said(empty.url, *command)


async def test_a_role_without_rights(given: Given, stranger: str) -> None:
    url = given.as_user(f"{stranger}:right-sekrit")
    said = given.said(url)
    assert f'too many connections for role "{stranger}"' in said
    assert "start it, or correct database_url" in said
    await given.run(f"ALTER ROLE {stranger} CONNECTION LIMIT -1")
    for grant in ("", f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {stranger}"):
        if grant:
            await given.run(grant)
        said = given.said(url, start="10")
        assert "lacks a right in the database" in said
        assert "make it the owner of the database, or GRANT ALL" in said


async def test_a_wrong_password_is_not_printed(given: Given, stranger: str) -> None:
    if given.server.binaries is None:
        pytest.skip("the rules of a server that was given are not ours to change")
    connection = await asyncpg.connect(given.url)
    try:
        rules = Path(await connection.fetchval("SHOW hba_file"))
        before = rules.read_text()
        rules.write_text(f"local all {stranger} scram-sha-256\n{before}")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            said = given.said(given.as_user(f"{stranger}:wrong-sekrit"), start="10")
        finally:
            rules.write_text(before)
            await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()
    assert f'password authentication failed for user "{stranger}"' in said
    assert "Correct user, password or database name in database_url" in said


async def test_a_server_that_is_too_old(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "OLDEST", 99)
    with pytest.raises(StoreError, match=r"is PostgreSQL \d+.*, and tesgate needs 99 or newer: upgrade it"):
        await Database(database_url).open()


async def test_a_server_with_few_connections_is_named_in_a_warning(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Database(database_url, max_size=1000, min_size=1):
        assert "this process may want 1002: lower database.max_size" in caplog.text
