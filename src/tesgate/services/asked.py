"""The questions of one message about storage: who asks, how many are put at a time, and what faults become."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from tesgate.runner.access import Fault
from tesgate.services.named import NamedUrls
from tesgate.storage.s3.store import StoreFault
from tesgate.storage.s3.urls import UrlRefused
from tesgate.store.uploads import OpenAttempt, UploadRow
from tesgate.telemetry import redact

__all__ = ["MARGIN", "MOST", "Asker", "Refused", "ask_each", "shown"]

AT_ONCE = 16
"""Requests to stores that one message has under way."""
MOST = 1000
"""Questions of one kind in one message."""
MARGIN = 3.0
"""Seconds by which a presigned PUT ends before the publish lease that it is made under: clocks may differ by two."""

T = TypeVar("T")
Q = TypeVar("Q")


@dataclass(slots=True)
class Asker:
    """Who asks, for one message."""

    task_id: str
    number: int
    attempt: OpenAttempt
    urls: NamedUrls
    began: float
    """When the message came, on the monotonic clock."""
    older: Mapping[tuple[str, str], Sequence[UploadRow]] = field(default_factory=dict)
    """By bucket and key: what earlier attempts of the task have begun there and not completed."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The task's group, as rights know it."""
        return (self.attempt.group,) if self.attempt.group else ()

    def lease(self) -> float:
        """Seconds of the publish lease that are surely left."""
        return self.attempt.lease - (time.monotonic() - self.began) - MARGIN

    def leased(self, url: str) -> float:
        """The same; raises `Refused` where there is none."""
        left = self.lease()
        if left < 1.0:
            raise Refused(Fault(f"{shown(url)} can be stored under the publish lease only; get it first.", "lease"))
        return left


class Refused(Exception):
    """One question has no answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.sentence)
        self.fault = fault


async def ask_each(
    questions: Sequence[Q],
    ask: Callable[[Q], Awaitable[T]],
    refused: Callable[[Q, Fault], T],
    *,
    span: float,
) -> list[T]:
    """Ask some at a time, for at most `span` seconds; one that fails stops no other."""
    answers: list[T | None] = [None] * len(questions)
    places = iter(range(len(questions)))
    failed: list[Exception] = []

    async def some() -> None:
        for place in places:
            question = questions[place]
            try:
                answers[place] = await ask(question)
            except Refused as error:
                answers[place] = refused(question, error.fault)
            except StoreFault as error:
                answers[place] = refused(question, _fault(_url(question), error))
            except UrlRefused as error:
                answers[place] = refused(question, Fault(f"{shown(_url(question))} {error.why}."))
            except Exception as error:
                # The whole message fails by it, as itself and not as one of a group.
                failed.append(error)
                group.cancel_scope.cancel()

    with anyio.move_on_after(span):
        async with anyio.create_task_group() as group:
            for _ in range(min(AT_ONCE, len(questions))):
                group.start_soon(some)
    if failed:
        raise failed[0]
    late = "has no answer within the time; it is asked for again"
    return [
        refused(question, Fault(f"{shown(_url(question))} {late}.", "passing")) if answer is None else answer
        for question, answer in zip(questions, answers, strict=True)
    ]


def shown(url: str) -> str:
    """A URL as sentences have it."""
    return redact(url)[:2000]


def _url(question: Any) -> str:
    return question if isinstance(question, str) else str(question.url)


def _fault(url: str, fault: StoreFault) -> Fault:
    if fault.missing and fault.code not in ("NoSuchBucket", "NoSuchUpload"):
        return Fault(f"{shown(url)} does not exist.", "missing")
    kind = "missing" if fault.missing else "passing" if fault.passing else "refused"
    return Fault(f"{shown(url)}: {fault.why}.", kind)
