"""The plans of attempts: what the settings say about each, and what the gateway knows of its URLs beforehand."""

from __future__ import annotations

from collections.abc import Callable

from tesgate.config import Settings
from tesgate.model.planning import GB, Need, PlanSettings, build_plan, origin
from tesgate.model.roots import KnownRoot
from tesgate.runner.plan import Keep, Plan, RunAs, UrlPolicy
from tesgate.storage.s3.endpoints import Endpoints, Use
from tesgate.store.attempts import Order

__all__ = ["Plans", "plan_settings", "url_policy_of"]

OBJECTS = ("s3:", "gs:")
"""Beginnings of URLs of object stores, which the gateway's endpoints serve."""


class Plans:
    """Computes plans each time that a start is answered; none is kept."""

    def __init__(
        self, *, settings: Settings, deployment: str, mint: Callable[[str, int], str], endpoints: Endpoints
    ) -> None:
        """`mint`: makes the token of an attempt from its task and number."""
        self.settings = plan_settings(settings, deployment)
        self._mint = mint
        self._endpoints = endpoints

    def __call__(self, start: Order) -> Plan:
        """The plan of one attempt. Raises `ValueError`, `MountError`."""
        if start.document is None:
            raise ValueError("its document is not there")
        plan = build_plan(
            start.task_id,
            start.number,
            start.external_name,
            start.document,
            self._mint(start.task_id, start.number),
            settings=self.settings,
        )
        # Whoever runs the task says it before the first command, not after the last.
        for put in plan.inputs:
            if put.content is None and put.url is not None:
                put.refusal = self._refusal(put.url, "read")
        for out in plan.outputs:
            out.refusal = self._refusal(out.url, "write")
        return plan

    def _refusal(self, url: str, use: Use) -> str | None:
        return self._endpoints.refusal(url, use) if url[:3].lower() in OBJECTS else None


def url_policy_of(settings: Settings) -> UrlPolicy:
    """Which addresses URLs may lead to."""
    given = settings.url_policy
    return UrlPolicy(allow_private=given.allow_private, allowed_hosts=list(given.allowed_hosts))


def plan_settings(settings: Settings, deployment: str) -> PlanSettings:
    """What of the settings concerns every plan."""
    runtime = settings.runtime
    run_as = RunAs(policy=runtime.run_as)
    if runtime.run_as[0].isdigit():
        users, _, gid = runtime.run_as.partition(":")
        first, dash, last = users.partition("-")
        run_as = RunAs(
            policy="fixed", uid=int(first), gid=int(gid) if gid else None, last_uid=int(last) if dash else None
        )
    defaults = settings.defaults
    return PlanSettings(
        deployment=deployment,
        defaults=Need(defaults.cpu_cores, round(defaults.ram_gb * GB), round(defaults.disk_gb * GB)),
        pids=runtime.pids,
        run_as=run_as,
        url_policy=url_policy_of(settings),
        network=runtime.network,
        pull_policy=runtime.pull_policy,
        timeout=settings.timeouts.task,
        executor_timeout=settings.timeouts.executor,
        grace=settings.control.cancel_grace,
        tail_bytes=settings.logs.tail_bytes,
        log_bytes=settings.logs.max_bytes,
        logins=frozenset(filter(None, (origin(credential.prefix) for credential in settings.credentials))),
        roots=tuple(KnownRoot(str(root.path), root.writable, root.mode == "mount") for root in settings.file_roots),
        home=runtime.home,
        shm_bytes=None if runtime.shm_gb is None else round(runtime.shm_gb * GB),
        labels=runtime.labels,
        limits_off=tuple(runtime.limits_off),
        keep=Keep(seconds=runtime.keep_seconds, failed_only=runtime.keep_which == "failed", most=runtime.keep_most),
    )
