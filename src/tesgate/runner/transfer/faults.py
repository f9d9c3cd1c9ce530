"""What can go wrong in a transfer, each as one sentence that may be shown to the task's owner."""

from __future__ import annotations

import errno
import os

__all__ = ["LeaseLost", "PathRefused", "StagingError", "Stopped", "os_fault", "passing"]

_PASSING = frozenset(
    (
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
    )
)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


class StagingError(Exception):
    """An input could not be staged, or an output not be stored.

    `sentence` says what happened and what to do. `transient`: another attempt (perhaps elsewhere) may succeed.
    """

    def __init__(self, sentence: str, *, transient: bool = False) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.transient = transient


class PathRefused(Exception):
    """A path may not be used; `why` completes a sentence that begins with the path."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class LeaseLost(Exception):
    """The publish lease ran out: nothing more may be made visible by this attempt."""


class Stopped(Exception):
    """Somebody wanted the transfer to stop (cancel, or another transfer of the same step failed)."""


def passing(error: OSError) -> bool:
    """Say whether trying again in a moment can help (a network file system that hiccups, a table that was full)."""
    return error.errno in _PASSING


def os_fault(error: OSError, what: str) -> StagingError:
    """Translate an `OSError`; `what` begins the sentence, such as ``input file:///x could not be read``."""
    number = error.errno or 0
    reason = os.strerror(number) if number else str(error)
    if number in _FULL:
        return StagingError("%s: %s; free some space or ask for more." % (what, reason), transient=True)
    if number in (errno.EACCES, errno.EPERM):
        return StagingError("%s: %s; let the agent's user have access to it." % (what, reason))
    return StagingError("%s: %s." % (what, reason), transient=passing(error))
