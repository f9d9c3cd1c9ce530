"""Which loops a replica runs, by its roles, and what each of them works with."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import anyio

from tesgate.app.stores import Stores
from tesgate.app.workspace import keeps_logs
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
from tesgate.metrics import Metrics, Sample
from tesgate.model.pools import PoolRule
from tesgate.model.retries import Retries
from tesgate.model.roots import KnownRoot
from tesgate.services.timing import Timing
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.workspace import Workspace
from tesgate.store.attempts import Assigned
from tesgate.store.embedded import EmbeddedPostgres
from tesgate.store.listener import Listener, Notifier
from tesgate.store.partitions import PartitionStore
from tesgate.store.wakes import CHANNELS, Wakes

__all__ = ["Loops"]

AGENT_TICK = timedelta(seconds=5)

SWEEP = timedelta(seconds=20)
"""Between two looks for uploads whose attempt is over."""

ORPHANS = timedelta(minutes=10)
"""Between two looks for uploads of which nobody ever heard."""


class Loops:
    """Makes the loops; they run when their `Supervisor` does."""

    def __init__(
        self,
        *,
        settings: Settings,
        deployment: str,
        data: Path,
        embedded: EmbeddedPostgres | None,
        stores: Stores,
        wakes: Wakes,
        trust: Trust,
        metrics: Metrics,
        timing: Timing,
        retries: Retries,
        grace: timedelta,
        pools: Sequence[PoolRule],
        roots: Sequence[KnownRoot],
        workspace: Workspace,
        endpoints: Endpoints,
        hint: Callable[[], str],
    ) -> None:
        """`data`: the data directory; `roots`: file roots as plans know them; `hint`: why no agent is here."""
        self._settings = settings
        self._deployment = deployment
        self._data = data
        self._embedded = embedded
        self._stores = stores
        self._wakes = wakes
        self._trust = trust
        self._metrics = metrics
        self._timing = timing
        self._retries = retries
        self._grace = grace
        self._pools = pools
        self._roots = roots
        self._workspace = workspace
        self._endpoints = endpoints
        self._hint = hint

    def supervise(self) -> Supervisor:
        """The loops of this replica's roles."""
        settings, control = self._settings, self._settings.control
        supervisor = Supervisor()
        heartbeat = timedelta(seconds=control.heartbeat)
        pool = PoolBackend(
            agents=self._stores.agents, wakes=self._wakes, interval=timedelta(seconds=control.poll_interval)
        )
        backends: dict[str, Backend] = {pool.name: pool}
        drivers = Drivers(
            attempts=self._stores.attempts,
            backends=backends,
            trust=self._trust,
            wakes=self._wakes,
            retries=self._retries,
            grace=self._grace,
            crash_limit=control.crash_limit,
            metrics=self._metrics,
        )
        listener = Listener(self._stores.database.dsn, channels=CHANNELS)
        for channel in CHANNELS:
            listener.subscribe(channel, lambda payload, channel=channel: self._wakes.heard(channel, payload))  # type: ignore[misc]
        notifier = Notifier(self._stores.database)
        self._wakes.connect(send=lambda channel, payload: notifier.notify(channel, [payload] if payload else ()))
        self._wakes.announce()
        supervisor.add("listener", listener.run)
        supervisor.add("notifier", notifier.run)
        if self._embedded is not None:
            supervisor.add("embedded-postgres", self._embedded.keep)
        keeper = Keeper(
            replicas=self._stores.replicas,
            trust=self._trust,
            drivers=drivers,
            wakes=self._wakes,
            adopt_after=timedelta(seconds=control.adopt_after),
            adopts="control" in settings.roles,
        )
        supervisor.add("keeper", lambda: self._repeat("keeper", keeper.once, heartbeat))
        observer = Observer(
            tasks=self._stores.tasks,
            agents=self._stores.agents,
            metrics=self._metrics,
            database=self._stores.database,
            backends=list(backends),
            places={"data": self._data},
        )
        self._metrics.add_source(lambda: self._standing(drivers))
        supervisor.add("observer", lambda: self._repeat("observer", observer.once, timedelta(seconds=5)))
        supervisor.add("loop-lag", observer.watch_lag)
        days = settings.retention.log_days
        interval = timedelta(seconds=control.janitor_interval)

        async def hold() -> bool:
            return await self._stores.replicas.hold_singleton(self._trust.holder, LogKeeper.NAME, interval * 3)

        log_keeper = LogKeeper(
            tasks=self._stores.tasks,
            logs=self._workspace,
            keep=None if days is None else timedelta(days=days),
            is_ours=keeps_logs(self._workspace, self._deployment, hold),
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
        settings, control = self._settings, self._settings.control
        self._wakes.follow_tasks(tell=drivers.tell, ended=drivers.ended)

        def assigned(given: Sequence[Assigned]) -> None:
            self._timing.assigned(given)
            drivers.assigned(given)

        roots = self._roots
        dispatcher = Dispatcher(
            tasks=self._stores.tasks,
            attempts=self._stores.attempts,
            agents=self._stores.agents,
            trust=self._trust,
            assigned=assigned,
            prefix=f"tg-{self._deployment}-",
            known_roots=[(root.path, root.writable) for root in roots],
            mount_roots=roots if any(root.mounted for root in roots) else (),
            pool=settings.agent.pool,
            rules=self._pools,
            # Everybody is one user there: it is for a single caller.
            refused_runtimes=() if settings.auth.mode == "none" else ("bubblewrap",),
            hint=self._hint,
            interval=timedelta(seconds=control.dispatch_interval),
        )
        silence = SilenceWatcher(
            agents=self._stores.agents,
            replicas=self._stores.replicas,
            trust=self._trust,
            tick=min(AGENT_TICK, timedelta(seconds=control.agent_lost_after) / 4),
            lost_after=timedelta(seconds=control.agent_lost_after),
            answering=lambda: not self._wakes.closing,
            lost=self._metrics.agents_lost.inc,
        )
        janitor = Janitor(
            tasks=self._stores.tasks,
            agents=self._stores.agents,
            replicas=self._stores.replicas,
            tokens=self._stores.tokens,
            partitions=PartitionStore(
                database=self._stores.database, width=timedelta(days=settings.retention.partition_days)
            ),
            logs=self._workspace,
            trust=self._trust,
            interval=timedelta(seconds=control.janitor_interval),
            keep_tasks=None if settings.retention.task_days is None else timedelta(days=settings.retention.task_days),
        )
        sweeper = UploadSweeper(
            uploads=self._stores.uploads,
            endpoints=self._endpoints,
            replicas=self._stores.replicas,
            trust=self._trust,
            interval=min(SWEEP, timedelta(seconds=control.janitor_interval)),
        )
        supervisor.add("uploads", lambda: self._repeat("uploads", sweeper.once, sweeper.interval))
        orphans = OrphanSweeper(
            uploads=self._stores.uploads,
            endpoints=self._endpoints,
            replicas=self._stores.replicas,
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
                ticket=self._wakes.queue_ticket,
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
            self._metrics.loop_success.labels(name).set_to_current_time()
            return again

        await repeat(
            name, noted, interval, ticket=ticket, failed=lambda loop: self._metrics.loop_errors.labels(loop).inc()
        )
