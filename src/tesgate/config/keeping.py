"""State and the loops that look after it: database, retries, retention, logs."""

from __future__ import annotations

from pydantic import Field

from tesgate.config.types import Group, Seconds

__all__ = ["ControlSettings", "LogSettings", "PoolSettings", "RetentionSettings", "RetrySettings"]


class PoolSettings(Group):
    """Connections to PostgreSQL."""

    min_size: int = Field(default=2, ge=1, le=1000, description="Connections kept open.")
    max_size: int = Field(default=10, ge=1, le=1000, description="Connections at most, for each replica.")
    command_timeout: Seconds = Field(default=30.0, description="Longest time for one statement (seconds).")
    start_timeout: Seconds = Field(
        default=60.0, description="Longest time for which a database that is away is waited for at start (seconds)."
    )


class RetrySettings(Group):
    """What happens when the system, not the command, failed."""

    max_attempts: int = Field(default=3, ge=1, le=100, description="Attempts of one task, the first one included.")
    backoff_first: Seconds = Field(default=1.0, description="Wait before the second attempt (seconds).")
    backoff_factor: float = Field(default=4.0, ge=1, description="Each further wait is this much longer.")
    backoff_max: Seconds = Field(default=300.0, description="Longest wait (seconds).")


class ControlSettings(Group):
    """The loops that follow tasks."""

    heartbeat: Seconds = Field(default=2.0, description="How often a replica says that it lives (seconds).")
    trust_window: Seconds = Field(
        default=8.0,
        description="Without a successful heartbeat for so long a replica lets go of all it holds (seconds).",
    )
    adopt_after: Seconds = Field(
        default=15.0, description="Silence after which others take over a replica's tasks (seconds)."
    )
    agent_lost_after: Seconds = Field(
        default=60.0, description="Silence after which an agent's attempts are lost (seconds)."
    )
    publish_lease: Seconds = Field(
        default=30.0, description="How long an attempt may store outputs without a report (seconds)."
    )
    dispatch_interval: Seconds = Field(
        default=1.0, description="How often waiting tasks are looked at, at the latest (seconds)."
    )
    poll_interval: Seconds = Field(
        default=2.0, description="How often attempts of lost agents are looked for (seconds)."
    )
    janitor_interval: Seconds = Field(
        default=60.0, description="How often old and orphaned things are looked for (seconds)."
    )
    crash_limit: int = Field(
        default=5, ge=1, description="A task that crashes its driver so often ends in SYSTEM_ERROR."
    )
    cancel_grace: float = Field(default=10.0, ge=0, description="Between a polite signal and a kill (seconds).")


class RetentionSettings(Group):
    """How long ended tasks are kept."""

    task_days: float | None = Field(
        default=90.0,
        gt=0,
        description="Ended tasks (days), and up to `partition_days` longer where that is less; null: for ever.",
    )
    partition_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="Tasks of so many days lie in one partition and are dropped together (days). Holds for partitions "
        "that are made from now on.",
    )
    log_days: float | None = Field(
        default=30.0, gt=0, description="Their whole logs in the workspace (days); null: for ever."
    )


class LogSettings(Group):
    """How much of stdout and stderr is kept."""

    tail_bytes: int = Field(
        default=10_240, ge=0, le=1 << 20, description="End of each stream that the FULL view shows (bytes)."
    )
    max_bytes: int = Field(
        default=1 << 30, ge=0, description="Each stream in the workspace at most (bytes); 0 keeps none."
    )
