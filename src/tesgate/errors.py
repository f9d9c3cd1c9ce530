"""The exception tree: what a client may be told, and what an operator must mend.

::

    TesgateError
    ├── ConfigError                 the configuration is wrong; every line names a setting and the fix
    └── ClientError                 ``status_code`` and a message that is safe to show
        ├── BadRequest              400
        ├── Unauthorized            401
        ├── Forbidden               403
        ├── NotFound                404
        │   └── TaskNotFound        404, unknown and foreign alike
        ├── MethodNotAllowed        405
        ├── Conflict                409
        │   └── IdempotencyConflict 409
        ├── Gone                    410
        ├── TooLarge                413
        ├── UnsupportedMediaType    415
        ├── RangeNotSatisfiable     416
        └── Unavailable             503

One handler (`tesgate.api.errors`) turns a `ClientError` into ``{"msg": …, "status_code": …}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

__all__ = [
    "BadRequest",
    "ClientError",
    "ConfigError",
    "Conflict",
    "Forbidden",
    "Gone",
    "IdempotencyConflict",
    "MethodNotAllowed",
    "NotFound",
    "RangeNotSatisfiable",
    "TaskNotFound",
    "TesgateError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMediaType",
]


class TesgateError(Exception):
    """Root of everything that tesgate raises on purpose."""


class ConfigError(TesgateError):
    """The configuration cannot be used. `lines` has one sentence for each wrong setting."""

    def __init__(self, lines: str | Sequence[str]) -> None:
        self.lines: list[str] = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))


class ClientError(TesgateError):
    """A request that cannot be answered as asked; the message says why and what to do."""

    status_code: ClassVar[int] = 400

    def __init__(self, msg: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.headers: dict[str, str] = dict(headers or {})


class BadRequest(ClientError):
    """The request is not what the specification asks for."""


class Unauthorized(ClientError):
    """Nobody we know: no credentials, or wrong ones."""

    status_code = 401

    def __init__(self, msg: str, *, headers: Mapping[str, str] | None = None) -> None:
        # One header with both challenges: clients that know only one of the schemes pick theirs.
        challenge = {"www-authenticate": 'Bearer realm="tesgate", Basic realm="tesgate", charset="UTF-8"'}
        super().__init__(msg, headers={**challenge, **(headers or {})})


class Forbidden(ClientError):
    """Known, but not for this."""

    status_code = 403


class NotFound(ClientError):
    """Nothing lives at this address."""

    status_code = 404


class TaskNotFound(NotFound):
    """No such task for this caller; whether it exists for somebody else is not said."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"No task {task_id[:64]!r} was found. Check the id; ended tasks are removed after a while.")


class MethodNotAllowed(ClientError):
    """The address exists, the method does not."""

    status_code = 405

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        names = ", ".join(allowed)
        super().__init__(f"{method} is not possible here; use {names}.", headers={"allow": names})


class Conflict(ClientError):
    """Right in itself, but not now or not together with what is already there."""

    status_code = 409


class IdempotencyConflict(Conflict):
    """The same ``Idempotency-Key`` came with another body."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was already used for a task with another body. "
            "Send the first body again, or a new key for a new task."
        )


class Gone(ClientError):
    """It was here and will not come back (an old session, a closed attempt)."""

    status_code = 410


class TooLarge(ClientError):
    """The body is larger than this gateway takes."""

    status_code = 413


class UnsupportedMediaType(ClientError):
    """The body is of a kind that is not read here."""

    status_code = 415


class RangeNotSatisfiable(ClientError):
    """The bytes asked for lie beyond the end."""

    status_code = 416

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The range lies beyond the end; the log has {size} bytes so far.",
            headers={"content-range": f"bytes */{size}"},
        )


class Unavailable(ClientError):
    """A fault of ours that passes; the same request may be sent again."""

    status_code = 503

    def __init__(self, msg: str, *, retry_after: int = 1) -> None:
        super().__init__(msg, headers={"retry-after": str(retry_after)})
