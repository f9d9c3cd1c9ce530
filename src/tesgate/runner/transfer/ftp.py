"""``ftp://`` and ``ftps://`` as a kind of storage: the only module of its kind that others need."""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from ..access import AccessAnswer, AccessRequest
from ..plan import Input, Output, Plan
from .faults import PathRefused, StagingError
from .ftpattempt import FtpAttempt
from .ftplogin import Logins
from .ftppool import FtpServers
from .ftpsession import FtpSettings
from .ftpsink import FtpSink
from .ftpsource import FtpSource
from .ftpurl import read_url
from .policy import AddressPolicy
from .scratch import Scratch
from .threads import Stop
from .urls import printable, redact, scheme

__all__ = ["FtpServers", "FtpSettings", "FtpStorage"]


class FtpStorage:
    """Files and directories of FTP servers, for one attempt. See `base.Storage`.

    `ask`: puts a question about storage to the gateway; raises `GatewayFault`.
    """

    schemes: Sequence[str] = ("ftp", "ftps")

    def __init__(
        self,
        plan: Plan,
        *,
        ask: Callable[[AccessRequest], AccessAnswer],
        servers: FtpServers,
        settings: Optional[FtpSettings] = None,
    ) -> None:
        self._inputs = [item.url for item in plan.inputs if item.content is None and item.url and _served(item.url)]
        self._outputs = [item.url for item in plan.outputs if _served(item.url)]
        self._attempt = FtpAttempt(
            servers=servers,
            policy=AddressPolicy(plan.url_policy),
            settings=settings or FtpSettings(),
            logins=Logins(ask=ask, urls=[*self._inputs, *self._outputs]),
        )

    def check_input(self, item: Input) -> None:
        """Refuse a URL that cannot be read."""
        try:
            read_url(item.url or "")
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(item.url or ""), error.why)) from None

    def check_output(self, output: Output) -> None:
        """Refuse a URL that cannot be read."""
        try:
            spot = read_url(output.url)
            name = output.path.rpartition("/")[2]
            # The directory of a pattern of braces is what stands before its last component.
            braces = "{" in name and output.url.endswith("/" + name)
            if spot.parts[: -1 if braces else None] == ["/"]:
                raise PathRefused(
                    "is the server's root directory; name one in it, or end it with one slash for the login directory"
                )
        except PathRefused as error:
            raise StagingError(
                "output %s: its url %s %s." % (printable(output.path), redact(output.url), error.why)
            ) from None

    def source(self, scratch: Scratch, stop: Stop) -> FtpSource:
        """See `base.Storage`."""
        return FtpSource(attempt=self._attempt, scratch=scratch)

    def sink(self) -> Optional[FtpSink]:
        """See `base.Storage`."""
        return FtpSink(attempt=self._attempt, urls=self._outputs) if self._outputs else None


def _served(url: str) -> bool:
    try:
        return scheme(url) in FtpStorage.schemes and read_url(url) is not None
    except PathRefused:
        return False
