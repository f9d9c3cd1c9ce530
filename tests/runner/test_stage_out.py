"""What stage-out does when the gateway sees the end of a lease before the runner does."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import anyio

from tesgate.runner.stageout import StageOut
from tesgate.runner.transfer.faults import LeaseLost


def test_a_lease_that_is_of_no_use_is_asked_for_anew() -> None:
    """Not tried again and again until our own count of it has run out."""
    said: list[str] = []

    class Reporter:
        lease = SimpleNamespace(left=lambda: 1.0)

        async def send(self, message: str) -> None:
            said.append(message)

    class Stager:
        async def prepare_outputs(self, *arguments: Any, **more: Any) -> Any:
            return SimpleNamespace(notes=[], empty=False)

        async def publish(self, prepared: Any, lease: Any) -> list[Any]:
            said.append("try")
            assert len(said) < 20
            if "publish" not in said:
                raise LeaseLost("the gateway says that the publish lease is not held any more")
            return []

    record: Any = SimpleNamespace(
        notes=list, leased=list, journal=SimpleNamespace(all=lambda what: [], append=lambda *_, **more: None)
    )
    stage_out = StageOut(
        plan=SimpleNamespace(outputs=[], mounts=[], external_name="x"),  # type: ignore[arg-type]
        attempt_dir="/nowhere",
        record=record,
        reporter=Reporter(),  # type: ignore[arg-type]
        client=SimpleNamespace(),  # type: ignore[arg-type]
        stager=Stager(),  # type: ignore[arg-type]
        log=logging.LoggerAdapter(logging.getLogger("test"), {}),
    )
    assert anyio.run(stage_out.store) == []
    assert said == ["try", "publish", "try"]
