"""What the FTP tests share: an attempt's storage against the bed's servers, with a gateway's answers about logins."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from tesgate.runner.access import AccessAnswer, AccessRequest, Fault, Login
from tesgate.runner.gateway import GatewayFault, Gone
from tesgate.runner.plan import Input, Output, Plan, UrlPolicy
from tesgate.runner.transfer.ftp import FtpServers, FtpSettings, FtpStorage
from tesgate.runner.transfer.stage import Stager
from tests.transfer.conftest import Bed

QUICK = FtpSettings(connect_timeout=5.0, read_timeout=5.0, reply_timeout=0.5, tries=4, first_pause=0.01, max_pause=0.05)


class World(Bed):
    """A `Bed` whose stagers serve FTP."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self.policy = UrlPolicy(allowed_hosts=["127.0.0.1", "::1"])
        self.servers = FtpServers()
        self.ftp = QUICK
        self.login: dict[str, Any] = {}
        """What the gateway answers for every URL."""
        self.options: dict[str, str] = {}
        self.fault: Fault | None = None
        self.gone = False
        self.away: list[GatewayFault] = []
        """What the gateway does before it answers."""
        self.questions: list[list[str]] = []
        self._staged = 0
        self._urls: tuple[list[Input], list[Output]] = ([], [])

    def ask(self, request: AccessRequest) -> AccessAnswer:
        assert threading.current_thread() is not threading.main_thread()
        self.questions.append(request.login)
        if self.gone:
            raise Gone("it is over")
        if self.away:
            raise self.away.pop(0)
        return AccessAnswer(
            logins=[Login(url, **self.login, options=self.options, fault=self.fault) for url in request.login]
        )

    def named(self, site: Any, **options: str) -> World:
        """Answer with the site's user from now on."""
        self.login = {"user": site.user, "password": site.password}
        self.options = {"tls": "never", **options}
        return self

    def storage(self, inputs: list[Input], outputs: list[Output]) -> FtpStorage:
        plan = Plan("t", 1, "tg-x-1", [], "token", inputs=inputs, outputs=outputs, url_policy=self.policy)
        return FtpStorage(plan, ask=self.ask, servers=self.servers, settings=self.ftp)

    def stager(self, **more: Any) -> Stager:
        return super().stager(storages=[self.storage(*self._urls)], **more)

    def stage_in(self, *inputs: Input, **more: Any) -> list[str]:
        self._urls = (list(inputs), [])
        return super().stage_in(*inputs, **more)

    def stage(self, url: str, **more: Any) -> Path:
        """Stage one input read-only, each at a place of its own, and return where it lies."""
        self._staged += 1
        place = f"ro/data/thing{self._staged}"
        kind = more.pop("type", "FILE")
        self.notes = self.stage_in(Input(f"/{place[3:]}", place, url=url, type=kind), **more)
        return self.attempt / place

    def prepare(self, *outputs: Output, tag: str = "tg-x-1", **more: Any) -> Any:
        self._urls = ([], list(outputs))
        return super().prepare(*outputs, tag=tag, **more)

    def to(self, path: str, url: str, kind: str = "FILE", prefix: str | None = None) -> Output:
        return Output(path, url, kind, prefix)
