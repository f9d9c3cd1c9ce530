"""The private PostgreSQL: made, shared, adopted, revived, stopped; and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import anyio
import asyncpg
import pytest

from tesgate.store import embedded as module
from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.embedded_place import choose_socket_directory, find_server_user
from tesgate.store.errors import EmbeddedPostgresError

FAST = {"fsync": "off", "shared_buffers": "16MB"}

GATEWAY = """
import sys, anyio
from pathlib import Path
from tesgate.store.embedded import EmbeddedPostgres

async def main():
    async with EmbeddedPostgres(Path(sys.argv[1])) as pg:
        print(pg.dsn, flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main)
"""


class Gateway:
    """A process of its own that uses the server until its standard input ends."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", GATEWAY, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdout
        self.dsn = self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Generator[Path]:
    """A data directory with a stopped cluster, to be copied: making one takes a second."""
    with tempfile.TemporaryDirectory(prefix="tg-embedded-") as directory:
        Path(directory).chmod(0o711)

        async def make() -> None:
            async with EmbeddedPostgres(Path(directory) / "data", settings=FAST):
                pass

        anyio.run(make)
        yield Path(directory) / "data"


@pytest.fixture
def data(cluster: Path) -> Generator[Path]:
    """A data directory of this test; no server is left behind."""
    directory = Path(tempfile.mkdtemp(prefix="tg-data-"))
    directory.chmod(0o711)
    copy = directory / "data"
    subprocess.run(["cp", "-a", str(cluster), str(copy)], check=True)
    yield copy
    if pid := postmaster(copy):
        os.kill(pid, signal.SIGQUIT)
        gone(pid)
    shutil.rmtree(directory)


def postmaster(data: Path) -> int | None:
    try:
        return int((data / "postgres/postmaster.pid").read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return None


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 seconds"
        time.sleep(0.01)


def gone(pid: int) -> None:
    def ended() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    until(ended)


async def ask(dsn: str, sql: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_it_starts_answers_and_stops(data: Path) -> None:
    async with EmbeddedPostgres(data) as pg:
        assert await ask(pg.dsn, "SELECT current_database() || '/' || current_user") == "tesgate/tesgate"
        settings = {}
        names = "fsync max_connections TimeZone server_encoding listen_addresses unix_socket_permissions data_checksums"
        for name in names.split():
            settings[name] = await ask(pg.dsn, f"SHOW {name}")
        assert settings == {
            "fsync": "off",  # of this test's cluster
            "max_connections": "100",
            "TimeZone": "UTC",
            "server_encoding": "UTF8",
            "listen_addresses": "",
            "unix_socket_permissions": "0700",
            "data_checksums": "on",
        }
        collate = "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = current_database()"
        assert await ask(pg.dsn, collate) == "bC.UTF-8"
        pid = postmaster(data)
        assert pid is not None
    gone(pid)
    assert postmaster(data) is None
    with pytest.raises(EmbeddedPostgresError, match="was not started"):
        _ = pg.dsn


async def test_data_and_settings_of_the_command_line(data: Path) -> None:
    async with EmbeddedPostgres(data) as pg:
        await ask(pg.dsn, "CREATE TABLE t AS SELECT 42 AS a")
    async with EmbeddedPostgres(data, settings={"max_connections": "17"}) as pg:
        assert await ask(pg.dsn, "SELECT a FROM t") == 42
        assert await ask(pg.dsn, "SHOW max_connections") == "17"


async def test_nobody_else_may_read_it(data: Path) -> None:
    async with EmbeddedPostgres(data) as pg:
        sockets = Path(pg.dsn.split("host=")[1].split("&")[0])
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert (data / "postgres").stat().st_mode & 0o777 == 0o700
        assert (data / "postgres.log").stat().st_mode & 0o777 == 0o600
        user = find_server_user()
        assert sockets.stat().st_uid == (user.uid if user else os.geteuid())


async def test_two_processes_share_one_server_and_the_last_one_stops_it(data: Path) -> None:
    first = await anyio.to_thread.run_sync(Gateway, data)
    pid = postmaster(data)
    assert pid is not None
    async with EmbeddedPostgres(data) as second:
        assert second.dsn == first.dsn
        await anyio.to_thread.run_sync(first.leave)
        assert await ask(second.dsn, "SELECT 1") == 1
        assert postmaster(data) == pid
    gone(pid)


async def test_a_short_command_does_not_stop_the_gateways_server(data: Path) -> None:
    async with EmbeddedPostgres(data) as gateway:
        command = await anyio.to_thread.run_sync(Gateway, data)
        await anyio.to_thread.run_sync(command.leave)
        assert await ask(gateway.dsn, "SELECT 1") == 1


async def test_many_start_at_the_same_time(data: Path) -> None:
    dsns: list[str] = []
    everybody = anyio.Event()

    async def use() -> None:
        async with EmbeddedPostgres(data) as pg:
            dsns.append(pg.dsn)
            if len(dsns) == 4:
                everybody.set()
            await everybody.wait()
            assert await ask(pg.dsn, "SELECT 1") == 1

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(use)
    assert len(set(dsns)) == 1
    assert postmaster(data) is None


async def test_a_killed_gateways_server_is_adopted(data: Path) -> None:
    first = await anyio.to_thread.run_sync(Gateway, data)
    await ask(first.dsn, "CREATE TABLE t AS SELECT 42 AS a")
    pid = postmaster(data)
    assert pid is not None
    await anyio.to_thread.run_sync(first.kill)
    async with EmbeddedPostgres(data) as pg:
        assert postmaster(data) == pid
        assert await ask(pg.dsn, "SELECT a FROM t") == 42
    gone(pid)


async def test_gateway_and_server_killed(data: Path) -> None:
    first = await anyio.to_thread.run_sync(Gateway, data)
    await ask(first.dsn, "CREATE TABLE t AS SELECT 42 AS a")
    pid = postmaster(data)
    assert pid is not None
    await anyio.to_thread.run_sync(first.kill)
    os.kill(pid, signal.SIGKILL)
    async with EmbeddedPostgres(data) as pg:
        assert postmaster(data) not in (pid, None)
        assert await ask(pg.dsn, "SELECT a FROM t") == 42


async def test_a_stopping_server_is_waited_for(data: Path) -> None:
    pg = EmbeddedPostgres(data)
    await pg.start()
    pid = postmaster(data)
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    async with EmbeddedPostgres(data) as again:
        assert await ask(again.dsn, "SELECT 1") == 1
    await pg.stop()


async def test_a_number_that_another_process_has_now(data: Path) -> None:
    other = subprocess.Popen(["sleep", "300"])
    try:
        lines = [
            str(other.pid),
            str(data / "postgres"),
            "1700000000",
            "5432",
            str(data / "postgres"),
            "",
            "1 1",
            "ready",
        ]
        (data / "postgres/postmaster.pid").write_text("\n".join(lines) + "\n")
        async with EmbeddedPostgres(data) as pg:
            assert await ask(pg.dsn, "SELECT 1") == 1
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_a_server_that_dies_is_started_again(data: Path) -> None:
    async with EmbeddedPostgres(data) as pg, anyio.create_task_group() as group:
        group.start_soon(lambda: pg.keep(interval=0.02))
        pid = postmaster(data)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with anyio.fail_after(30):
            while True:
                try:
                    assert await ask(pg.dsn, "SELECT 1") == 1
                    if postmaster(data) != pid:
                        break
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    pass
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


async def test_ctrl_c_in_the_terminal_is_for_the_gateway(data: Path) -> None:
    async with EmbeddedPostgres(data):
        pid = postmaster(data)
        assert pid is not None
        assert os.getsid(pid) == pid != os.getsid(0)


async def test_an_interrupted_making_leaves_nothing_half(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = Path(tempfile.mkdtemp(prefix="tg-half-"))
    directory.chmod(0o711)
    try:
        (directory / "postgres.new-1234").mkdir()
        (directory / "postgres.new-1234/PG_VERSION").write_text("18\n")
        async with EmbeddedPostgres(directory, settings=FAST) as pg:
            assert await ask(pg.dsn, "SELECT 1") == 1
        assert not list(directory.glob("postgres.new-*"))
    finally:
        shutil.rmtree(directory)


async def test_the_log_does_not_grow_for_ever(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_BYTES", 2000)
    (data / "postgres.log").write_text("x" * 3000)
    async with EmbeddedPostgres(data) as pg, anyio.create_task_group() as group:
        assert (data / "postgres.log.1").read_text() == "x" * 3000
        group.start_soon(lambda: pg.keep(interval=0.02))
        for number in range(30):
            with pytest.raises(asyncpg.PostgresError):
                await ask(pg.dsn, f"SELECT nonsense_{number:0100}")
        with anyio.fail_after(60):
            while (data / "postgres.log").stat().st_size > 2000:
                await anyio.sleep(0.01)
        assert "nonsense" in (data / "postgres.log.1").read_text()
        group.cancel_scope.cancel()


# What it says when it cannot.


async def refusal(data: Path) -> str:
    with anyio.fail_after(60), pytest.raises(EmbeddedPostgresError) as refused:
        await EmbeddedPostgres(data, settings=FAST, start_timeout=20).start()
    message = str(refused.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


async def test_another_major_version(data: Path) -> None:
    (data / "postgres/PG_VERSION").write_text("17\n")
    message = await refusal(data)
    assert "was made by PostgreSQL 17, and this tesgate carries PostgreSQL 18" in message
    assert "pg_dump" in message
    assert "pg_upgrade" in message


async def test_something_else_in_its_place(data: Path) -> None:
    (data / "postgres/PG_VERSION").unlink()
    assert "holds something else than a PostgreSQL cluster" in await refusal(data)


async def test_a_server_that_refuses_its_configuration(data: Path) -> None:
    with (data / "postgres/postgresql.conf").open("a") as conf:
        conf.write("max_connections = many\n")
    message = await refusal(data)
    assert "did not start" in message
    assert str(data / "postgres.log") in message


async def test_a_data_directory_that_cannot_be_written() -> None:
    message = await refusal(Path("/proc/tesgate"))
    assert "/proc/tesgate" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount file systems")
@pytest.mark.parametrize(("options", "says"), [("ro", "cannot be written to"), ("size=3m", "is full")])
async def test_a_read_only_and_a_full_disk(options: str, says: str) -> None:
    directory = Path(tempfile.mkdtemp(prefix="tg-mount-"))
    directory.chmod(0o711)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},mode=711", "tesgate-test", str(directory)])
    if mounted.returncode:
        directory.rmdir()
        pytest.skip("mount is not allowed here")
    try:
        message = await refusal(directory)
        assert says in message
        assert str(directory) in message
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


def test_a_deep_data_directory_has_a_short_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path.joinpath(*["a" * 40] * 4)
    deep.mkdir(parents=True)
    sockets = choose_socket_directory(deep, user=None)
    try:
        assert len(os.fsencode(sockets / ".s.PGSQL.5432")) <= 103
        assert sockets.stat().st_mode & 0o777 == 0o700
        assert choose_socket_directory(deep, user=None) == sockets
        sockets.chmod(0o755)  # as somebody else might have prepared it
        with tempfile.TemporaryDirectory(prefix="tg-run-") as runtime:
            monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
            elsewhere = choose_socket_directory(deep, user=None)
            assert elsewhere.parent == Path(runtime)
            elsewhere.chmod(0o755)
            with pytest.raises(EmbeddedPostgresError, match="not a directory of ours"):
                choose_socket_directory(deep, user=None)
    finally:
        sockets.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone runs the server as somebody else")
async def test_a_closed_home_stays_closed() -> None:
    home = Path(tempfile.mkdtemp(prefix="tg-home-"))  # 0700, like /root
    data = home / "tesgate"
    try:
        async with EmbeddedPostgres(data, settings=FAST) as pg:
            assert await ask(pg.dsn, "SELECT 1") == 1
        assert home.stat().st_mode & 0o777 == 0o700
        assert (data / "postgres").is_symlink()
        async with EmbeddedPostgres(data) as pg:
            assert await ask(pg.dsn, "SELECT 1") == 1
    finally:
        real = (data / "postgres").resolve()
        assert real.is_relative_to("/var/lib/tesgate")
        shutil.rmtree(real)
        shutil.rmtree(home)
