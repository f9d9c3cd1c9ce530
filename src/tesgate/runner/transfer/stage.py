"""Stages the inputs of an attempt in and its outputs out: the only module of this package that others need."""

from __future__ import annotations

import os
from functools import partial
from typing import Callable, Dict, List, Optional, Sequence, Tuple, TypeVar, Union

import anyio

from ..plan import Input, Mount, Output, UrlPolicy
from ..report import OutputFile, Root
from .connect import HttpSettings
from .copying import Copier, process_umask
from .faults import LeaseLost, PathRefused, StagingError, os_fault
from .http import Downloader
from .local import Listing, LocalFile, LocalInputs, together
from .outputs import Expansion
from .paths import Roots
from .policy import AddressPolicy
from .scratch import Scratch
from .storing import Prepared, Storing
from .threads import Stop, run_all, run_one
from .urls import is_local, is_web, local_path, printable, redact, unsupported, unsupported_output
from .view import View, host_path

__all__ = ["HttpSettings", "LeaseLost", "Prepared", "Stager", "StagingError", "host_path", "unsupported"]

T = TypeVar("T")


class Stager:
    """Staging for one attempt. Blocking work runs in threads of its own, at most `concurrency` at a time.

    `owner`: uid and gid of the container's user, to whom staged files are given where the agent is root.
    `link_outputs`: an output may leave the scratch by a hard link; False where a process may outlive its executor.
    `durable`: outputs are flushed to disk before they are published (costs a flush a file).
    `umask`: that of this process, where the caller knows it already.
    """

    def __init__(
        self,
        *,
        roots: Sequence[Root],
        policy: UrlPolicy,
        concurrency: int = 4,
        owner: Optional[Tuple[int, int]] = None,
        http: Optional[HttpSettings] = None,
        link_outputs: bool = True,
        durable: bool = True,
        umask: Optional[int] = None,
    ) -> None:
        self._roots = Roots(roots)
        self._policy = AddressPolicy(policy)
        self._concurrency = concurrency
        self._owner = owner
        self._http = http if http is not None else HttpSettings()
        self._copier = Copier()
        self._storing = Storing(
            roots=self._roots,
            copier=self._copier,
            umask=process_umask() if umask is None else umask,
            link=link_outputs,
            durable=durable,
        )

    def check(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
        """Refuse, before anything runs, what can never be staged: schemes, paths outside the roots. No I/O.

        Raises `StagingError` (permanent).
        """
        for item in inputs:
            if item.content is None:
                self._check_input(item)
        for output in outputs:
            why = unsupported_output(output.url)
            if why is None:
                try:
                    root, _ = self._roots.belongs(local_path(output.url))
                    why = None if root.writable else "it lies in the root %s, which is read-only." % root.path
                except PathRefused as error:
                    why = "its url %s." % error.why
            if why is not None:
                raise StagingError("output %s cannot be stored: %s" % (printable(output.path), why))

    def _check_input(self, item: Input) -> None:
        if not item.url:
            raise StagingError("input %s has neither url nor content; give one of them." % printable(item.path))
        why = unsupported(item.url)
        if why is not None:
            raise StagingError("input %s cannot be staged: %s" % (printable(item.path), why))
        if is_web(item.url) and item.type == "DIRECTORY":
            raise StagingError(
                "input %s is a DIRECTORY, which http(s) does not have; list its files as inputs of their own."
                % redact(item.url)
            )
        if is_local(item.url):
            try:
                self._roots.belongs(local_path(item.url))
            except PathRefused as error:
                raise StagingError("input %s %s." % (redact(item.url), error.why)) from None

    async def stage_in(self, inputs: Sequence[Input], attempt_dir: str) -> List[str]:
        """Stage every input at its place below the attempt's directory; returns notes for ``system_logs``.

        May be repeated after a crash. Raises `StagingError`.
        """
        self.check(inputs, [])
        step = _StageIn(
            scratch=Scratch(attempt_dir, self._owner),
            roots=self._roots,
            copier=self._copier,
            policy=self._policy,
            http=self._http,
            concurrency=self._concurrency,
        )
        try:
            return await step.run(inputs)
        finally:
            step.close()

    async def prepare_outputs(
        self,
        outputs: Sequence[Output],
        mounts: Sequence[Mount],
        attempt_dir: str,
        tag: str,
        *,
        journal: Optional[Callable[[List[str]], None]] = None,
    ) -> Prepared:
        """Store the bytes of all outputs under temporary names (with `tag` in them, the attempt's external name).

        `journal` gets these names (absolute paths) in a thread before the first byte is written, so that a later run
        can `discard` them. On an error or a cancel they are removed here. Raises `StagingError`.
        """
        view = View(attempt_dir=attempt_dir, mounts=mounts)
        prepared = Prepared()

        def expand(stop: Stop) -> None:
            found = Expansion(view, stop)
            for output in outputs:
                found.add(output)
            prepared.notes.extend(found.notes)
            self._storing.place(found.files, found.directories, tag, prepared)
            if journal is not None and prepared.items:
                journal(prepared.temporaries)

        await run_one(expand)
        try:
            await run_all(
                [partial(self._storing.put, item, view) for item in prepared.items], concurrency=self._concurrency
            )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.discard(prepared)
            raise
        return prepared

    async def publish(self, prepared: Prepared, lease: Callable[[], float]) -> List[OutputFile]:
        """Rename everything to its name; `lease` says (in a thread) how many seconds of the publish lease are left.

        Raises `LeaseLost` before touching anything that it does not cover, and `StagingError`.
        """
        return await run_one(partial(self._storing.publish, prepared, lease))

    async def discard(self, prepared: Union[Prepared, Sequence[str]]) -> None:
        """Remove the temporary files of what was not published, given as such or as the journalled names."""
        names = prepared.temporaries if isinstance(prepared, Prepared) else list(prepared)
        await run_one(lambda stop: self._storing.discard(names))


class _StageIn:
    """One run of stage-in."""

    def __init__(
        self,
        *,
        scratch: Scratch,
        roots: Roots,
        copier: Copier,
        policy: AddressPolicy,
        http: HttpSettings,
        concurrency: int,
    ) -> None:
        self._scratch = scratch
        self._local = LocalInputs(roots=roots, scratch=scratch, copier=copier)
        self._policy = policy
        self._http = http
        self._concurrency = concurrency
        self._stop = Stop()
        self._downloader: Optional[Downloader] = None

    def close(self) -> None:
        if self._downloader is not None:
            self._downloader.close()

    async def run(self, inputs: Sequence[Input]) -> List[str]:
        places = self._places(inputs)
        if any(item.content is None and item.url and is_web(item.url) for item in inputs):
            self._downloader = Downloader(policy=self._policy, settings=self._http, stop=self._stop)
        listings = await self._run([partial(self._list, item, places[index]) for index, item in enumerate(inputs)])
        notes = [note for listing in listings for note in listing.notes]
        # A file inside a directory that another input makes comes after it, so that it wins.
        levels: Dict[int, List[int]] = {}
        for index, place in enumerate(places):
            level = sum(1 for other in places if len(other) < len(place) and place[: len(other)] == other)
            levels.setdefault(level, []).append(index)
        for level in sorted(levels):
            calls: List[Callable[[Stop], List[str]]] = []
            single: List[LocalFile] = []
            for index in levels[level]:
                if listings[index].files and not listings[index].directories:
                    single.extend(listings[index].files)
                else:
                    calls.extend(self._calls(inputs[index], places[index], listings[index]))
            calls.extend(partial(self._stage_files, files) for files in together(single))
            for found in await self._run(calls):
                notes.extend(found)
        return [printable(note) for note in notes]

    async def _run(self, calls: List[Callable[[Stop], T]]) -> List[T]:
        return await run_all(calls, concurrency=self._concurrency, stop=self._stop)

    def _places(self, inputs: Sequence[Input]) -> List[List[str]]:
        places: List[List[str]] = []
        for item in inputs:
            try:
                place = self._scratch.parts(item.place)
            except PathRefused as error:
                raise StagingError("input %s %s." % (printable(item.path), error.why)) from None
            if place in places:
                raise StagingError("two inputs have the path %s; give each its own." % printable(item.path))
            places.append(place)
        return places

    def _list(self, item: Input, place: List[str], stop: Stop) -> Listing:
        if item.content is not None or not item.url or not is_local(item.url):
            return Listing()
        return self._local.list(
            local_path(item.url), place, kind=item.type, shown=redact(item.url), private=item.writable, stop=stop
        )

    def _calls(self, item: Input, place: List[str], listing: Listing) -> List[Callable[[Stop], List[str]]]:
        if item.content is not None:
            return [partial(self._write_content, item, item.content, place)]
        if item.url and is_web(item.url):
            return [partial(self._download, item, item.url, place)]
        calls: List[Callable[[Stop], List[str]]] = []

        def directories(stop: Stop) -> List[str]:
            for directory in listing.directories:
                stop.check()
                self._local.make_directory(directory, item.url or item.path)
            return []

        if listing.directories:
            calls.append(directories)
        calls.extend(partial(self._stage_files, files) for files in together(listing.files))
        return calls

    def _stage_files(self, files: List[LocalFile], stop: Stop) -> List[str]:
        self._local.stage_all(files, stop)
        return []

    def _write_content(self, item: Input, content: str, place: List[str], stop: Stop) -> List[str]:
        shown = printable(item.path)
        try:
            data = memoryview(content.encode("utf-8"))
        except UnicodeEncodeError:
            raise StagingError("input %s: its content holds half a surrogate pair, not text." % shown) from None
        try:
            with self._scratch.new_file(place, _mode(item)) as target:
                while data:
                    data = data[os.write(target, data) :]
        except PathRefused as error:
            raise StagingError("input %s %s." % (shown, error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % shown) from error
        return []

    def _download(self, item: Input, url: str, place: List[str], stop: Stop) -> List[str]:
        assert self._downloader is not None
        try:
            with self._scratch.new_file(place, _mode(item)) as target:
                return self._downloader.download(url, target)[1]
        except PathRefused as error:
            raise StagingError("input %s %s." % (redact(url), error.why)) from None
        except OSError as error:
            raise os_fault(error, "input %s could not be written" % redact(url)) from error


def _mode(item: Input) -> int:
    return 0o666 if item.writable else 0o644
