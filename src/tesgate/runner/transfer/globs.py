"""Expands the wildcards of output paths over any tree: POSIX ``* ? []``, and ``**`` and ``{a,b}`` beyond it.

A wildcard never matches ``/`` nor, at the beginning of a component, a dot; ``**`` matches across ``/``.
"""

from __future__ import annotations

import re
from typing import Dict, Generic, Iterator, List, Optional, Pattern, Protocol, Sequence, Tuple, TypeVar

__all__ = ["Tree", "base_of", "expand", "expand_braces", "has_braces", "has_wildcards", "regex", "unescape"]

MAX_ALTERNATIVES = 1024
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t\r\n\v\f",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}

N = TypeVar("N")


class Tree(Protocol[N]):
    """What is searched; nodes are the tree's own. Directories that repeat one of their ancestors are its to hide."""

    def child(self, node: N, name: str) -> Optional[N]: ...

    def children(self, node: N) -> Sequence[Tuple[str, N]]: ...

    def is_dir(self, node: N) -> bool: ...


def has_wildcards(path: str) -> bool:
    """Say whether a path holds ``*``, ``?`` or a complete ``[…]`` that is not escaped."""
    index = 0
    while index < len(path):
        char = path[index]
        if char == "\\":
            index += 1
        elif char in "*?" or (char == "[" and _bracket(path, index) is not None):
            return True
        index += 1
    return False


def has_braces(path: str) -> bool:
    """Say whether a path holds ``{a,b}`` that is not escaped."""
    return len(expand_braces(path)) > 1


def unescape(text: str) -> str:
    """Remove the backslashes that quote."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def base_of(path: str) -> str:
    """Return the longest leading directory that holds no wildcard and no brace, unescaped; ``/`` at least."""
    parts = []
    for part in path.split("/")[:-1]:
        if has_wildcards(part) or "{" in part:
            break
        parts.append(unescape(part))
    return "/".join(parts) or "/"


def expand_braces(pattern: str) -> List[str]:
    """Expand ``{a,b}``, nested ones too, in order and without repeats.

    ``{a}`` stands for itself and for ``a`` (shells take it literally, Java and so Nextflow do not).
    Raises `ValueError` beyond 1024 alternatives.
    """
    done: List[str] = []
    pending = [pattern]
    while pending:
        current = pending.pop(0)
        found = _brace(current)
        if found is None:
            done.append(current)
        else:
            start, end, options = found
            pending = [current[:start] + option + current[end + 1 :] for option in options] + pending
        if len(done) + len(pending) > MAX_ALTERNATIVES:
            raise ValueError("the pattern has more than %d alternatives" % MAX_ALTERNATIVES)
    return list(dict.fromkeys(done))


def _brace(text: str) -> Optional[Tuple[int, int, List[str]]]:
    """Find the first complete brace: its ends and its alternatives."""
    index = 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == "{":
            found = _alternatives(text, index)
            if found is not None:
                end, options = found
                if len(options) == 1:
                    options = [*options, "\\{" + options[0] + "\\}"]
                return index, end, options
        index += 1
    return None


def _alternatives(text: str, start: int) -> Optional[Tuple[int, List[str]]]:
    depth, index, begin = 0, start, start + 1
    options: List[str] = []
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return index, [*options, text[begin:index]]
        elif char == "," and depth == 1:
            options.append(text[begin:index])
            begin = index + 1
        index += 1
    return None


def _bracket(text: str, start: int) -> Optional[Tuple[int, str]]:
    """Translate the bracket expression that begins at `start`: index of its ``]`` and a regular expression."""
    index = start + 1
    negated = text[index : index + 1] in ("!", "^")
    if negated:
        index += 1
    first = True
    items: List[str] = []
    while index < len(text):
        char = text[index]
        if char == "]" and not first:
            body = "".join(items)
            if not body:
                return index, "[^/]" if negated else "(?!)"
            return index, ("[^/%s]" if negated else "(?!/)[%s]") % body
        first = False
        named = re.match(r"\[:([a-z]+):\]", text[index:])
        if named and named.group(1) in _CLASSES:
            items.append(_CLASSES[named.group(1)])
            index += named.end()
            continue
        if char == "/":
            return None
        char, index = _quoted(text, index)
        if text[index : index + 1] == "-" and text[index + 1 : index + 2] not in ("]", ""):
            last, index = _quoted(text, index + 1)
            if "/" in (char, last):
                return None
            if char <= last:
                items.append("%s-%s" % (_member(char), _member(last)))
        else:
            items.append(_member(char))
    return None


def _quoted(text: str, index: int) -> Tuple[str, int]:
    if text[index] == "\\" and index + 1 < len(text):
        return text[index + 1], index + 2
    return text[index], index + 1


def _member(char: str) -> str:
    return "\\" + char if char in "\\]^-[&~|" else char


def regex(pattern: str) -> Pattern[str]:
    """Compile a pattern without braces; it is to be used with `fullmatch` on relative paths."""
    out: List[str] = []
    index = 0
    start = True
    while index < len(pattern):
        char = pattern[index]
        dot = r"(?!\.)" if start else ""
        if char == "*":
            end = index
            while pattern[end : end + 1] == "*":
                end += 1
            deep = end - index > 1
            if deep and start and pattern[end : end + 1] == "/":
                out.append(r"(?:(?!\.)[^/]+/)*")
                index = end + 1
                continue
            if deep:
                out.append(dot + r"(?:[^/]|/(?!\.))" + ("+" if start and end == len(pattern) else "*"))
            else:
                out.append(dot + "[^/]*")
            index = end
        elif char == "?":
            out.append(dot + "[^/]")
            index += 1
        else:
            found = _bracket(pattern, index) if char == "[" else None
            if found is not None:
                out.append(dot + found[1])
                index = found[0] + 1
            else:
                char, index = _quoted(pattern, index)
                out.append(re.escape(char))
        start = char == "/"
    return re.compile("".join(out), re.DOTALL)


class _Search(Generic[N]):
    def __init__(self, tree: Tree[N], parts: List[str], only_dirs: bool) -> None:
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
            yield from self._deep(node, regex("/".join(self.parts[index:])), path, "")
        elif has_wildcards(part):
            wanted = regex(part)
            for name, inner in self.tree.children(node):
                if wanted.fullmatch(name):
                    yield from self.run(inner, index + 1, (*path, name))
        else:
            name = unescape(part)
            found = self.tree.child(node, name)
            if found is not None:
                yield from self.run(found, index + 1, (*path, name))

    def _deep(
        self, node: N, wanted: Pattern[str], path: Tuple[str, ...], relative: str
    ) -> Iterator[Tuple[Tuple[str, ...], N]]:
        for name, inner in self.tree.children(node):
            below = relative + name
            if wanted.fullmatch(below) and (not self.only_dirs or self.tree.is_dir(inner)):
                yield (*path, name), inner
            if self.tree.is_dir(inner):
                yield from self._deep(inner, wanted, (*path, name), below + "/")


def expand(tree: Tree[N], root: N, pattern: str) -> List[Tuple[Tuple[str, ...], N]]:
    """Find all that an absolute pattern matches, sorted, each once, as path components and node.

    A pattern that ends in ``/`` matches directories only. Raises `ValueError` on too many alternatives.
    """
    found: Dict[Tuple[str, ...], N] = {}
    for plain in expand_braces(pattern):
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        search = _Search(tree, parts, plain.endswith("/"))
        found.update(search.run(root, 0, ()))
    return sorted(found.items(), key=lambda item: item[0])
