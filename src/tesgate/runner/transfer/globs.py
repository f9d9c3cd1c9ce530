"""Finds in any tree what a pattern of output paths means (`patterns`)."""

from __future__ import annotations

from typing import Callable, Dict, Generic, Iterable, Iterator, List, Optional, Protocol, Tuple, TypeVar

from .patterns import Matcher, expand_braces, has_wildcards, unescape

__all__ = ["Tree", "expand"]

N = TypeVar("N")


class Tree(Protocol[N]):
    """What is searched; nodes are the tree's own. Directories that repeat one of their ancestors are its to hide."""

    def child(self, node: N, name: str) -> Optional[N]: ...

    def children(self, node: N) -> Iterable[Tuple[str, N]]: ...

    def is_dir(self, node: N) -> bool: ...


class _Search(Generic[N]):
    def __init__(self, tree: Tree[N], parts: List[str], only_dirs: bool, check: Callable[[], None]) -> None:
        self.check = check
        self.tree = tree
        self.parts = parts
        self.only_dirs = only_dirs

    def run(self, node: N, index: int, path: Tuple[str, ...]) -> Iterator[Tuple[Tuple[str, ...], N]]:
        if index == len(self.parts):
            if not self.only_dirs or self.tree.is_dir(node):
                yield path, node
            return
        if not self.tree.is_dir(node):
            return
        part = self.parts[index]
        if "**" in part and has_wildcards(part):
            yield from self._deep(node, Matcher("/".join(self.parts[index:])), path, "")
        elif has_wildcards(part):
            wanted = Matcher(part)
            for name, inner in self._children(node):
                if wanted.fullmatch(name):
                    yield from self.run(inner, index + 1, (*path, name))
        else:
            name = unescape(part)
            found = self.tree.child(node, name)
            if found is not None:
                yield from self.run(found, index + 1, (*path, name))

    def _children(self, node: N) -> Iterator[Tuple[str, N]]:
        for child in self.tree.children(node):
            self.check()
            yield child

    def _deep(
        self, node: N, wanted: Matcher, path: Tuple[str, ...], relative: str
    ) -> Iterator[Tuple[Tuple[str, ...], N]]:
        for name, inner in self._children(node):
            below = relative + name
            if wanted.fullmatch(below) and (not self.only_dirs or self.tree.is_dir(inner)):
                yield (*path, name), inner
            if self.tree.is_dir(inner):
                yield from self._deep(inner, wanted, (*path, name), below + "/")


def expand(
    tree: Tree[N], root: N, pattern: str, check: Callable[[], None] = lambda: None
) -> List[Tuple[Tuple[str, ...], N]]:
    """Find all that an absolute pattern matches, sorted, each once, as path components and node.

    A pattern that ends in ``/`` matches directories only. `check` is called for each entry that is looked at: what it
    raises ends the search. Raises `ValueError` on too many alternatives or wildcards.
    """
    found: Dict[Tuple[str, ...], N] = {}
    for plain in expand_braces(pattern):
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        search = _Search(tree, parts, plain.endswith("/"), check)
        found.update(search.run(root, 0, ()))
    return sorted(found.items(), key=lambda item: item[0])
