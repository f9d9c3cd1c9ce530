"""The runtime of an agent that has none: it takes no executors, and says why."""

from __future__ import annotations

from typing import AsyncIterator, List

import anyio

from .runtime.base import Collect, ImageFacts, RuntimeFacts, RuntimeUnavailable, StepSpec, StepStatus

__all__ = ["AbsentRuntime"]


class AbsentRuntime:
    """`Runtime` without anything behind it."""

    name = "none"

    async def probe(self) -> RuntimeFacts:
        """Always raises `RuntimeUnavailable`."""
        raise self._fault()

    async def prepare(self, image: str, pull_policy: str) -> ImageFacts:
        """Always raises `RuntimeUnavailable`."""
        raise self._fault()

    async def start(self, spec: StepSpec) -> List[str]:
        """Always raises `RuntimeUnavailable`."""
        raise self._fault()

    async def inspect(self, name: str) -> StepStatus:
        """Nothing is ever found."""
        return StepStatus(running=False, found=False)

    async def stop(self, name: str, grace: float) -> None:
        """Gone is success."""

    async def remove(self, name: str) -> None:
        """Gone is success."""

    async def keep(self, name: str) -> None:
        """Gone is success."""

    async def collect(self, name: str, items: List[Collect], root: str) -> List[str]:
        """There is nothing to collect."""
        return []

    async def restore(self, spec: StepSpec, items: List[Collect], root: str) -> None:
        """Always raises `RuntimeUnavailable`."""
        raise self._fault()

    async def ended(self) -> AsyncIterator[str]:
        """Nothing ever ends."""
        await anyio.sleep_forever()
        yield ""

    async def names(self, prefix: str) -> List[str]:
        """There are none."""
        return []

    async def own(self, image: str, paths: List[str], uid: int, gid: int) -> None:
        """Always raises `RuntimeUnavailable`."""
        raise self._fault()

    async def aclose(self) -> None:
        """Nothing to let go of."""

    @staticmethod
    def _fault() -> RuntimeUnavailable:
        return RuntimeUnavailable("This agent was started with --runtime none and runs no executors.")
