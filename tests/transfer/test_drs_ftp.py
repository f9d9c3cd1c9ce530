"""A DRS id that leads to an FTP server, by the storages that an agent makes for an attempt."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from tesgate.runner.access import AccessAnswer, Found
from tesgate.runner.gateway import GatewayClient
from tesgate.runner.plan import Input, Plan, UrlPolicy
from tesgate.runner.storages import storages_of
from tesgate.runner.transfer.faults import StagingError
from tesgate.runner.transfer.ftp import FtpServers
from tesgate.runner.transfer.stage import Stager
from tests.beds.ftp import PASSWORD, Servers


@pytest.mark.parametrize("size", [5, 6])
def test_it_is_staged_and_compared(ftp: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The URL's own user counts: the gateway gives no credentials for what is no URL of the task."""
    site = ftp.vsftpd("")
    (site.root / "drs-object").write_text("hello")
    there = site.url("drs-object").replace("://", f"://{site.user}:{PASSWORD}@")
    found = Found("drs://here/x", "elsewhere", size, moved_to=there)
    client = GatewayClient(url="http://127.0.0.1:9", token_file="/none")
    monkeypatch.setattr(client, "access", lambda ref, token, request: AccessAnswer(found=[found]))
    item = Input("/data/x", "ro/data/x", url="drs://here/x")
    policy = UrlPolicy(allowed_hosts=["127.0.0.1"])
    plan = Plan("t", 1, "tg-x-1", [], "token", inputs=[item], url_policy=policy)
    servers = FtpServers()
    (tmp_path / "ro").mkdir()
    stager = Stager(roots=[], policy=policy, storages=storages_of(plan, client, ftp=servers))
    try:
        if size == 5:
            anyio.run(stager.stage_in, [item], str(tmp_path))
            assert (tmp_path / "ro/data/x").read_text() == "hello"
        else:
            with pytest.raises(StagingError, match="5 bytes where 6 were announced") as caught:
                anyio.run(stager.stage_in, [item], str(tmp_path))
            assert PASSWORD not in caught.value.sentence
    finally:
        servers.drop()
        client.close()
