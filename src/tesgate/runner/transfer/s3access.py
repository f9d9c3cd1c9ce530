"""Asks the gateway about objects, in batches and again where it helps, and knows how long a presigned request lives."""

from __future__ import annotations

import queue
import random
import threading
import time
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

from ..access import (
    AccessAnswer,
    AccessRequest,
    Completion,
    Fault,
    Found,
    ListQuestion,
    Page,
    PartsQuestion,
    Signed,
    StoreQuestion,
    Upload,
)
from ..gateway import Backoff, Conflict, GatewayFault, Gone
from .faults import StagingError, Stopped
from .threads import Stop

__all__ = ["Access", "Ask", "Presigned", "ahead", "presigned"]

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")
Ask = Callable[[AccessRequest], AccessAnswer]

_SLICE = 0.1
_TRIES = 8
"""Of a question whose answer was a fault that passes."""
_MOST_FAULTS = 20
"""Answers 500 to one message: a fault inside the gateway, which it perhaps makes each time (half a minute)."""
_FIRST_PAUSE = 0.3
_MOST_PAUSE = 15.0
_MARGIN = 5.0
"""A request that ends in less than so many seconds is not sent any more: clocks and ways differ."""
_DISCARDING = 5.0
"""Seconds for which a gateway that is away is asked to abort uploads: it finds them itself later."""


@dataclass
class Presigned:
    """A request of the gateway's, and the moment of this process's clock at which it ends."""

    signed: Signed
    until: float

    @property
    def is_fresh(self) -> bool:
        return time.monotonic() < self.until


def presigned(signed: Signed, asked: float) -> Presigned:
    """`asked`: when the question was sent."""
    # One that lives shorter than the margin is used as long as it lives at all.
    return Presigned(signed, asked + max(signed.expires_in - _MARGIN, signed.expires_in / 2))


class Access:
    """The gateway's answers for one attempt. Safe in many threads; every call ends soon after a stop.

    A gateway that is away is waited for. Raises `Gone` where the attempt is nobody's any more.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def look(self, urls: Sequence[str], stop: Stop) -> Tuple[float, List[Found]]:
        """What each URL leads to (see `Found.fault`), and when that was asked."""
        asked = time.monotonic()
        found = self._each(
            urls,
            lambda some: AccessRequest(look=list(some)),
            lambda answer: [(each, each.fault) for each in answer.found],
            stop,
        )
        return asked, [Found(url, fault=each) if isinstance(each, Fault) else each for url, each in zip(urls, found)]

    def page(self, question: ListQuestion, stop: Stop) -> Tuple[float, Union[Page, Fault]]:
        """One page of a listing, and when that was asked."""
        asked = time.monotonic()

        def read(answer: AccessAnswer) -> List[Tuple[Page, Optional[Fault]]]:
            return [] if answer.page is None else [(answer.page, answer.page.fault)]

        return asked, self._each([question], lambda some: AccessRequest(page=some[0]), read, stop)[0]

    def store(self, questions: Sequence[StoreQuestion], stop: Stop) -> List[Union[Presigned, Fault]]:
        """A single PUT for each."""
        return self._each(questions, lambda some: AccessRequest(store=list(some)), _signing(), stop)

    def begin(self, upload: Upload, stop: Stop) -> Union[Upload, Fault]:
        """Begin an upload."""
        return self._each(
            [upload],
            lambda some: AccessRequest(begin=list(some)),
            lambda answer: [(each, each.fault) for each in answer.uploads],
            stop,
        )[0]

    def parts(
        self, upload: Upload, numbers: Sequence[int], checksums: Sequence[str], sizes: Sequence[int], stop: Stop
    ) -> List[Union[Presigned, Fault]]:
        """A PUT for each part."""

        def make(some: Sequence[int]) -> AccessRequest:
            chosen = [numbers.index(number) for number in some]
            question = PartsQuestion(
                url=upload.url,
                id=upload.id,
                numbers=list(some),
                checksums=[checksums[index] for index in chosen] if checksums else [],
                sizes=[sizes[index] for index in chosen],
            )
            return AccessRequest(parts=question)

        return self._each(numbers, make, _signing(), stop)

    def complete(self, completion: Completion, stop: Stop) -> Optional[Fault]:
        """Make an upload visible; None: it is."""
        answer = self._each(
            [completion],
            lambda some: AccessRequest(complete=list(some)),
            lambda answer: [(each, each.fault or _undone(each)) for each in answer.completions],
            stop,
        )[0]
        return answer if isinstance(answer, Fault) else None

    def abort(self, uploads: Sequence[Upload], stop: Stop) -> Optional[str]:
        """Remove uploads; why it could not be done, as half a sentence."""
        deadline = time.monotonic() + _DISCARDING
        backoff = Backoff()
        while True:
            try:
                answer = self._call(AccessRequest(abort=list(uploads)), stop)
                faults = [each.fault for each in answer.uploads if each.fault is not None]
                if not faults:
                    return None
                why = faults[0].sentence
                uploads = [each for each in uploads if any(each.id == it.id for it in answer.uploads if it.fault)]
                if faults[0].kind != "passing" or not uploads:
                    return why
            except Gone:
                return "the attempt is over"
            except GatewayFault as error:
                why = str(error)
            if time.monotonic() >= deadline:
                return why
            stop.wait(backoff.next())

    # -- inside ------------------------------------------------------------------------------------------------

    def _each(
        self,
        questions: Sequence[Q],
        make: Callable[[Sequence[Q]], AccessRequest],
        read: Callable[[AccessAnswer], List[Tuple[A, Optional[Fault]]]],
        stop: Stop,
    ) -> List[Union[A, Fault]]:
        """Ask until each question has an answer, or a fault that does not pass (soon enough)."""
        results: List[Optional[Union[A, Fault]]] = [None] * len(questions)
        open_ones = list(range(len(questions)))
        pause, tries = _FIRST_PAUSE, 0
        while open_ones:
            answers = read(self.answer(make([questions[index] for index in open_ones]), stop))
            tries += 1
            if len(answers) != len(open_ones):
                passing = Fault("the gateway did not answer what it was asked", "passing")
                results = [passing if index in open_ones else each for index, each in enumerate(results)]
            else:
                for index, (answer, fault) in zip(open_ones, answers):
                    results[index] = answer if fault is None else fault
                open_ones = [
                    index for index in open_ones if isinstance(it := results[index], Fault) and it.kind == "passing"
                ]
            if open_ones and tries >= _TRIES:
                break
            if open_ones:
                stop.wait(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, _MOST_PAUSE)
        return [each for each in results if each is not None]

    def answer(self, request: AccessRequest, stop: Stop) -> AccessAnswer:
        """Ask until there is an answer, however long the gateway is away. Raises `Gone`, `StagingError`, `Stopped`."""
        backoff = Backoff()
        refusals = faults = 0
        while True:
            try:
                return self._call(request, stop)
            except Gone:
                raise
            except Conflict:
                stop.wait(1.0)
            except GatewayFault as error:
                refusals += error.status is not None and 400 <= error.status < 500
                faults += error.status == 500
                # One of another version may take it: this one never will.
                if refusals >= _TRIES or faults >= _MOST_FAULTS:
                    raise StagingError(
                        "The gateway does not take questions about storage (%s)." % error, transient=True
                    ) from None
                stop.wait(backoff.next())

    def _call(self, request: AccessRequest, stop: Stop) -> AccessAnswer:
        """Ask in a thread of its own: the answer cannot be hurried, but it can be left behind."""
        answer: queue.Queue[Union[AccessAnswer, BaseException]] = queue.Queue()

        def ask() -> None:
            try:
                answer.put(self._ask(request))
            except BaseException as error:  # raised below
                answer.put(error)

        stop.check()
        number = stop.add(lambda: answer.put(Stopped()))
        try:
            threading.Thread(target=ask, name="tesgate-access", daemon=True).start()
            result = answer.get()
        finally:
            stop.remove(number)
        if isinstance(result, BaseException):
            raise result
        return result


def _signing() -> Callable[[AccessAnswer], List[Tuple[Presigned, Optional[Fault]]]]:
    asked = time.monotonic()

    def read(answer: AccessAnswer) -> List[Tuple[Presigned, Optional[Fault]]]:
        nonlocal asked
        faults = answer.faults or [None] * len(answer.signed)
        made = [presigned(signed, asked) for signed in answer.signed]
        asked = time.monotonic()  # of the next question, at the earliest
        return list(zip(made, faults)) if len(faults) == len(made) else []

    return read


def _undone(completion: Completion) -> Optional[Fault]:
    return None if completion.done else Fault("the gateway did not complete the upload", "passing")


def ahead(items: Iterator[T], stop: Stop) -> Iterator[T]:
    """Take from an iterator one item ahead, in a thread: what comes next is fetched while this one is worked on."""
    ready: queue.Queue[Union[Tuple[T], BaseException, None]] = queue.Queue(maxsize=1)
    done = threading.Event()

    def put(what: Union[Tuple[T], BaseException, None]) -> bool:
        while not done.is_set() and not stop.is_set():
            try:
                ready.put(what, timeout=_SLICE)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # raised where the item is awaited
            put(error)

    thread = threading.Thread(target=fetch, name="tesgate-ahead", daemon=True)
    thread.start()
    try:
        while True:
            stop.check()
            try:
                found = ready.get(timeout=_SLICE)
            except queue.Empty:
                continue
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found[0]
    finally:
        done.set()
        thread.join()
