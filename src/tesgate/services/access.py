"""What runners ask about storage: ``POST /internal/v1/attempts/{task}/{number}/access``.

Who may ask: an open attempt of this runner. Which URLs: `tesgate.services.allowed`. What becomes visible at once is
signed under the publish lease only. How an object store is spoken to is in `tesgate.storage.s3`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import unquote

import anyio.to_thread

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
    Signed,
    StoreQuestion,
    Upload,
)
from tesgate.services.allowed import Allowed
from tesgate.services.asked import MARGIN, MOST, Asker, ask_each
from tesgate.services.drs import DrsAnswers
from tesgate.services.multiparts import Multiparts
from tesgate.services.named import NamedUrls, is_drs, urls_of
from tesgate.storage.s3 import objects
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.urls import UrlRefused, parse
from tesgate.store.uploads import UploadStore

__all__ = ["AccessService", "Logins"]

DEADLINE = 20.0
"""Seconds after which the rest of the questions is answered with "ask again"; a runner waits 30."""
KNOWN = 512
"""Tasks whose URLs are remembered."""


class Logins(Protocol):
    """Named credentials of servers."""

    def login(self, url: str, *, owner: str, groups: Sequence[str]) -> Login:
        """Who to be there; reads small files."""
        ...


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
        self._allowed = Allowed(endpoints=endpoints)
        self._multiparts = Multiparts(uploads=uploads, endpoints=endpoints, allowed=self._allowed, deadline=deadline)
        self._drs = drs
        self._deadline = deadline
        self._logins = logins
        self._known: OrderedDict[str, NamedUrls] = OrderedDict()

    async def answer(self, task_id: str, number: int, request: AccessRequest) -> AccessAnswer:
        """Answer all questions of a message. Raises `Gone`, `BadRequest`."""
        kinds = (request.look, request.store, request.begin, request.complete, request.abort, request.login)
        if any(len(kind) > MOST for kind in kinds):
            raise BadRequest(f"a message may have {MOST} questions of one kind; ask in several")
        asker = await self._asker(task_id, number, request)
        span = self._deadline
        answer = AccessAnswer()
        if request.look:
            answer.found = await ask_each(
                request.look,
                lambda url: self._look(asker, url),
                lambda url, fault: Found(url=url, fault=fault),
                span=span,
            )
        if request.page is not None:
            (answer.page,) = await ask_each(
                [request.page], lambda page: self._page(asker, page), lambda page, fault: Page(fault=fault), span=span
            )
        if request.store:
            _signed(
                answer,
                await ask_each(
                    request.store,
                    lambda put: self._store(asker, put),
                    lambda put, fault: (Signed("", ""), fault),
                    span=span,
                ),
            )
        if request.parts is not None:
            _signed(answer, await self._multiparts.parts(asker, request.parts))
        if request.begin:
            answer.uploads = await ask_each(
                request.begin,
                lambda upload: self._multiparts.begin(asker, upload),
                lambda upload, fault: Upload(url=upload.url, id=upload.id, size=upload.size, fault=fault),
                span=span,
            )
        if request.complete:
            answer.completions = await ask_each(
                request.complete,
                lambda one: self._multiparts.complete(asker, one),
                lambda one, fault: Completion(url=one.url, id=one.id, etags=[], size=one.size, fault=fault),
                # What is under way when the lease ends is given up; without one each says so.
                span=min(span, asker.lease()) if asker.lease() >= 1.0 else span,
            )
        if request.abort:
            answer.uploads += await ask_each(
                request.abort,
                lambda upload: self._multiparts.abort(asker, upload),
                lambda upload, fault: Upload(url=upload.url, id=upload.id, fault=fault),
                span=span,
            )
        if request.login:
            answer.logins = await ask_each(
                request.login,
                lambda url: self._login(asker, url),
                lambda url, fault: Login(url=url, fault=fault),
                span=span,
            )
        return answer

    async def _asker(self, task_id: str, number: int, request: AccessRequest) -> Asker:
        began = time.monotonic()
        urls = self._known.get(task_id)
        attempt = await self._uploads.attempt(task_id, number, request.instance, document=urls is None)
        if attempt is None:
            raise Gone(f"attempt {number} of task {task_id} is over, or was never this runner's")
        if urls is None:
            urls = self._known[task_id] = urls_of(attempt.document or {})
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(task_id)
        asker = Asker(task_id, number, attempt, urls, began)
        stored = [one.url for kind in (request.begin, request.store, request.complete) for one in kind]
        if number > 1 and stored:
            asker.older = await self._uploads.older(task_id, number, _keys(stored))
        return asker

    # inputs

    async def _look(self, asker: Asker, url: str) -> Found:
        if is_drs(url):
            self._allowed.drs(asker, url)
            return await self._drs.look(url, **self._for_drs(asker))
        store, at, directory = await self._allowed.readable(asker, url)
        found = await objects.look(store, at, directory=directory)
        found.url = url
        return found

    async def _page(self, asker: Asker, question: ListQuestion) -> Page:
        if is_drs(question.url):
            self._allowed.drs(asker, question.url)
            return await self._drs.page(question, **self._for_drs(asker))
        store, at, _ = await self._allowed.readable(asker, question.url)
        return await objects.page(store, at, after=question.after, limit=question.limit)

    def _for_drs(self, asker: Asker) -> dict[str, Any]:
        async def read(url: str) -> Found | None:
            try:
                at = parse(url)
                store = self._allowed.owners(asker, at)
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

    # small outputs

    async def _store(self, asker: Asker, question: StoreQuestion) -> tuple[Signed, Fault | None]:
        store, at = self._allowed.writable(asker, question.url)
        asker.leased(question.url)
        await self._multiparts.fence(asker, at)
        left = asker.leased(question.url)
        return await objects.sign_put(store, at, span=left, checksum=question.checksum), None

    # other servers

    async def _login(self, asker: Asker, url: str) -> Login:
        dotted = any(part in (".", "..") for part in unquote(url).split("/"))
        if not asker.urls.has(url) and (dotted or not asker.urls.has_above(url)):
            raise UrlRefused("is neither an input nor an output of this task")
        logins = self._logins
        if logins is None:
            return Login(url=url)
        return await anyio.to_thread.run_sync(lambda: logins.login(url, owner=asker.attempt.owner, groups=asker.groups))


def _signed(answer: AccessAnswer, found: Sequence[tuple[Signed, Fault | None]]) -> None:
    answer.signed = [signed for signed, _ in found]
    faults = [fault for _, fault in found]
    answer.faults = faults if any(faults) else []


def _keys(urls: Iterable[str]) -> set[str]:
    keys: set[str] = set()
    for url in urls:
        with suppress(UrlRefused):  # it is refused when its turn comes
            keys.add(parse(url).key)
    return keys
