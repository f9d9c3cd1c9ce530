"""``tesgate serve``: from settings to a listening process, and to an orderly end."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import anyio
import anyio.abc
import structlog
import uvicorn

from tesgate import __version__
from tesgate.app.gateway import Gateway
from tesgate.app.places import DataDir
from tesgate.app.ports import who_listens
from tesgate.app.server import server_of
from tesgate.app.tls import Certificate
from tesgate.app.web import build_app
from tesgate.config import Settings, check_bind
from tesgate.control.keeper import Superseded
from tesgate.control.local_agent import LocalAgent
from tesgate.control.supervisor import repeat
from tesgate.errors import ConfigError
from tesgate.store.errors import StoreError
from tesgate.telemetry import configure_logging

__all__ = ["serve"]

log = structlog.get_logger(__name__)

EXIT_SUPERSEDED = 7
"""6 means elsewhere that there is no such task."""

CERTIFICATE_TICK = timedelta(seconds=5)

LEAST_FILES = 256
"""Open files: PostgreSQL's connections, held polls, clients and logs."""
MOST_FILES = 65_536


async def serve(settings: Settings) -> int:
    """Run a gateway until it is told to end; the process's exit code. Raises `ConfigError` with the way out."""
    configure_logging(form=settings.telemetry.log_format, level=settings.telemetry.log_level)
    check_bind(settings.server.host, settings)
    certificate = Certificate.of(settings.server)
    _raise_open_files()
    place = DataDir(settings.data_dir)
    place.make()
    place.warn_of_open_secrets(settings)
    try:
        with place.locked(), _listening(settings) as listener:
            place.check_original()
            async with Gateway.open(settings, place) as gateway:
                return await _run(gateway, listener, certificate)
    except StoreError as error:
        raise ConfigError(str(error)) from error


async def _run(gateway: Gateway, listener: socket.socket, certificate: Certificate | None) -> int:
    settings = gateway.settings
    tls = None if certificate is None else certificate.current
    server = server_of(build_app(gateway, gateway), settings.server, tls)
    supervisor = gateway.supervise()
    if certificate is not None:
        supervisor.add("certificate", lambda: repeat("certificate", certificate.once, CERTIFICATE_TICK))
    url = settings.server.public_url or _url(listener, "http" if certificate is None else "https")
    if settings.agent.start and settings.runtime.engine != "none":
        await gateway.issue_agent_token()
        agent = _agent(gateway, url)
        gateway.agent_trouble = lambda: agent.trouble
        supervisor.add("local-agent", lambda: repeat("local-agent", agent.once, timedelta(seconds=1)))
    code = 0
    # What is there now stays. A full collection would look at all of it again and again, a tenth of a second each time.
    gc.collect()
    gc.freeze()
    try:
        async with anyio.create_task_group() as group:
            # Before anybody is told that we are here: a signal must not meet the default, which ends without a word.
            await group.start(_end_on_signal, gateway, server)
            group.start_soon(supervisor.run)
            log.info(
                "tesgate is listening", url=url, version=__version__, deployment=gateway.deployment, docs=f"{url}/docs"
            )
            # On a full disk, or with nobody who reads, the gateway does without these words.
            with contextlib.suppress(OSError):
                print(  # noqa: T201 - for the person (and scripts) that started it; logs go to stderr
                    f"tesgate {__version__} listens on {url} (TES at {url}/ga4gh/tes/v1, docs at {url}/docs)",
                    flush=True,
                )
            await server.serve(sockets=[listener])
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        gateway.wakes.close()
        superseded, others = errors.split(Superseded)
        if superseded is None or others is not None:
            raise
        log.error("another process has taken over this replica; this one ends")
        return EXIT_SUPERSEDED
    with anyio.move_on_after(5, shield=True):
        await gateway.leave()
    log.info("tesgate has ended")
    return code


async def _end_on_signal(
    gateway: Gateway,
    server: uvicorn.Server,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM, SIGINT and SIGHUP: stop taking requests, answer the held polls, hand over. A second one ends at once."""
    async with _signals() as received:
        task_status.started()
        async for number in received:
            if gateway.wakes.closing:
                server.force_exit = True
            log.info("ending", signal=signal.Signals(number).name)
            gateway.wakes.close()
            server.should_exit = True


@contextlib.asynccontextmanager
async def _signals() -> AsyncIterator[AsyncIterator[signal.Signals]]:
    numbers = [signal.SIGTERM, signal.SIGINT]
    # The terminal was closed; under nohup that is to be ignored.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*numbers) as received:
        yield received


def _raise_open_files() -> None:
    """As many open files as the system grants. Raises `ConfigError` where they are too few to work with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < LEAST_FILES:
        raise ConfigError(
            f"only {soft} files may be open at once here, and a gateway needs {LEAST_FILES}; raise the limit "
            "(`ulimit -n 4096`, or LimitNOFILE= under systemd)"
        )


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The socket, before anything else is started: a port that is taken is said at once."""
    host, port = settings.server.host, settings.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(
            f"server.host: {host} is no address to listen on ({error.strerror}); correct --host"
        ) from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            # The port is ours and refuses nobody from here on: who connects waits until the gateway is ready.
            listener.listen(2048)
        except OSError as error:
            raise ConfigError(_not_listening(host, port, error)) from None
        listener.setblocking(False)
        yield listener


def _not_listening(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return f"server.host: {host} is no address of this machine; correct --host"
    if error.errno == errno.EACCES:
        return f"server.port: only root may listen on port {port}; take one above 1023 with --port"
    holder = who_listens(port) if error.errno == errno.EADDRINUSE else ""
    return (
        f"server.port: {host}:{port} cannot be listened on ({error.strerror}); stop {holder or 'what uses it'}, or "
        "take another port with --port (0 takes a free one)"
    )


def _url(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _agent(gateway: Gateway, url: str) -> LocalAgent:
    settings, place = gateway.settings, gateway.place
    runtime, agent = settings.runtime, settings.agent
    engine = runtime.engine
    if engine == "auto" and settings.auth.mode != "none":
        engine = "docker"  # never bubblewrap where there can be more than one caller
    scratch = agent.scratch or place.path / "agent"
    command = [
        *(sys.executable, "-m", "tesgate.runner", "agent"),
        *("--url", url),
        *("--token-file", str(place.agent_token)),
        *("--scratch", str(scratch)),
        *("--runtime", engine),
        *("--pool", agent.pool),
        *("--idle-exit", str(agent.idle_exit)),
        *("--docker-socket", runtime.docker_socket),
    ]
    if runtime.network != "default":
        command += ["--network", runtime.network]
    if runtime.user_namespace is not None:
        command += ["--user-namespace", runtime.user_namespace]
    for path in runtime.sandbox_paths:
        command += ["--sandbox-path", str(path)]
    if runtime.registry_auth_file is not None:
        command += ["--auth-file", str(runtime.registry_auth_file)]
    for name, value in (("--cpus", agent.cpus), ("--ram-gb", agent.ram_gb), ("--disk-gb", agent.disk_gb)):
        if value is not None:
            command += [name, str(value)]
    if agent.gpus is not None:
        command += ["--gpus", str(agent.gpus)]
    if agent.ca_file is not None:
        command += ["--ca-file", str(agent.ca_file)]
    for zone in agent.zones:
        command += ["--zone", zone]
    for root in settings.file_roots:
        mode = ":mount" if root.mode == "mount" else ""
        command += ["--root", f"{root.name}={root.path}" + ("" if root.writable else ":ro") + mode]
        if root.volume is not None:
            command += ["--root-volume", f"{root.name}={root.volume}"]
    for name, word in agent.labels.items():
        command += ["--label", f"{name}={word}"]
    identity = hashlib.sha256("\0".join([__version__, *command]).encode()).hexdigest()
    return LocalAgent(
        command=command,
        identity=identity,
        record=place.path / "agent.json",
        log_file=place.agent_log,
        hidden=_named_secrets(settings),
    )


def _named_secrets(settings: Settings) -> list[str]:
    """Variables that the settings name as places of secrets (``env:NAME``), wherever they do."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from texts(inner)

    return [word.removeprefix("env:") for word in texts(settings.model_dump()) if word.startswith("env:")]
