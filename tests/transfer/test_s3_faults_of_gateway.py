"""What a runner does where the gateway itself has a fault."""

from __future__ import annotations

import pytest

from tesgate.runner.access import AccessAnswer, AccessRequest, Found
from tesgate.runner.gateway import Unavailable
from tesgate.runner.transfer.faults import StagingError
from tesgate.runner.transfer.s3access import Access
from tesgate.runner.transfer.threads import Stop


class Hasty(Stop):
    """Counts pauses and makes none."""

    pauses = 0

    def wait(self, seconds: float) -> None:
        self.pauses += 1
        self.check()


class Gateway:
    """Answers so often with a status before it answers."""

    def __init__(self, status: int | None, times: int) -> None:
        self.status = status
        self.left = times

    def __call__(self, request: AccessRequest) -> AccessAnswer:
        if not self.left:
            return AccessAnswer(found=[Found(url) for url in request.look])
        self.left -= 1
        fault = Unavailable("It says no.")
        fault.status = self.status
        raise fault


@pytest.mark.parametrize("status", [None, 502, 503, 504])
def test_a_gateway_that_is_away_is_waited_for(status: int | None) -> None:
    stop = Hasty()
    _, (found,) = Access(Gateway(status, 100)).look(["s3://bucket/key"], stop)
    assert found.fault is None and stop.pauses == 100


def test_a_message_that_the_gateway_never_answers_ends_the_attempt() -> None:
    stop = Hasty()
    _, (found,) = Access(Gateway(500, 5)).look(["s3://bucket/key"], stop)
    assert found.fault is None
    with pytest.raises(StagingError) as raised:
        Access(Gateway(500, 1000)).look(["s3://bucket/key"], stop)
    assert raised.value.transient and stop.pauses < 100
