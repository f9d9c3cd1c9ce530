"""What the API needs of the rest of the process; `app` provides it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from tesgate.auth.authenticator import Authenticator
from tesgate.config import Settings
from tesgate.services.agents import Agents
from tesgate.services.tasks import Tasks
from tesgate.storage.workspace import Workspace
from tesgate.telemetry import Metrics

__all__ = ["ApiContext"]


class ApiContext(Protocol):
    """Read at each request, so that it may be filled while the application starts."""

    @property
    def settings(self) -> Settings:
        """The configuration."""

    @property
    def tasks(self) -> Tasks:
        """The use cases of TES."""

    @property
    def agents(self) -> Agents:
        """What operators do with agents."""

    @property
    def authenticator(self) -> Authenticator:
        """Who asks."""

    @property
    def workspace(self) -> Workspace:
        """Whole logs."""

    @property
    def metrics(self) -> Metrics:
        """Prometheus."""

    @property
    def backend_parameters(self) -> Sequence[str]:
        """Keys of ``backend_parameters`` that the backends understand."""

    def readiness(self) -> Awaitable[Sequence[str]]:
        """Why requests cannot be answered now, one sentence each; empty when they can."""
