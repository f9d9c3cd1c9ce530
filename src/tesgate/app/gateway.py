"""One gateway: all rooms put together from the settings."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import anyio

from tesgate.app.database import Opened, open_database
from tesgate.app.gates import AgentGate
from tesgate.app.places import DataDir
from tesgate.app.plans import Plans, url_policy_of
from tesgate.app.workspace import claim_workspace, keeps_logs, open_workspace, workspace_place
from tesgate.auth.attempt_tokens import AttemptTokens
from tesgate.auth.authenticator import Authenticator
from tesgate.auth.tokens import TokensFile, hash_token, make_token
from tesgate.backends.base import Backend
from tesgate.backends.pool import PoolBackend
from tesgate.config import Settings
from tesgate.control.dispatcher import Dispatcher
from tesgate.control.drivers import Drivers
from tesgate.control.held import Trust
from tesgate.control.janitor import Janitor, LogKeeper
from tesgate.control.keeper import Keeper
from tesgate.control.observer import Observer
from tesgate.control.orphans import OrphanSweeper
from tesgate.control.supervisor import Supervisor, repeat
from tesgate.control.uploads import UploadSweeper
from tesgate.control.watchers import SilenceWatcher, watch_backend
from tesgate.errors import Gone, Unavailable
from tesgate.metrics import Metrics, Sample
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
from tesgate.store.agents import AgentStore
from tesgate.store.attempts import Assigned, AttemptStore, Holder
from tesgate.store.errors import StoreError
from tesgate.store.listener import Listener, Notifier
from tesgate.store.partitions import PartitionStore
from tesgate.store.refusals import refusals
from tesgate.store.replicas import ReplicaStore
from tesgate.store.tasks import TaskStore
from tesgate.store.tokens import TokenStore
from tesgate.store.uploads import UploadStore
from tesgate.store.wakes import CHANNELS, Wakes

__all__ = ["LOCAL_AGENT", "Gateway"]

LOCAL_AGENT = "local-agent"
"""Name of the token of the agent that `serve` starts."""

AGENT_TICK = timedelta(seconds=5)

SWEEP = timedelta(seconds=20)
"""Between two looks for uploads whose attempt is over."""

ORPHANS = timedelta(minutes=10)
"""Between two looks for uploads of which nobody ever heard."""


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
        self._task_store = TaskStore(
            database=self._database,
            wakes=self.wakes,
            ended=lambda state: self.metrics.tasks_total.labels(state, "none").inc(),
        )
        reserved = workspace_place(settings)
        self._endpoints = Endpoints(settings.s3, reserved=None if reserved is None else reserved[1])
        self._attempts = AttemptStore(database=self._database)
        self._agents = AgentStore(database=self._database)
        self._replicas = ReplicaStore(database=self._database)
        self._tokens = TokenStore(database=self._database)
        self._agent_gate = AgentGate(self._tokens, remember=settings.auth.cache_seconds)

        self.authenticator = Authenticator(
            mode=settings.auth.mode,
            store=self._tokens,
            tokens_file=None if settings.auth.tokens_file is None else TokensFile(settings.auth.tokens_file),
            cache_seconds=settings.auth.cache_seconds,
        )
        self.tasks = Tasks(
            store=self._task_store,
            rules=IntakeRules(
                limits=settings.limits,
                defaults=settings.defaults,
                backend_parameters=frozenset(self.backend_parameters),
            ),
            share_with_group=settings.auth.share_with_group,
            pools=self._pools,
        )
        self.agents = Agents(store=self._agents, open_to_all=settings.auth.mode == "none", woken=self.wakes.queue)
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
            agents=self._agents,
            attempts=self._attempts,
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
        self._uploads = UploadStore(database=self._database)
        self._drs = Resolver(settings.drs, JsonWeb(url_policy_of(settings)))
        self.access_service = AccessService(
            uploads=self._uploads,
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
        settings, control = self.settings, self.settings.control
        supervisor = Supervisor()
        heartbeat = timedelta(seconds=control.heartbeat)
        pool = PoolBackend(agents=self._agents, wakes=self.wakes, interval=timedelta(seconds=control.poll_interval))
        backends: dict[str, Backend] = {pool.name: pool}
        drivers = Drivers(
            attempts=self._attempts,
            backends=backends,
            trust=self._trust,
            wakes=self.wakes,
            retries=self._retries,
            grace=self._grace,
            crash_limit=control.crash_limit,
            metrics=self.metrics,
        )
        listener = Listener(self._database.dsn, channels=CHANNELS)
        for channel in CHANNELS:
            listener.subscribe(channel, lambda payload, channel=channel: self.wakes.heard(channel, payload))  # type: ignore[misc]
        notifier = Notifier(self._database)
        self.wakes.connect(send=lambda channel, payload: notifier.notify(channel, [payload] if payload else ()))
        self.wakes.announce()
        supervisor.add("listener", listener.run)
        supervisor.add("notifier", notifier.run)
        if self._opened.embedded is not None:
            supervisor.add("embedded-postgres", self._opened.embedded.keep)
        keeper = Keeper(
            replicas=self._replicas,
            trust=self._trust,
            drivers=drivers,
            wakes=self.wakes,
            adopt_after=timedelta(seconds=control.adopt_after),
            adopts="control" in settings.roles,
        )
        supervisor.add("keeper", lambda: self._repeat("keeper", keeper.once, heartbeat))
        observer = Observer(
            tasks=self._task_store,
            agents=self._agents,
            metrics=self.metrics,
            database=self._database,
            backends=list(backends),
            places={"data": self.place.path},
        )
        self.metrics.add_source(lambda: self._standing(drivers))
        supervisor.add("observer", lambda: self._repeat("observer", observer.once, timedelta(seconds=5)))
        supervisor.add("loop-lag", observer.watch_lag)
        days = settings.retention.log_days
        interval = timedelta(seconds=control.janitor_interval)

        async def hold() -> bool:
            return await self._replicas.hold_singleton(self.holder, LogKeeper.NAME, interval * 3)

        log_keeper = LogKeeper(
            tasks=self._task_store,
            logs=self.workspace,
            keep=None if days is None else timedelta(days=days),
            is_ours=keeps_logs(self.workspace, self.deployment, hold),
        )
        supervisor.add(
            "log-keeper",
            lambda: self._repeat("log-keeper", log_keeper.once, timedelta(seconds=control.janitor_interval)),
        )
        if "control" in settings.roles:
            self._control_loops(supervisor, keeper, drivers, pool, backends)
        return supervisor

    def _standing(self, drivers: Drivers) -> Iterator[Sample]:
        yield "trust_seconds", "How long this replica may still act on what it holds", self._trust.left()
        yield "attempts_followed", "Attempts that this replica follows", len(drivers)
        yield "heap_settled_objects", "Values that garbage collections do not look at any more", gc.get_freeze_count()

    def _control_loops(
        self,
        supervisor: Supervisor,
        keeper: Keeper,
        drivers: Drivers,
        pool: PoolBackend,
        backends: dict[str, Backend],
    ) -> None:
        settings, control = self.settings, self.settings.control
        self.wakes.follow_tasks(tell=drivers.tell, ended=drivers.ended)

        def assigned(given: Sequence[Assigned]) -> None:
            self._timing.assigned(given)
            drivers.assigned(given)

        roots = self._plans.settings.roots
        dispatcher = Dispatcher(
            tasks=self._task_store,
            attempts=self._attempts,
            agents=self._agents,
            trust=self._trust,
            assigned=assigned,
            prefix=f"tg-{self.deployment}-",
            known_roots=[(root.path, root.writable) for root in roots],
            mount_roots=roots if any(root.mounted for root in roots) else (),
            pool=settings.agent.pool,
            rules=self._pools,
            # Everybody is one user there: it is for a single caller.
            refused_runtimes=() if settings.auth.mode == "none" else ("bubblewrap",),
            hint=lambda: self.agent_trouble(),  # noqa: PLW0108 - set later, when the agent is known
            interval=timedelta(seconds=control.dispatch_interval),
        )
        silence = SilenceWatcher(
            agents=self._agents,
            replicas=self._replicas,
            trust=self._trust,
            tick=min(AGENT_TICK, timedelta(seconds=control.agent_lost_after) / 4),
            lost_after=timedelta(seconds=control.agent_lost_after),
            answering=lambda: not self.wakes.closing,
            lost=self.metrics.agents_lost.inc,
        )
        janitor = Janitor(
            tasks=self._task_store,
            agents=self._agents,
            replicas=self._replicas,
            tokens=self._tokens,
            partitions=PartitionStore(database=self._database, width=timedelta(days=settings.retention.partition_days)),
            logs=self.workspace,
            trust=self._trust,
            interval=timedelta(seconds=control.janitor_interval),
            keep_tasks=None if settings.retention.task_days is None else timedelta(days=settings.retention.task_days),
        )
        sweeper = UploadSweeper(
            uploads=self._uploads,
            endpoints=self._endpoints,
            replicas=self._replicas,
            trust=self._trust,
            interval=min(SWEEP, timedelta(seconds=control.janitor_interval)),
        )
        supervisor.add("uploads", lambda: self._repeat("uploads", sweeper.once, sweeper.interval))
        orphans = OrphanSweeper(
            uploads=self._uploads,
            endpoints=self._endpoints,
            replicas=self._replicas,
            trust=self._trust,
            interval=ORPHANS,
        )
        supervisor.add("upload-orphans", lambda: self._repeat("upload-orphans", orphans.once, orphans.interval))
        second = timedelta(seconds=1)
        supervisor.add("trust", lambda: self._repeat("trust", keeper.watch_trust, second))
        supervisor.add("drivers", drivers.run)
        supervisor.add(
            "compare", lambda: self._repeat("compare", drivers.compare, timedelta(seconds=10), ticket=drivers.ticket)
        )
        supervisor.add(
            "dispatcher",
            lambda: self._repeat(
                "dispatcher",
                dispatcher.once,
                timedelta(seconds=control.dispatch_interval),
                ticket=self.wakes.queue_ticket,
            ),
        )
        for name, backend in backends.items():
            supervisor.add(
                f"watch-{name}",
                lambda backend=backend: self._repeat(  # type: ignore[misc]
                    f"watch-{backend.name}", lambda: watch_backend(backend, drivers), second
                ),
            )
        supervisor.add("agent-silence", lambda: self._repeat("agent-silence", silence.once, silence.tick))
        supervisor.add(
            "janitor", lambda: self._repeat("janitor", janitor.once, timedelta(seconds=control.janitor_interval))
        )

    async def _repeat(
        self,
        name: str,
        once: Callable[[], Awaitable[bool | None]],
        interval: timedelta,
        *,
        ticket: Callable[[], anyio.Event] | None = None,
    ) -> None:
        async def noted() -> bool | None:
            again = await once()
            self.metrics.loop_success.labels(name).set_to_current_time()
            return again

        await repeat(
            name, noted, interval, ticket=ticket, failed=lambda loop: self.metrics.loop_errors.labels(loop).inc()
        )

    # the laptop's agent

    async def issue_agent_token(self) -> None:
        """A fresh token for the agent that `serve` starts, readable for us alone."""
        token = self.place.agent_token.read_text("utf-8").strip() if self.place.agent_token.exists() else ""
        if await self._agent_gate.pool_of(token) != self.settings.agent.pool:
            token = make_token("agent")
            self.place.write_private(self.place.agent_token, token + "\n")
        await self._tokens.replace(
            name=f"{LOCAL_AGENT}-{self.holder.replica_id}",
            kind="agent",
            hash=hash_token(token),
            subject="agent",
            pool=self.settings.agent.pool,
        )

    async def leave(self) -> None:
        """Hand over: others adopt at once."""
        await self._replicas.leave(self.holder)
