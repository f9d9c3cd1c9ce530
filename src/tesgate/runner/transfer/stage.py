"""Stages the inputs of an attempt in and its outputs out: the only module of this package that others need."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, TypeVar, Union

import anyio
import anyio.to_thread

from ..plan import Input, Mount, Output, UrlPolicy
from ..report import OutputFile, Root
from .base import FolderSink, Item, Sink, SinkOfMany, Source, Staging, Storage
from .connect import HttpSettings
from .copying import Copier, process_umask
from .faults import LeaseLost, PathRefused, StagingError, os_fault
from .folder import Folder
from .live import Bound, LiveMounts, LiveSink
from .local import LocalFile, together
from .outputs import Expansion
from .paths import Roots
from .policy import AddressPolicy
from .roots import LocalSource, LocalStorage
from .runs import runs
from .scratch import Scratch
from .threads import Stop, run_all, run_one
from .urls import printable, redact, scheme, unsupported
from .view import View, host_path
from .web import WebStorage, no_headers

__all__ = ["Bound", "HttpSettings", "LeaseLost", "Prepared", "Stager", "StagingError", "host_path", "unsupported"]

T = TypeVar("T")


@dataclass
class Prepared:
    """Outputs whose bytes are stored but not visible; `Stager.publish` makes them so."""

    view: View
    notes: List[str] = field(default_factory=list)
    directories: List[Item] = field(default_factory=list)
    items: List[Item] = field(default_factory=list)

    @property
    def temporaries(self) -> List[str]:
        """Names of what is removed again if nothing is published, for the journal."""
        return [trace for item in self.items if (trace := item.trace) is not None]

    @property
    def files(self) -> List[OutputFile]:
        """What the task's ``logs[].outputs`` will list."""
        return [file for item in self.items for file in item.files()]

    @property
    def empty(self) -> bool:
        """Nothing is to be published: no lease is needed."""
        return not self.items and not self.directories


class Stager:
    """Staging for one attempt. Blocking work runs in threads of its own, at most `concurrency` at a time.

    `owner`: uid and gid of the container's user, to whom staged files are given where the agent is root.
    `link_outputs`: an output may leave the scratch by a hard link; False where a process may outlive its executor.
    `durable`: outputs are flushed to disk before they are published (costs a flush a file).
    `umask`: that of this process, where the caller knows it already.
    `headers_for`: asks (in a thread) for the headers of named credentials for a URL of the web.
    `storages`: kinds of storage besides the agent's roots and the web; they win over these.
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
        storages: Sequence[Storage] = (),
        headers_for: Optional[Callable[[str, Stop], Dict[str, str]]] = None,
    ) -> None:
        self._concurrency = concurrency
        self._owner = owner
        umask = process_umask() if umask is None else umask
        self._roots = Roots(roots)
        self._mounts = LiveMounts(roots=self._roots, umask=umask, owner=owner)
        self._live = LiveSink()
        local = LocalStorage(
            roots=self._roots,
            copier=Copier(),
            umask=umask,
            link=link_outputs,
            durable=durable,
        )
        web = WebStorage(
            policy=AddressPolicy(policy),
            settings=http if http is not None else HttpSettings(),
            concurrency=concurrency,
            headers_for=headers_for or no_headers,
        )
        everything: Sequence[Storage] = (local, web, *storages)
        self._storages: Dict[str, Storage] = {name: storage for storage in everything for name in storage.schemes}
        self._sinks: Dict[int, Sink] = {}

    def check(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> None:
        """Refuse, before anything runs, what can never be staged: schemes, paths outside the roots. No I/O.

        Raises `StagingError` (permanent).
        """
        for item in inputs:
            if item.content is None:
                self._source_of(item).check_input(item)
                if item.refusal is not None:
                    raise StagingError("input %s %s." % (redact(item.url or ""), item.refusal))
        for output in outputs:
            self._storage_for(output).check_output(output)
            if output.refusal is not None:
                url = redact(output.url)
                raise StagingError("output %s: its url %s %s." % (printable(output.path), url, output.refusal))

    def _source_of(self, item: Input) -> Storage:
        if not item.url:
            raise StagingError("input %s has neither url nor content; give one of them." % printable(item.path))
        why = unsupported(item.url, self._storages)
        if why is not None:
            raise StagingError("input %s cannot be staged: %s" % (printable(item.path), why))
        return self._storages[scheme(item.url) or ""]

    def _storage_for(self, output: Output) -> Storage:
        why = unsupported(output.url, self._storages)
        if why is not None:
            raise StagingError("output %s cannot be stored: %s" % (printable(output.path), why))
        return self._storages[scheme(output.url) or ""]

    def _sink_for(self, output: Output) -> Sink:
        storage = self._storage_for(output)
        storage.check_output(output)
        if output.live:
            return self._live
        sink = self._sink_of(storage)
        if sink is None:
            raise StagingError("output %s cannot be stored: nothing can be stored there." % printable(output.path))
        return sink

    def _sink_of(self, storage: Storage) -> Optional[Sink]:
        if id(storage) not in self._sinks and (sink := storage.sink()) is not None:
            self._sinks[id(storage)] = sink
        return self._sinks.get(id(storage))

    async def make_mounts(self, mounts: Sequence[Mount]) -> List[Bound]:
        """Make what mounts of roots need on this host, and find what they are of. Raises `StagingError`."""
        return await anyio.to_thread.run_sync(self._mounts.make, mounts)

    async def find_mounts(self, mounts: Sequence[Mount]) -> List[Bound]:
        """Find what mounts of roots are of, now. Raises `StagingError`."""
        if all(mount.host is None for mount in mounts):
            return []
        return await anyio.to_thread.run_sync(self._mounts.find, mounts)

    def open_live(self, place: str) -> int:
        """Open a regular file of a mounted root, by its place (``live/…``). Raises OSError, `PathRefused`."""
        with self._roots.find(place[len("live") :]) as found:
            return found.open_file()

    async def stage_in(self, inputs: Sequence[Input], attempt_dir: str) -> List[str]:
        """Stage every input at its place below the attempt's directory; returns notes for ``system_logs``.

        May be repeated after a crash. Raises `StagingError`.
        """
        self.check(inputs, [])
        step = _StageIn(
            scratch=Scratch(attempt_dir, self._owner), source_of=self._source_of, concurrency=self._concurrency
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

        `journal` gets these names in a thread before the first byte is written, so that a later run can `discard`
        them. On an error or a cancel they are removed here. Raises `StagingError`.
        """
        view = View(attempt_dir=attempt_dir, mounts=mounts, roots=self._roots)
        prepared = Prepared(view)

        def expand(stop: Stop) -> None:
            found = Expansion(view, self._sink_for, stop)
            found.add(outputs)
            prepared.notes.extend(found.notes)
            for entry in found.directories:
                directory = entry.sink.place_directory(entry)
                if directory is not None:
                    prepared.directories.append(directory)
            for number, file in enumerate(found.files):
                if isinstance(file, Folder):
                    sink = file.entry.sink
                    assert isinstance(sink, FolderSink)
                    prepared.items.append(sink.place_folder(file))
                else:
                    prepared.items.append(file.sink.place(file, tag, number))

        def note(stop: Stop) -> None:
            if journal is not None and prepared.temporaries:
                journal(prepared.temporaries)

        await run_one(expand)
        try:
            await run_all([item.begin for item in prepared.items], concurrency=self._concurrency)
            await run_one(note)
            await run_all(list(_puts(prepared.items, view)), concurrency=self._concurrency)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.discard(prepared)
            raise
        return prepared

    async def publish(self, prepared: Prepared, lease: Callable[[], float]) -> List[OutputFile]:
        """Make everything visible; `lease` says (in a thread) how many seconds of the publish lease are left.

        Raises `LeaseLost` before touching anything that it does not cover, and `StagingError`.
        """

        def all_sinks(stop: Stop) -> List[OutputFile]:
            sinks = {id(item.entry.sink): item.entry.sink for item in (*prepared.directories, *prepared.items)}
            for sink in sinks.values():
                directories, items = (
                    [item for item in some if item.entry.sink is sink]
                    for some in (prepared.directories, prepared.items)
                )
                sink.publish(directories, items, prepared.view, lease, stop)
            return prepared.files

        return await run_one(all_sinks)

    async def discard(self, prepared: Union[Prepared, Sequence[str]]) -> List[str]:
        """Remove what was not published, given as such or as the journalled names; returns names to ask for again.

        A cancel ends it.
        """
        names = prepared.temporaries if isinstance(prepared, Prepared) else list(prepared)
        if not names:
            return []

        def all_sinks(stop: Stop) -> List[str]:
            left: List[str] = []
            for storage in {id(storage): storage for storage in self._storages.values()}.values():
                stop.check()
                if (sink := self._sink_of(storage)) is not None:
                    left += sink.discard(names, stop)
            return left

        return await run_one(all_sinks)


def _puts(items: Sequence[Item], view: View) -> Iterator[Callable[[Stop], None]]:
    for run in runs(items, size=_bytes, beside=lambda one, other: one.entry.sink is other.entry.sink):
        sink = run[0].entry.sink
        if len(run) > 1 and isinstance(sink, SinkOfMany):
            yield partial(sink.put_many, run, view)
        else:
            yield from (partial(sink.put, item, view) for item in run)


def _bytes(item: Item) -> int:
    info = item.entry.node.info
    return 0 if info is None else info.st_size


class _StageIn:
    """One run of stage-in."""

    def __init__(self, *, scratch: Scratch, source_of: Callable[[Input], Storage], concurrency: int) -> None:
        self._scratch = scratch
        self._source_of = source_of
        self._concurrency = concurrency
        self._stop = Stop()
        self._sources: Dict[int, Source] = {}

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    async def run(self, inputs: Sequence[Input]) -> List[str]:
        places = self._places(inputs)
        sources = [None if item.content is not None else self._source(item) for item in inputs]
        stagings = await self._run(
            [partial(self._look, item, source, place) for item, source, place in zip(inputs, sources, places)]
        )
        notes = [note for staging in stagings for note in staging.notes]
        # A file inside a directory that another input makes comes after it, so that it wins.
        levels: Dict[int, List[int]] = {}
        for index, place in enumerate(places):
            level = sum(1 for other in places if len(other) < len(place) and place[: len(other)] == other)
            levels.setdefault(level, []).append(index)
        for level in sorted(levels):
            calls: List[Callable[[Stop], List[str]]] = []
            waiting: List[Callable[[Stop], List[str]]] = []
            single: List[LocalFile] = []
            local: Optional[LocalSource] = None
            for index in levels[level]:
                calls.extend(stagings[index].calls)
                waiting.extend(stagings[index].waiting)
                source = sources[index]
                if isinstance(source, LocalSource):
                    local = source
                    single.extend(stagings[index].files)
            if local is not None:
                calls.extend(partial(local.stage_files, files) for files in together(single))
            for found in await self._run(calls, waiting):
                notes.extend(found)
        return [printable(note) for note in notes]

    async def _run(self, calls: Sequence[Callable[[Stop], T]], waiting: Sequence[Callable[[Stop], T]] = ()) -> List[T]:
        return await run_all(calls, waiting=waiting, concurrency=self._concurrency, stop=self._stop)

    def _source(self, item: Input) -> Source:
        storage = self._source_of(item)
        if id(storage) not in self._sources:
            self._sources[id(storage)] = storage.source(self._scratch, self._stop)
        return self._sources[id(storage)]

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

    def _look(self, item: Input, source: Optional[Source], place: List[str], stop: Stop) -> Staging:
        if source is None:
            return Staging(calls=[partial(self._write_content, item, item.content or "", place)])
        return source.look(item, place, stop)

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


def _mode(item: Input) -> int:
    return 0o666 if item.writable else 0o644
