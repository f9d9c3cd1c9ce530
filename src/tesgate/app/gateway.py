"""One gateway: all rooms put together from the settings."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from tesgate.app.database import Opened, open_database
from tesgate.app.gates import AgentGate
from tesgate.app.loops import Loops
from tesgate.app.places import DataDir
from tesgate.app.plans import Plans, url_policy_of
from tesgate.app.stores import Stores
from tesgate.app.workspace import claim_workspace, open_workspace, workspace_place
from tesgate.auth.attempt_tokens import AttemptTokens
from tesgate.auth.authenticator import Authenticator
from tesgate.auth.tokens import TokensFile, hash_token, make_token
from tesgate.config import Settings
from tesgate.control.held import Trust
from tesgate.control.supervisor import Supervisor
from tesgate.errors import Gone, Unavailable
from tesgate.metrics import Metrics
from tesgate.model.intake import IntakeRules
from tesgate.model.pools import PoolRule
from tesgate.model.retries import Retries
from tesgate.model.wishes import BACKEND_PARAMETERS
from tesgate.services.access import AccessService
from tesgate.services.agents import Agents
from tesgate.services.attempts import AttemptService, Policy
from tesgate.services.drs import DrsAnswers
from tesgate.services.tasks import Tasks
from tesgate.services.timing import Timing
from tesgate.storage.credentials import Credentials
from tesgate.storage.drs.resolver import Resolver
from tesgate.storage.drs.web import JsonWeb
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.workspace import Stream, Workspace
from tesgate.store.attempts import Holder
from tesgate.store.errors import StoreError
from tesgate.store.refusals import refusals
from tesgate.store.replicas import ReplicaStore
from tesgate.store.wakes import Wakes

__all__ = ["LOCAL_AGENT", "Gateway"]

LOCAL_AGENT = "local-agent"
"""Name of the token of the agent that `serve` starts."""


class Gateway:
    """Everything that lives as long as the process. It is what the API and the internal routes ask for."""

    def __init__(self, *, settings: Settings, place: DataDir, opened: Opened, holder: Holder) -> None:
        self.settings = settings
        self.place = place
        self.holder = holder
        self.deployment = opened.deployment
        self.metrics = Metrics()
        self.backend_parameters: Sequence[str] = BACKEND_PARAMETERS
        self._pools = [PoolRule(pool.name, frozenset(pool.callers), frozenset(pool.groups)) for pool in settings.pools]
        self.workspace: Workspace = open_workspace(settings, place)
        self._opened = opened
        self._database = opened.database
        self._attempt_tokens = AttemptTokens(key=opened.key)

        self.wakes = Wakes()
        self._stores = Stores.on(
            self._database,
            wakes=self.wakes,
            ended=lambda state: self.metrics.tasks_total.labels(state, "none").inc(),
        )
        reserved = workspace_place(settings)
        self._endpoints = Endpoints(settings.s3, reserved=None if reserved is None else reserved[1])
        self._agent_gate = AgentGate(self._stores.tokens, remember=settings.auth.cache_seconds)

        self.authenticator = Authenticator(
            mode=settings.auth.mode,
            store=self._stores.tokens,
            tokens_file=None if settings.auth.tokens_file is None else TokensFile(settings.auth.tokens_file),
            cache_seconds=settings.auth.cache_seconds,
        )
        self.tasks = Tasks(
            store=self._stores.tasks,
            rules=IntakeRules(
                limits=settings.limits,
                defaults=settings.defaults,
                backend_parameters=frozenset(self.backend_parameters),
            ),
            share_with_group=settings.auth.share_with_group,
            pools=self._pools,
        )
        self.agents = Agents(
            store=self._stores.agents, open_to_all=settings.auth.mode == "none", woken=self.wakes.queue
        )
        control = settings.control
        self._retries = Retries(
            max_attempts=settings.retries.max_attempts,
            first=timedelta(seconds=settings.retries.backoff_first),
            factor=settings.retries.backoff_factor,
            longest=timedelta(seconds=settings.retries.backoff_max),
        )
        self._grace = timedelta(seconds=control.cancel_grace)
        self._timing = Timing(metrics=self.metrics)
        self._plans = Plans(
            settings=settings,
            deployment=opened.deployment,
            mint=self._attempt_tokens.mint,
            endpoints=self._endpoints,
        )
        self.attempt_service = AttemptService(
            agents=self._stores.agents,
            attempts=self._stores.attempts,
            wakes=self.wakes,
            policy=Policy(
                lease=timedelta(seconds=control.publish_lease),
                grace=self._grace,
                # An agent that is held is silent meanwhile, and must not be taken for lost.
                longest_poll=timedelta(seconds=min(20.0, control.agent_lost_after / 3)),
                retries=self._retries,
            ),
            plan_for=self._plans,
            metrics=self.metrics,
            timing=self._timing,
        )
        self._drs = Resolver(settings.drs, JsonWeb(url_policy_of(settings)))
        self.access_service = AccessService(
            uploads=self._stores.uploads,
            endpoints=self._endpoints,
            logins=Credentials(settings.credentials),
            drs=DrsAnswers(self._drs),
        )
        self.agent_trouble: Callable[[], str] = lambda: ""
        self._trust = Trust(holder=holder, window=timedelta(seconds=control.trust_window))

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings, place: DataDir) -> AsyncIterator[Gateway]:
        """Database, schema, deployment, and this replica's next epoch. The data directory must be locked."""
        async with open_database(settings, place) as opened:
            with refusals(opened.database):
                holder = await ReplicaStore(database=opened.database).enter(
                    place.replica_id(), host=socket.gethostname(), roles=settings.roles
                )
            gateway = cls(settings=settings, place=place, opened=opened, holder=holder)
            try:
                await claim_workspace(gateway.workspace, gateway.deployment)
                yield gateway
            finally:
                await gateway._endpoints.close()
                await gateway.workspace.aclose()
                await gateway._drs.close()

    # for the internal routes

    async def pool_of(self, token: str) -> str | None:
        """See `tesgate.api.internal.InternalContext`."""
        return await self._agent_gate.pool_of(token)

    def is_attempt_token(self, token: str, task_id: str, number: int) -> bool:
        """See `tesgate.api.internal.InternalContext`."""
        return self._attempt_tokens.verify(token) == (task_id, number)

    async def write_log(self, task_id: str, number: int, step: str, stream: Stream, offset: int, data: bytes) -> None:
        """See `tesgate.api.internal.InternalContext`."""
        # Asked once for each log, at its beginning: a token outlives its task's row.
        if offset == 0 and not await self.attempt_service.knows(task_id, number):
            raise Gone(f"attempt {number} of task {task_id} is not known any more")
        try:
            await self.workspace.write_at(task_id, number, int(step), stream, offset, data)
        except OSError as error:
            raise Unavailable(f"the gateway's workspace cannot be written now ({error.strerror})") from error
        self.metrics.log_bytes.inc(len(data))

    # for probes

    async def readiness(self) -> Sequence[str]:
        """Why requests cannot be answered now."""
        try:
            await self._database.fetchval("SELECT 1")
        except StoreError as error:
            return [str(error)]
        return [] if self._trust.holds() else ["This replica has not reached the database for a while."]

    # the loops

    def supervise(self) -> Supervisor:
        """The loops of this replica's roles."""
        return Loops(
            settings=self.settings,
            deployment=self.deployment,
            data=self.place.path,
            embedded=self._opened.embedded,
            stores=self._stores,
            wakes=self.wakes,
            trust=self._trust,
            metrics=self.metrics,
            timing=self._timing,
            retries=self._retries,
            grace=self._grace,
            pools=self._pools,
            roots=self._plans.settings.roots,
            workspace=self.workspace,
            endpoints=self._endpoints,
            hint=lambda: self.agent_trouble(),  # noqa: PLW0108 - set later, when the agent is known
        ).supervise()

    # the laptop's agent

    async def issue_agent_token(self) -> None:
        """A fresh token for the agent that `serve` starts, readable for us alone."""
        token = self.place.agent_token.read_text("utf-8").strip() if self.place.agent_token.exists() else ""
        if await self._agent_gate.pool_of(token) != self.settings.agent.pool:
            token = make_token("agent")
            self.place.write_private(self.place.agent_token, token + "\n")
        await self._stores.tokens.replace(
            name=f"{LOCAL_AGENT}-{self.holder.replica_id}",
            kind="agent",
            hash=hash_token(token),
            subject="agent",
            pool=self.settings.agent.pool,
        )

    async def leave(self) -> None:
        """Hand over: others adopt at once."""
        await self._stores.replicas.leave(self.holder)
