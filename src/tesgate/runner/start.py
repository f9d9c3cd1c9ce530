"""Puts an agent together from its settings and runs it: the runner's composition root."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Dict, Optional, Tuple

import anyio
import anyio.to_thread

from . import exec as exec_program
from .absent import AbsentRuntime
from .agent import EXIT_LOCKED, EXIT_OK, EXIT_SCRATCH, EXIT_SUPERSEDED, Agent
from .gateway import GatewayClient
from .plan import Plan
from .runtime.base import Runtime, RuntimeFault
from .scratch import Scratch, ScratchError, ScratchLocked
from .settings import AgentSettings
from .step import user_of
from .storages import headers_of, storages_of
from .transfer.copying import process_umask
from .transfer.stage import Stager
from .watch import Watch
from .work import Tools

__all__ = ["EXIT_LOCKED", "EXIT_OK", "EXIT_SCRATCH", "EXIT_SUPERSEDED", "run_agent"]

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
        client = GatewayClient(url=settings.url, token_file=settings.token_file, ca_file=settings.ca_file)
        client.instance_of = lambda: scratch.instance
        watch = Watch()
        if settings.runtime == "auto":
            settings = dataclasses.replace(settings, runtime=await _choose(settings, scratch, exec_path))
        runtime = open_runtime(settings, scratch, exec_path)
        tools = Tools(
            client=client,
            runtime=runtime,
            watch=watch,
            exec_path=exec_path,
            stager=_Stagers(settings, client),
            host=settings.host,
            removals=anyio.CapacityLimiter(2),
        )
        try:
            return await Agent(settings=settings, scratch=scratch, client=client, tools=tools).run()
        finally:
            client.close()
            watch.close()
            with anyio.CancelScope(shield=True):
                await runtime.aclose()
    finally:
        scratch.close()


async def _choose(settings: AgentSettings, scratch: Scratch, exec_path: str) -> str:
    """Docker where an engine answers, else bubblewrap; what earlier attempts here run on stays what it is."""
    kept = scratch.recall_runtime()
    if scratch.names() and kept is not None:
        return kept
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
            storages=storages_of(plan, self._client),
            headers_for=headers_of(plan, self._client),
        )


def open_runtime(settings: AgentSettings, scratch: Scratch, exec_path: str) -> Runtime:
    """Return the runtime that the settings name; nothing is asked of it yet."""
    # By scratch root, not by instance: whoever lost the instance still knows what is its own to remove.
    identity: Dict[str, str] = {"tesgate.scratch": scratch.root}
    if settings.runtime == "docker":
        from .runtime.containers import ContainerSettings
        from .runtime.docker import DockerRuntime

        return DockerRuntime(
            identity=identity,
            socket=settings.docker_socket,
            exec_path=exec_path,
            auth_file=settings.auth_file,
            settings=None if settings.network is None else ContainerSettings(network=settings.network),
        )
    if settings.runtime == "bubblewrap":
        from .runtime.bubblewrap import BubblewrapRuntime
        from .runtime.sandbox import SandboxSettings

        return BubblewrapRuntime(
            state=os.path.join(scratch.root, "bubblewrap"),
            settings=None
            if settings.network is None
            else SandboxSettings(network=settings.network, allow_host_network=settings.network == "host"),
        )
    return AbsentRuntime()
