"""Headers of named credentials, and of URLs that DRS ids lead to: what is asked for, how often, and what is sent."""

from __future__ import annotations

import pytest

from tesgate.runner.access import AccessAnswer, AccessRequest, Found
from tesgate.runner.gateway import GatewayFault, Unauthorized
from tesgate.runner.transfer import logins
from tesgate.runner.transfer.faults import StagingError
from tesgate.runner.transfer.logins import WebLogins, can_be_sent
from tesgate.runner.transfer.policy import AddressPolicy
from tesgate.runner.transfer.s3 import ObjectStorage
from tesgate.runner.transfer.stage import HttpSettings
from tesgate.runner.transfer.threads import Stop
from tests.transfer.conftest import Bed


class _Quick:
    def next(self) -> float:
        return 0.0


@pytest.mark.parametrize("status", [404, None])
def test_a_gateway_that_does_not_know_the_question_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """None: it answers, but not what it was asked. One that is away is waited for."""
    monkeypatch.setattr(logins, "Backoff", _Quick)
    asked: list[list[str]] = []

    def ask(request: AccessRequest) -> AccessAnswer:
        asked.append(request.login)
        if len(asked) in (1, 2, 20):
            raise Unauthorized("the token is read anew")
        if len(asked) > 30:
            raise SystemExit("asked for ever")
        if status is None:
            return AccessAnswer()
        fault = GatewayFault("there is no such path")
        fault.status = status
        raise fault

    with pytest.raises(StagingError, match="does not take questions about credentials for https://h/x"):
        WebLogins(ask).headers("https://u:secret@h/x?token=t", Stop())
    assert len(asked) == 10


def test_what_can_be_sent() -> None:
    assert can_be_sent({"Authorization": "Bearer x", "X-Cafe": "caf\xe9"})
    for name, value in (("a b", "x"), ("", "x"), ("a:", "x"), ("a", "x\r\nb: c"), ("a", "\0"), ("a", "\u20ac")):
        assert not can_be_sent({name: value}), (name, value)


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer secret\r\nHost: x"}, {"secret\n": "x"}])
def test_headers_that_a_drs_server_makes_up_are_checked(bed: Bed, headers: dict[str, str]) -> None:
    found = Found("drs://h/id", kind="elsewhere", moved_to="http://127.0.0.1:1/x", headers=headers)
    storage = ObjectStorage(
        ask=lambda request: AccessAnswer(found=[found]),
        settings=HttpSettings(first_pause=0.01, tries=1),
        policy=AddressPolicy(bed.policy),
    )
    with pytest.raises(StagingError, match="headers that cannot be sent") as caught:
        bed.stage("drs://h/id", storages=[storage])
    assert "secret" not in str(caught.value)
