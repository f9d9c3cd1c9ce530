"""Puts an agent together from its settings and runs it: the runner's composition root."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Dict, List, Optional, Tuple
from urllib.parse import urlsplit

import anyio
import anyio.to_thread

from . import exec as exec_program
from .absent import AbsentRuntime
from .agent import EXIT_LOCKED, EXIT_OK, EXIT_SCRATCH, EXIT_SUPERSEDED, PROBE_PATIENCE, Agent
from .attempts import AGAIN
from .gateway import Backoff, GatewayClient
from .kept import Kept
from .plan import Plan
from .report import Root
from .runtime.base import EngineUnavailable, Runtime, RuntimeFault
from .runtime.sockets import AUTO
from .scratch import Scratch, ScratchError, ScratchLocked
from .settings import AgentSettings
from .step import user_of
from .storages import headers_of, storages_of
from .transfer.copying import process_umask
from .transfer.ftp import FtpServers
from .transfer.stage import Stager
from .volumes import VolumeError, known_without_engine, resolve_volumes
from .watch import Watch
from .work import Tools

__all__ = ["EXIT_LOCKED", "EXIT_OK", "EXIT_SCRATCH", "EXIT_SUPERSEDED", "client_of", "run_agent"]

_log = logging.getLogger("tesgate.agent")


async def run_agent(settings: AgentSettings) -> int:
    """Run an agent until it ends, and return its exit code (``EXIT_...``)."""
    try:
        scratch = Scratch(settings.scratch)
    except ScratchLocked as exc:
        _log.error("%s", exc)
        return EXIT_LOCKED
    except ScratchError as exc:
        _log.error("%s", exc)
        return EXIT_SCRATCH
    try:
        try:
            exec_path = scratch.install(exec_program.content())
        except (exec_program.ExecMissing, OSError) as exc:
            _log.error("%s", exc)
            return EXIT_SCRATCH
        await anyio.to_thread.run_sync(scratch.sweep)
        client = client_of(settings)
        client.instance_of = lambda: scratch.instance
        watch = Watch()
        if settings.runtime == "auto":
            settings = dataclasses.replace(settings, runtime=await _choose(settings, scratch, exec_path))
        runtime = open_runtime(settings, scratch, exec_path)
        kept = Kept(scratch, runtime)
        wanted = settings.roots
        try:
            roots = await _roots(settings, scratch)
        except VolumeError as exc:
            _log.error("%s", exc)
            return EXIT_SCRATCH
        settings = dataclasses.replace(settings, roots=known_without_engine(wanted) if roots is None else roots)
        tools = Tools(
            client=client,
            runtime=runtime,
            watch=watch,
            exec_path=exec_path,
            stager=_Stagers(settings, client),
            host=settings.host,
            kept=kept,
            removals=anyio.CapacityLimiter(2),
        )
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(kept.run)
                agent = Agent(settings=settings, scratch=scratch, client=client, tools=tools)
                if roots is None:
                    group.start_soon(_offer_later, wanted, settings, scratch, agent)
                code = await agent.run()
                group.cancel_scope.cancel()
            return code
        finally:
            client.close()
            watch.close()
            with anyio.CancelScope(shield=True):
                await runtime.aclose()
    finally:
        scratch.close()


async def _roots(settings: AgentSettings, scratch: Scratch) -> Optional[List[Root]]:
    """Return the roots as they really lie; None: the engine, which alone knows, stays away.

    With attempts here it is waited for without end: they may need such a root, and would fail for good without it.
    Raises `VolumeError`.
    """
    deadline, backoff = anyio.current_time() + PROBE_PATIENCE, Backoff()
    while True:
        try:
            return await _resolved(settings.roots, settings, scratch)
        except EngineUnavailable as exc:
            pause = backoff.next()
            if anyio.current_time() + pause > deadline and not scratch.names():
                _log.error("file roots that are volumes are not offered for now: %s", exc)
                return None
            _log.info("waiting for the engine, which knows the volumes: %s", exc)
        await anyio.sleep(pause)


async def _resolved(roots: List[Root], settings: AgentSettings, scratch: Scratch) -> List[Root]:
    return await anyio.to_thread.run_sync(resolve_volumes, roots, _socket(settings, scratch), scratch.record_socket)


async def _offer_later(wanted: List[Root], settings: AgentSettings, scratch: Scratch, agent: Agent) -> None:
    """Offer the roots that are volumes as soon as the engine tells where they lie."""
    while True:
        await anyio.sleep(AGAIN)
        try:
            settings.roots = await _resolved(wanted, settings, scratch)
        except (EngineUnavailable, VolumeError) as exc:
            _log.info("file roots that are volumes are still not offered: %s", exc)
            continue
        agent.register_anew()
        return


def client_of(settings: AgentSettings) -> GatewayClient:
    """Return the agent's client of its gateway; nothing is asked of it yet."""
    parts = urlsplit(settings.url)
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        _log.warning("%s is not encrypted: the agent's token can be read on the way; use https", settings.url)
    return GatewayClient(
        url=settings.url,
        token_file=settings.token_file,
        ca_file=settings.ca_file,
        certificate=settings.certificate,
        key=settings.key,
    )


async def _choose(settings: AgentSettings, scratch: Scratch, exec_path: str) -> str:
    """Docker where an engine answers, else bubblewrap; what earlier attempts here run on stays what it is."""
    known = scratch.recall_runtime()
    if known is not None:
        return known
    runtime = open_runtime(dataclasses.replace(settings, runtime="docker"), scratch, exec_path)
    try:
        await runtime.probe()
        chosen = "docker"
    except RuntimeFault as exc:
        _log.info("bubblewrap is taken: %s", exc)
        chosen = "bubblewrap"
    finally:
        with anyio.CancelScope(shield=True):
            await runtime.aclose()
    scratch.record_runtime(chosen)
    return chosen


class _Stagers:
    """Makes the stager of each attempt."""

    def __init__(self, settings: AgentSettings, client: GatewayClient) -> None:
        self._settings = settings
        self._client = client
        self._umask = process_umask()
        self._ftp = FtpServers()

    def __call__(self, plan: Plan) -> Stager:
        user = user_of(plan.run_as)
        owner: Optional[Tuple[int, int]] = None
        if user is not None:
            uid, _, gid = user.partition(":")
            owner = (int(uid), int(gid))
        return Stager(
            roots=self._settings.roots,
            policy=plan.url_policy,
            concurrency=self._settings.concurrency,
            owner=owner,
            umask=self._umask,
            storages=storages_of(plan, self._client, ftp=self._ftp),
            headers_for=headers_of(plan, self._client),
        )


def _socket(settings: AgentSettings, scratch: Scratch) -> str:
    """Attempts stay with the engine that they were begun on, whichever answers first today."""
    return (settings.docker_socket == AUTO and scratch.recall_socket()) or settings.docker_socket


def open_runtime(settings: AgentSettings, scratch: Scratch, exec_path: str) -> Runtime:
    """Return the runtime that the settings name; nothing is asked of it yet."""
    # By scratch root, not by instance: whoever lost the instance still knows what is its own to remove.
    identity: Dict[str, str] = {"tesgate.scratch": scratch.root}
    if settings.runtime == "docker":
        from .runtime.containers import ContainerSettings
        from .runtime.docker import DockerRuntime

        return DockerRuntime(
            identity=identity,
            socket=_socket(settings, scratch),
            found=scratch.record_socket,
            exec_path=exec_path,
            auth_file=settings.auth_file,
            settings=ContainerSettings(
                network=settings.network or "bridge", user_namespace=settings.user_namespace or ""
            ),
        )
    if settings.runtime == "bubblewrap":
        from .runtime.bubblewrap import BubblewrapRuntime
        from .runtime.sandbox import SandboxSettings

        return BubblewrapRuntime(
            state=os.path.join(scratch.root, "bubblewrap"),
            settings=SandboxSettings(
                network=settings.network or "none",
                allow_host_network=settings.network == "host",
                read_only=tuple(settings.sandbox_paths),
            ),
        )
    return AbsentRuntime()
