"""How a command ends: exit codes, and the one sentence that goes with them."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Exit", "Failure", "exit_of"]


class Exit(IntEnum):
    """Exit codes of ``tesgate task …`` (documented in docs/cli.md)."""

    COMPLETE = 0
    EXECUTOR_ERROR = 1
    USAGE = 2
    SYSTEM_ERROR = 3
    CANCELED = 4
    SERVER = 5
    NOT_FOUND = 6
    TIMEOUT = 124
    INTERRUPTED = 130


class Failure(Exception):
    """Ends the command: `sentence` says what happened and what to do."""

    def __init__(self, sentence: str, code: int = Exit.USAGE) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = int(code)


_SEVERITY = (Exit.SYSTEM_ERROR, Exit.EXECUTOR_ERROR, Exit.CANCELED)


def exit_of(states: list[str]) -> int:
    """Exit code for terminal states: the worst of them."""
    codes = {Exit[state] if state in Exit.__members__ else Exit.SYSTEM_ERROR for state in states}
    return int(next((code for code in _SEVERITY if code in codes), Exit.COMPLETE))
