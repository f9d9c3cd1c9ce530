"""Images on an engine: is it here, pull it once for all who wait, and remember its facts for a while."""

from __future__ import annotations

import time
from typing import Any, Callable, Dict, List, Optional

import anyio
from urllib3.exceptions import HTTPError

from .base import EngineUnavailable, ImageFacts, ImageRefused
from .engine import Engine, EngineError, Stream
from .reference import Reference, parse_reference
from .registry import auth_header, pull_fault

__all__ = ["Images"]

_POLICIES = ("missing", "always", "never")


class _Pull:
    """One pull under way; whoever comes meanwhile for the same image waits for it."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.fault: Optional[Exception] = None
        self.finished = False


class Images:
    """Facts of the images of one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        auth_file: Optional[str] = None,
        keep: float = 30.0,
        idle: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`keep`: seconds that facts are believed without asking. `idle`: seconds that a pull may show no progress."""
        self._engine = engine
        self._auth_file = auth_file
        self._keep = keep
        self._idle = idle
        self._clock = clock
        self._facts: Dict[str, ImageFacts] = {}
        self._until: Dict[str, float] = {}
        self._pulls: Dict[str, _Pull] = {}

    async def prepare(self, image: str, policy: str) -> ImageFacts:
        """Have `image` on the engine and return its facts (`Runtime.prepare`)."""
        reference = parse_reference(image)
        if policy not in _POLICIES:
            raise ImageRefused("The pull policy %r is none of %s." % (policy, ", ".join(_POLICIES)))
        if policy != "always":
            facts = self.known(image)
            if facts is None:
                facts = await self._look(reference)
            if facts is not None:
                return facts
            if policy == "never":
                raise ImageRefused(
                    "The image %s is not on this host, and the pull policy forbids to pull it: load it, or "
                    "change the policy." % image
                )
        await self._pull(reference)
        facts = await self._look(reference)
        if facts is None:
            raise EngineUnavailable("The image %s was pulled, but the engine does not have it any more." % image)
        return facts

    def known(self, image: str) -> Optional[ImageFacts]:
        """The facts, if they are fresh; asks nobody."""
        return self._facts[image] if self._until.get(image, 0.0) > self._clock() else None

    def last(self, image: str) -> Optional[ImageFacts]:
        """The facts as they were found last, however long ago."""
        return self._facts.get(image)

    def forget(self, image: str) -> None:
        """The engine says that it is not there."""
        self._facts.pop(image, None)
        self._until.pop(image, None)

    async def _look(self, reference: Reference) -> Optional[ImageFacts]:
        # The grammar left only characters that may stand in a path, and '/' must stay one for the engine's router.
        try:
            answer = await self._engine.call(self._engine.request, "GET", "/images/%s/json" % reference.text)
        except EngineError as error:
            self.forget(reference.text)
            if error.status == 404:
                return None
            raise EngineUnavailable(
                "The engine could not look up the image %s (%s)." % (reference.text, error.message)
            ) from error
        if len(self._facts) > 1000:
            self._facts.clear()
            self._until.clear()
        facts = _facts(reference, answer.json(), self._engine.version.get("Arch", ""))
        self._facts[reference.text] = facts
        self._until[reference.text] = self._clock() + self._keep
        return facts

    async def _pull(self, reference: Reference) -> None:
        while True:
            pull = self._pulls.get(reference.text)
            if pull is None:
                break
            await pull.done.wait()
            if pull.finished:
                if pull.fault is not None:
                    raise pull.fault
                return
            # Whoever pulled was cancelled: one of those who wait takes it over.
        pull = self._pulls[reference.text] = _Pull()
        try:
            await self._engine.call_stream(lambda stream: self._read_pull(stream, reference), timeout=self._idle)
            pull.finished = True
        except Exception as error:
            pull.fault, pull.finished = error, True
            raise
        finally:
            del self._pulls[reference.text]
            pull.done.set()

    def _read_pull(self, stream: Stream, reference: Reference) -> None:
        headers: Dict[str, str] = {}
        auth = auth_header(self._auth_file, reference)
        if auth is not None:
            headers["X-Registry-Auth"] = auth
        query = {"fromImage": reference.name, "tag": reference.wanted}
        try:
            self._engine.open(stream, "POST", "/images/create", query, headers=headers)
            for line in stream.lines():
                if isinstance(line, dict) and line.get("error"):
                    raise pull_fault(reference, 200, str(line["error"]))
        except EngineError as error:
            raise pull_fault(reference, error.status, error.message) from error
        except (OSError, ValueError, HTTPError) as error:
            raise self._engine.gone(error) from error


def _facts(reference: Reference, found: Dict[str, Any], arch: str) -> ImageFacts:
    config = found.get("Config") or {}
    env: Dict[str, str] = {}
    for pair in config.get("Env") or []:
        key, _, value = pair.partition("=")
        env[key] = value
    notes: List[str] = []
    built = found.get("Architecture") or ""
    if built and arch and built != arch:
        notes.append("The image %s is built for %s, this host is %s." % (reference.text, built, arch))
    return ImageFacts(
        reference=reference.text,
        id=found.get("Id", ""),
        digest=_digest(reference, found.get("RepoDigests") or []),
        user=config.get("User") or "",
        workdir=config.get("WorkingDir") or "",
        env=env,
        volumes=sorted(config.get("Volumes") or {}),
        notes=notes,
    )


def _digest(reference: Reference, digests: List[str]) -> Optional[str]:
    """The manifest digest of this repository; an image can have several names, each with its own."""
    if reference.digest:
        return reference.digest
    for entry in digests:
        name, at, digest = entry.partition("@")
        if at and name in (
            reference.name,
            reference.repository,
            "%s/%s" % (reference.domain, reference.repository),
            reference.repository[len("library/") :] if reference.repository.startswith("library/") else "",
        ):
            return digest
    return None
