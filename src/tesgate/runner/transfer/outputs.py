"""Finds out which files a task's declared outputs are, and where each is to be stored; copies nothing."""

from __future__ import annotations

import os
import stat
from typing import Callable, Dict, List, Optional, Sequence, Union

from ..plan import Output
from .base import Entry, FolderSink, Sink
from .faults import PathRefused, StagingError, os_fault
from .folder import FULL, Folder
from .globs import expand
from .patterns import base_of, has_braces, has_wildcards, unescape
from .threads import Stop
from .urls import is_local, join, parted, printable, redact
from .view import Missing, Node, View

__all__ = ["Expansion"]

MAX_ENTRIES = 2_000_000
MOST_NOTES = 20
"""Lines about one output."""


class Expansion:
    """Expands outputs one by one; a target that was already taken is not taken twice.

    What is held grows with the files, but for those that a sink takes together (`base.FolderSink`).
    """

    def __init__(self, view: View, sink_for: Callable[[Output], Sink], stop: Stop) -> None:
        """`sink_for` raises `StagingError` where an output's URL is of no kind that can be stored to."""
        self._view = view
        self._sink_for = sink_for
        self._stop = stop
        self._taken: Dict[str, Entry] = {}
        self._count = 0
        self._seen_faults: Dict[str, None] = {}
        self._listed = self._unlisted = 0
        self.files: List[Union[Entry, Folder]] = []
        self.directories: List[Entry] = []
        self.notes: List[str] = []

    def add(self, outputs: Sequence[Output]) -> None:
        """Expand declared outputs in their order. Raises `StagingError` where one cannot be stored at all."""
        sinks = [self._sink_for(output) for output in outputs]
        targets: List[str] = []
        for output, sink in zip(outputs, sinks):
            try:
                targets.append(sink.target(output))
            except PathRefused as error:
                raise StagingError("output %s: its url %s." % (printable(output.path), error.why)) from None
        apart = _apart([_reach(output, target) for output, target in zip(outputs, targets)])
        for output, sink, target, alone in zip(outputs, sinks, targets, apart):
            self._sink, self._alone = sink, alone and not _is_special(output.path)
            self._expand(output, target)

    def _expand(self, output: Output, target: str) -> None:
        self._listed = self._unlisted = 0
        try:
            self._add(output, target)
        except OSError as error:
            raise os_fault(error, "output %s could not be read" % printable(output.path)) from error
        if self._unlisted:
            self.notes.append(
                "output %s: the same kind of thing %d more times." % (printable(output.path), self._unlisted)
            )

    def _note(self, text: str) -> None:
        """Add a line. A task can leave a million links to nowhere: of each output some are named, the rest counted."""
        self._listed += 1
        if self._listed <= MOST_NOTES:
            self.notes.append(text)
        else:
            self._unlisted += 1

    def _add(self, output: Output, target: str) -> None:
        pattern = has_wildcards(output.path)
        literal = None if pattern and output.path_prefix is not None else self._literal(output.path)
        if literal is not None:
            self._store(literal, output, output.path.rstrip("/") or "/", output.url, target)
        elif pattern or self._brace_pattern(output):
            self._add_matches(output, target, pattern)
        elif unescape(output.path) != output.path and (literal := self._literal(unescape(output.path))) is not None:
            self._store(literal, output, unescape(output.path).rstrip("/"), output.url, target)
        else:
            self._note_missing(output)

    def _literal(self, path: str) -> Optional[Node]:
        try:
            return self._view.look((), [part for part in path.split("/") if part not in ("", ".")])
        except Missing:
            return None

    def _brace_pattern(self, output: Output) -> bool:
        """Braces alone are no pattern in TES, but Nextflow sends them: as such with a prefix, or in path and url."""
        try:
            braces = has_braces(output.path)
        except ValueError:
            return False
        name = output.path.rpartition("/")[2]
        return braces and (output.path_prefix is not None or ("{" in name and output.url.endswith("/" + name)))

    def _note_missing(self, output: Output) -> None:
        path = printable(output.path)
        try:
            self._view.look((), [part for part in output.path.split("/") if part not in ("", ".")])
        except Missing as error:
            if error.why != "does not exist":
                self._note("output %s %s; nothing was stored for it." % (path, error.why))
                return
        self._note("output %s was declared but does not exist; nothing was stored for it." % path)

    def _add_matches(self, output: Output, target: str, pattern: bool) -> None:
        path = printable(output.path)
        try:
            matches = expand(self._view, self._view.root, output.path, self._stop.check)
        except ValueError as error:
            raise StagingError("output %s: %s." % (path, error)) from None
        if not matches:
            self._note("output %s matches nothing; nothing was stored for it." % path)
            return
        url, prefix = output.url, output.path_prefix
        if not pattern and prefix is None:
            url, prefix = url.rpartition("/")[0] or "/", base_of(output.path)
            target = target.rpartition("/")[0] or "/"
        fallback = base_of(output.path)
        if prefix is None:
            prefix = fallback
            self._note("output %s has no path_prefix; %s was taken for it." % (path, printable(prefix)))
        for parts, node in matches:
            shown = "/" + "/".join(parts)
            names = self._pruned(shown, prefix)
            if names is None:
                self._note(
                    "output %s matches %s, which does not begin with path_prefix %s; %s was taken for it."
                    % (path, printable(shown), printable(prefix), printable(fallback))
                )
                names = self._pruned(shown, fallback) or []
            if not names:
                self._note("output %s: path_prefix leaves no name of %s." % (path, printable(shown)))
                continue
            self._walk(node, shown, join(url, names), target.rstrip("/") + "/" + "/".join(names))

    @staticmethod
    def _pruned(shown: str, prefix: str) -> Optional[List[str]]:
        """Take a prefix off, as the TES specification has it: of the text, wherever in a component it ends."""
        if not shown.startswith(prefix):
            return None
        return [part for part in shown[len(prefix) :].split("/") if part]

    def _store(self, node: Node, output: Output, shown: str, url: str, target: str) -> None:
        path, query = parted(url)
        if path.endswith("/") and not node.is_dir and output.type != "DIRECTORY":
            name = shown.rpartition("/")[2]
            url, target = join(url, [name]), target.rstrip("/") + "/" + name
        elif node.is_dir:
            target = target.rstrip("/")
        else:
            url, target = path.rstrip("/") + query, target.rstrip("/")
        self._walk(node, shown, url, target)

    def _walk(self, node: Node, shown: str, url: str, target: str) -> None:
        self._stop.check()
        if node.fault is not None or not (node.is_dir or (node.info and stat.S_ISREG(node.info.st_mode))):
            if shown not in self._seen_faults:
                self._seen_faults[shown] = None
                why = node.fault or "is neither a file nor a directory"
                self._note("output %s %s; it was not stored." % (printable(shown), why))
            return
        entry = Entry(node, shown, url, target, self._sink)
        self._more()
        before = entry
        if not self._alone:
            key = os.path.normpath(target) if is_local(url) else target
            before = self._taken.setdefault(key, entry)
        if before is not entry and (before.node.path == node.path or not (node.is_dir and before.node.is_dir)):
            if before.node.path != node.path:
                self._note(
                    "outputs %s and %s have the same url %s; the first was stored."
                    % (printable(before.path), printable(shown), redact(url))
                )
            return
        if not node.is_dir:
            self.files.append(entry)
            return
        if before is entry:
            self.directories.append(entry)
        self._walk_in(entry)

    def _more(self) -> None:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise StagingError("the outputs hold more than %d entries; let the task pack them." % MAX_ENTRIES)

    def _walk_in(self, entry: Entry) -> None:
        # In a tree of its own no two names lead to one place, so that nothing has to be held to find that out.
        together = self._sink if self._alone and isinstance(self._sink, FolderSink) else None
        folder: Optional[Folder] = None
        for name, inner in self._view.children(entry.node):
            info = inner.info
            if (
                together is None
                or info is None
                or inner.fault is not None
                or not stat.S_ISREG(info.st_mode)
                or info.st_size > together.largest
                or not self._view.is_own(entry.node, name, inner)
            ):
                shown = entry.path.rstrip("/") + "/" + name
                self._walk(inner, shown, join(entry.url, [name]), entry.target + "/" + name)
                continue
            self._stop.check()
            self._more()
            if folder is None or len(folder) >= FULL or folder.device != info.st_dev:
                folder = Folder(entry, info.st_dev)
                self.files.append(folder)
            folder.add(name, info)


def _is_special(path: str) -> bool:
    return any(char in path for char in "*?[]{}\\")


def _reach(output: Output, target: str) -> str:
    """Above all targets that an output may have."""
    target = (os.path.normpath(target) if is_local(output.url) else target).rstrip("/")
    return (target.rpartition("/")[0] if _is_special(output.path) else target) + "/"


def _apart(places: Sequence[str]) -> List[bool]:
    """Of each directory, whether it holds no other one and lies in none."""
    apart = [True] * len(places)
    above: Optional[int] = None
    for index in sorted(range(len(places)), key=places.__getitem__):
        if above is not None and places[index].startswith(places[above]):
            apart[index] = apart[above] = False
        else:
            above = index
    return apart
