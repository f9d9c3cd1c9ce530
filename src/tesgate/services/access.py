"""What runners ask about storage: ``POST /internal/v1/attempts/{task}/{number}/access``.

Here stands who may ask what: an open attempt of this runner, for URLs that are an input or an output of its task or
lie below one, within what its owner is allowed, and what becomes visible at once only under the publish lease. How an
object store is spoken to is in `tesgate.storage.s3`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import anyio
import anyio.to_thread
import structlog

from tesgate.errors import BadRequest, Gone
from tesgate.runner.access import (
    AccessAnswer,
    AccessRequest,
    Completion,
    Fault,
    Found,
    ListQuestion,
    Login,
    Page,
    PartsQuestion,
    Signed,
    StoreQuestion,
    Upload,
)
from tesgate.services.drs import DrsAnswers
from tesgate.services.named import NamedUrls, is_drs, urls_of
from tesgate.storage.s3 import objects
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.store import ObjectStore, StoreFault
from tesgate.storage.s3.urls import Location, UrlRefused, parse
from tesgate.store.uploads import OpenAttempt, UploadRow, UploadStore
from tesgate.telemetry import redact

__all__ = ["AccessService", "Logins"]

log = structlog.get_logger(__name__)

T = TypeVar("T")
Q = TypeVar("Q")

DEADLINE = 20.0
"""Seconds after which the rest of the questions is answered with "ask again"; a runner waits 30."""
AT_ONCE = 16
"""Requests to stores that one message has under way."""
MOST = 1000
"""Questions of one kind in one message."""
MARGIN = 3.0
"""Seconds by which a presigned PUT ends before the publish lease that it is made under: clocks may differ by two."""
BEGINNING = 0.75
"""Share of the deadline that the beginning of an upload may take; with less left none is begun."""
KNOWN = 512
"""Tasks whose URLs are remembered."""


class Logins(Protocol):
    """Named credentials of servers."""

    def login(self, url: str, *, owner: str, groups: Sequence[str]) -> Login:
        """Who to be there; reads small files."""
        ...


@dataclass(slots=True)
class _Asker:
    """Who asks, for one message."""

    task_id: str
    number: int
    attempt: OpenAttempt
    urls: NamedUrls
    began: float

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.attempt.group,) if self.attempt.group else ()

    def lease(self) -> float:
        """Seconds of the publish lease that are surely left."""
        return self.attempt.lease - (time.monotonic() - self.began) - MARGIN


class _Refused(Exception):
    """One question has no answer."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.sentence)
        self.fault = fault


class AccessService:
    """Answers one message after the other; keeps nothing that a restart would miss."""

    def __init__(
        self,
        *,
        uploads: UploadStore,
        endpoints: Endpoints,
        drs: DrsAnswers,
        logins: Logins | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        """`deadline`: seconds for the questions of one message."""
        self._uploads = uploads
        self._endpoints = endpoints
        self._drs = drs
        self._deadline = deadline
        self._logins = logins
        self._known: OrderedDict[str, NamedUrls] = OrderedDict()

    async def answer(self, task_id: str, number: int, request: AccessRequest) -> AccessAnswer:
        """Answer all questions of a message. Raises `Gone`, `BadRequest`."""
        kinds = (request.look, request.store, request.begin, request.complete, request.abort, request.login)
        if any(len(kind) > MOST for kind in kinds):
            raise BadRequest(f"a message may have {MOST} questions of one kind; ask in several")
        asker = await self._asker(task_id, number, request.instance)
        answer = AccessAnswer()
        if request.look:
            answer.found = await self._each(
                request.look, lambda url: self._look(asker, url), lambda url, fault: Found(url=url, fault=fault)
            )
        if request.page is not None:
            (answer.page,) = await self._each(
                [request.page], lambda page: self._page(asker, page), lambda page, fault: Page(fault=fault)
            )
        if request.store:
            self._signed(
                answer,
                await self._each(
                    request.store, lambda put: self._store(asker, put), lambda put, fault: (Signed("", ""), fault)
                ),
            )
        if request.parts is not None:
            self._signed(answer, await self._parts(asker, request.parts))
        if request.begin:
            answer.uploads = await self._each(
                request.begin,
                lambda upload: self._begin(asker, upload),
                lambda upload, fault: Upload(url=upload.url, id=upload.id, size=upload.size, fault=fault),
            )
        if request.complete:
            answer.completions = await self._each(
                request.complete,
                lambda one: self._complete(asker, one),
                lambda one, fault: Completion(url=one.url, id=one.id, etags=[], size=one.size, fault=fault),
                # What is under way when the lease ends is given up; without one each says so.
                span=min(self._deadline, asker.lease()) if asker.lease() >= 1.0 else None,
            )
        if request.abort:
            answer.uploads += await self._each(
                request.abort,
                lambda upload: self._abort(asker, upload),
                lambda upload, fault: Upload(url=upload.url, id=upload.id, fault=fault),
            )
        if request.login:
            answer.logins = await self._each(
                request.login, lambda url: self._login(asker, url), lambda url, fault: Login(url=url, fault=fault)
            )
        return answer

    # who asks

    async def _asker(self, task_id: str, number: int, instance: str) -> _Asker:
        began = time.monotonic()
        urls = self._known.get(task_id)
        attempt = await self._uploads.attempt(task_id, number, instance, document=urls is None)
        if attempt is None:
            raise Gone(f"attempt {number} of task {task_id} is over, or was never this runner's")
        if urls is None:
            urls = self._known[task_id] = urls_of(attempt.document or {})
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(task_id)
        return _Asker(task_id, number, attempt, urls, began)

    async def _each(
        self,
        questions: Sequence[Q],
        ask: Callable[[Q], Awaitable[T]],
        refused: Callable[[Q, Fault], T],
        *,
        span: float | None = None,
    ) -> list[T]:
        """Ask some at a time, until the time is over; one that fails stops no other."""
        answers: list[T | None] = [None] * len(questions)
        places = iter(range(len(questions)))
        failed: list[Exception] = []

        async def some() -> None:
            for place in places:
                question = questions[place]
                try:
                    answers[place] = await ask(question)
                except _Refused as error:
                    answers[place] = refused(question, error.fault)
                except StoreFault as error:
                    answers[place] = refused(question, _fault(_url(question), error))
                except UrlRefused as error:
                    answers[place] = refused(question, Fault(f"{_shown(_url(question))} {error.why}."))
                except Exception as error:
                    # The whole message fails by it, as itself and not as one of a group.
                    failed.append(error)
                    group.cancel_scope.cancel()

        with anyio.move_on_after(self._deadline if span is None else span):
            async with anyio.create_task_group() as group:
                for _ in range(min(AT_ONCE, len(questions))):
                    group.start_soon(some)
        if failed:
            raise failed[0]
        late = "has no answer within the time; it is asked for again"
        return [
            refused(question, Fault(f"{_shown(_url(question))} {late}.", "passing")) if answer is None else answer
            for question, answer in zip(questions, answers, strict=True)
        ]

    # inputs

    async def _readable(self, asker: _Asker, url: str) -> tuple[ObjectStore, Location, bool]:
        """The store of an input, or of what lies below one, and whether it is declared as a directory."""
        at = parse(url)
        declared = asker.urls.inputs(at)
        if not declared:
            raise UrlRefused("is no input of this task")
        store = self._endpoints.find(at, "read", owner=asker.attempt.owner, groups=asker.groups)
        own = [directory for base, directory in declared if base.key.rstrip("/") == at.key.rstrip("/")]
        if own or any(directory for _, directory in declared):
            return store, at, any(own)
        for base, _ in declared:
            # A FILE allows itself alone, but clients also declare directories so (Nextflow).
            known = asker.urls.directories.get(base)
            if known is None:
                known = (await objects.look(store, base, directory=False)).kind == "directory"
                asker.urls.directories[base] = known
            if known:
                return store, at, False
        raise UrlRefused("is no input of this task; it lies below one that is a file")

    async def _look(self, asker: _Asker, url: str) -> Found:
        if is_drs(url):
            self._check_drs(asker, url)
            return await self._drs.look(url, **self._for_drs(asker))
        store, at, directory = await self._readable(asker, url)
        found = await objects.look(store, at, directory=directory)
        found.url = url
        return found

    async def _page(self, asker: _Asker, question: ListQuestion) -> Page:
        if is_drs(question.url):
            self._check_drs(asker, question.url)
            return await self._drs.page(question, **self._for_drs(asker))
        store, at, _ = await self._readable(asker, question.url)
        return await objects.page(store, at, after=question.after, limit=question.limit)

    def _check_drs(self, asker: _Asker, url: str) -> None:
        """Below a bundle lies what it holds; what a blob is, only its server knows."""
        if not asker.urls.reads_drs(url):
            raise UrlRefused("is no input of this task")

    def _for_drs(self, asker: _Asker) -> dict[str, Any]:
        async def read(url: str) -> Found | None:
            try:
                at = parse(url)
                store = self._endpoints.find(at, "read", owner=asker.attempt.owner, groups=asker.groups)
            except UrlRefused:
                return None
            found = await objects.look(store, at, directory=False)
            return found if found.kind == "file" else None

        return {
            "owner": asker.attempt.owner,
            "groups": asker.groups,
            "until": asker.began + self._deadline - MARGIN,
            "read": read,
        }

    # outputs

    def _writable(self, asker: _Asker, url: str) -> tuple[ObjectStore, Location]:
        at = parse(url)
        if not at.key or at.key.endswith("/"):
            raise UrlRefused("names no object; give it a name behind the last slash")
        bases = asker.urls.outputs(at)
        if not bases:
            raise UrlRefused("is no output of this task")
        # The slash before what lies below is its base's own: `out//x` has an empty name below `out`.
        if not any(base.key == at.key or "//" not in f"/{at.key[len(base.prefix) :]}" for base in bases):
            raise UrlRefused("has two slashes in a row below its output")
        return self._endpoints.find(at, "write", owner=asker.attempt.owner, groups=asker.groups), at

    def _leased(self, asker: _Asker, url: str) -> float:
        left = asker.lease()
        if left < 1.0:
            raise _Refused(Fault(f"{_shown(url)} can be stored under the publish lease only; get it first.", "lease"))
        return left

    async def _store(self, asker: _Asker, question: StoreQuestion) -> tuple[Signed, Fault | None]:
        store, at = self._writable(asker, question.url)
        left = self._leased(asker, question.url)
        return await objects.sign_put(store, at, span=left, checksum=question.checksum), None

    async def _begin(self, asker: _Asker, upload: Upload) -> Upload:
        store, at = self._writable(asker, upload.url)
        if upload.id:
            row = await self._own(asker, store, at, upload.id)
            if row.completed_at is None:
                await objects.find_upload(store, at, row.id)
            return Upload(upload.url, row.id, row.size, row.part_size, row.algorithm)
        if asker.attempt.stop:
            raise UrlRefused("is not stored any more: the task is being cancelled")
        # Whoever stops waiting between the store's beginning and the row leaves an upload that nobody knows.
        span = self._deadline * BEGINNING
        if asker.began + self._deadline - time.monotonic() < span:
            raise _Refused(Fault(f"{_shown(upload.url)} is begun with the next question.", "passing"))
        with anyio.move_on_after(span, shield=True) as scope:
            begun = await objects.begin(store, at, size=upload.size)
            row = UploadRow(
                id=begun.id,
                endpoint=store.name,
                bucket=at.bucket,
                key=at.key,
                task_id=asker.task_id,
                number=asker.number,
                size=upload.size,
                part_size=begun.part_size,
                algorithm=begun.algorithm,
            )
            noted = False
            try:
                noted = await self._uploads.insert(row)
            finally:
                if not noted:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                        await objects.abort(store, at, begun.id)
        if scope.cancelled_caught:
            raise StoreFault("503", f"endpoint {store.name} does not answer")
        if not noted:
            raise Gone(f"attempt {asker.number} of task {asker.task_id} is over")
        return Upload(upload.url, row.id, row.size, row.part_size, row.algorithm)

    async def _own(self, asker: _Asker, store: ObjectStore, at: Location, id: str) -> UploadRow:
        row = (await self._uploads.get(asker.task_id, asker.number, [id])).get(id)
        if row is None or (row.endpoint, row.bucket, row.key) != (store.name, at.bucket, at.key):
            raise _Refused(Fault(f"{_shown(at.url())} has no upload of this name in this attempt.", "missing"))
        return row

    async def _parts(self, asker: _Asker, question: PartsQuestion) -> list[tuple[Signed, Fault | None]]:
        none = Signed("", "")
        if len(question.numbers) > MOST or not all(1 <= number <= objects.MOST_PARTS for number in question.numbers):
            raise BadRequest(f"parts have numbers from 1 to {objects.MOST_PARTS}, {MOST} of them in one message")

        async def signed(one: PartsQuestion) -> list[tuple[Signed, Fault | None]]:
            store, at = self._writable(asker, one.url)
            row = await self._own(asker, store, at, one.id)
            found = await objects.sign_parts(
                store, at, upload=row.id, numbers=one.numbers, algorithm=row.algorithm, checksums=one.checksums
            )
            return [(item, None) for item in found]

        def refused(one: PartsQuestion, fault: Fault) -> list[tuple[Signed, Fault | None]]:
            return [(none, fault) for _ in one.numbers]

        (answer,) = await self._each([question], signed, refused)
        return answer

    async def _complete(self, asker: _Asker, question: Completion) -> Completion:
        store, at = self._writable(asker, question.url)
        row = await self._own(asker, store, at, question.id)
        if row.completed_at is None:
            self._leased(asker, question.url)
            if not question.etags or len(question.etags) > objects.MOST_PARTS:
                raise UrlRefused(f"cannot be put together from {len(question.etags)} parts")
            await self._uploads.completing(row)
            try:
                await objects.complete(
                    store,
                    at,
                    upload=row.id,
                    etags=question.etags,
                    algorithm=row.algorithm,
                    checksums=question.checksums,
                    size=question.size,
                    asked_before=row.completing_at,
                )
            except StoreFault as fault:
                if fault.code != "InvalidPart":
                    raise
                # As an upload that is gone: another attempt may store what this one cannot any more.
                raise _Refused(Fault(f"{_shown(question.url)}: {fault.why}.", "missing")) from None
            await self._uploads.completed(row)
        return Completion(url=question.url, id=question.id, etags=[], size=question.size, done=True)

    async def _abort(self, asker: _Asker, upload: Upload) -> Upload:
        row = (await self._uploads.get(asker.task_id, asker.number, [upload.id])).get(upload.id)
        if row is not None and (store := self._endpoints.named(row.endpoint)) is not None:
            if row.completed_at is None:
                await objects.abort(store, Location("s3", row.bucket, row.key), row.id)
            await self._uploads.delete(row)
        return Upload(url=upload.url, id=upload.id)

    # other servers

    async def _login(self, asker: _Asker, url: str) -> Login:
        dotted = any(part in (".", "..") for part in unquote(url).split("/"))
        if not asker.urls.has(url) and (dotted or not asker.urls.has_above(url)):
            raise UrlRefused("is neither an input nor an output of this task")
        logins = self._logins
        if logins is None:
            return Login(url=url)
        return await anyio.to_thread.run_sync(lambda: logins.login(url, owner=asker.attempt.owner, groups=asker.groups))

    def _signed(self, answer: AccessAnswer, found: Sequence[tuple[Signed, Fault | None]]) -> None:
        answer.signed = [signed for signed, _ in found]
        faults = [fault for _, fault in found]
        answer.faults = faults if any(faults) else []


def _url(question: Any) -> str:
    return question if isinstance(question, str) else str(question.url)


def _shown(url: str) -> str:
    return redact(url)[:2000]


def _fault(url: str, fault: StoreFault) -> Fault:
    if fault.missing and fault.code not in ("NoSuchBucket", "NoSuchUpload"):
        return Fault(f"{_shown(url)} does not exist.", "missing")
    kind = "missing" if fault.missing else "passing" if fault.passing else "refused"
    return Fault(f"{_shown(url)}: {fault.why}.", kind)
