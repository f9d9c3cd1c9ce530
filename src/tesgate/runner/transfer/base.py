"""The contract between a stager and each kind of storage: where inputs come from, where outputs go to.

A `Storage` serves some URL schemes for one attempt. All its methods are blocking and run in threads; they raise
`StagingError` with one sentence, and look at `Stop` between chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Iterator, List, Optional, Protocol, Sequence, runtime_checkable

from ..plan import Input, Output
from ..report import OutputFile
from .folder import Folder
from .local import LocalFile
from .scratch import Scratch
from .threads import Stop
from .urls import listed, printable
from .view import Node, View

__all__ = ["Entry", "FolderSink", "Item", "Sink", "SinkOfMany", "Source", "Staging", "Storage"]


@dataclass
class Staging:
    """What is to be done for one input, once it is known what it is."""

    calls: List[Callable[[Stop], List[str]]] = field(default_factory=list)
    """Each runs in a thread and returns notes. Several run at a time, in no order: one that needs more inner order (or
    more than it would hold in memory) is one call that does its own (`threads.parallel`)."""
    waiting: List[Callable[[Stop], List[str]]] = field(default_factory=list)
    """The same, of calls that mostly wait for a server and start no further threads without a bound of their own: more
    of them run at a time."""
    files: List[LocalFile] = field(default_factory=list)
    """Single files of the agent's roots, which are staged together with others of their directory."""
    notes: List[str] = field(default_factory=list)


class Source(Protocol):
    """Where inputs come from, for one run of stage-in."""

    def look(self, item: Input, place: List[str], stop: Stop) -> Staging:
        """Find out what an input is. Nothing is written yet. All inputs are looked at before the first is staged."""
        ...

    def close(self) -> None:
        """Let go of connections; idempotent."""
        ...


@dataclass
class Entry:
    """One file to store, or one directory to make."""

    node: Node
    path: str
    """The container path, as declared and below."""
    url: str
    target: str
    """Where `url` leads, in the words of its sink."""
    sink: Sink = field(repr=False)


@dataclass
class Item:
    """What a sink keeps of one entry. Sinks have kinds of their own, with more in them."""

    entry: Entry
    size: int = field(default=0, init=False)
    """Bytes that were stored; set by `Sink.put`, or at the latest by `Sink.publish`."""
    done: bool = field(default=False, init=False)
    """It is visible."""

    @property
    def trace(self) -> Optional[str]:
        """A name of what lies beside the final place until it is published, for the journal.

        A later runner hands it to `Sink.discard`. It begins with what marks it as this sink's; None: nothing would be
        left behind.
        """
        return None

    def files(self) -> Iterator[OutputFile]:
        """What is stored, as the task's log lists it."""
        yield OutputFile(listed(self.entry.url), printable(self.entry.path), self.size)

    def begin(self, stop: Stop) -> None:
        """Make what `trace` names, still without a byte in it; called once before the traces are journalled.

        Most have nothing to make. Raises `StagingError`, `Stopped`.
        """


class Sink(Protocol):
    """Where outputs go to."""

    def target(self, output: Output) -> str:
        """Where the output's URL leads; what is below gets ``/name`` appended for each component."""
        ...

    def place_directory(self, entry: Entry) -> Optional[Item]:
        """A directory of the output, made when it is published; None where the storage has no such thing."""
        ...

    def place(self, entry: Entry, tag: str, number: int) -> Item:
        """A file of the output: find where it goes. Nothing is written yet.

        `tag` and `number` make a temporary name that is the same in another run of this attempt.
        """
        ...

    def put(self, item: Item, view: View, stop: Stop) -> None:
        """Bring the bytes there, still invisible. A sink that cannot do so does it in `publish`."""
        ...

    def publish(
        self, directories: Sequence[Item], items: Sequence[Item], view: View, lease: Callable[[], float], stop: Stop
    ) -> None:
        """Make everything visible that is not `done`; each item becomes so when it is.

        `lease`: seconds of the publish lease that are left. Raises `LeaseLost` before the first thing that it does not
        cover; it is then called again.
        """
        ...

    def discard(self, traces: Sequence[str], stop: Stop) -> List[str]:
        """Remove what was not published; returns those traces whose storage is away, to be asked again.

        Traces of other sinks are left alone; what is gone is success. Once somebody wants to stop, the rest of a sink
        whose storage takes time stays, or is among what is returned.
        """
        ...


@runtime_checkable
class SinkOfMany(Protocol):
    """A sink that stores several small files faster together, over one connection."""

    def put_many(self, items: Sequence[Item], view: View, stop: Stop) -> None:
        """Do what `Sink.put` does for each."""
        ...


@runtime_checkable
class FolderSink(Protocol):
    """A sink that also takes files of one directory together, as one item: what is held does not grow with them."""

    @property
    def largest(self) -> int:
        """Bytes of a file that is handed over so; one that is larger comes as an entry of its own."""
        ...

    def place_folder(self, folder: Folder) -> Item:
        """As `Sink.place`, for all its files."""
        ...


class Storage(Protocol):
    """One kind of storage, for one attempt."""

    schemes: Sequence[str]
    """Of URLs, lower case. Plain absolute paths count as ``file``."""

    def check_input(self, item: Input) -> None:
        """Refuse, before anything runs, what can never be staged. No I/O."""
        ...

    def check_output(self, output: Output) -> None:
        """Refuse, before anything runs, what can never be stored. No I/O."""
        ...

    def source(self, scratch: Scratch, stop: Stop) -> Source:
        """For one run of stage-in into `scratch`; `stop` is that of the whole run."""
        ...

    def sink(self) -> Optional[Sink]:
        """For one run of stage-out; asked for once. None: it is for inputs only (`check_output` refuses all)."""
        ...
