"""The language of output patterns: POSIX ``* ? []``, and ``**`` and ``{a,b}`` beyond it; and whether a path matches.

A wildcard never matches ``/`` nor, at the beginning of a component, a dot; ``**`` matches across ``/``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, FrozenSet, List, Optional, Pattern, Set, Tuple

__all__ = ["Matcher", "base_of", "expand_braces", "has_braces", "has_wildcards", "unescape"]

MAX_ALTERNATIVES = 1024
MAX_BRACKET = 256
"""Characters of one bracket expression; a longer one is plain text."""
MAX_WILDCARDS = 256
"""Of one alternative."""
_KNOWN = 1_000
"""Steps of a matcher that are remembered."""
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
_NAMED = re.compile(r"\[:([a-z]+):\]")


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
    open_braces: List[int] = []
    closed: Dict[int, int] = {}
    index = 0
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == "{":
            open_braces.append(index)
        elif text[index] == "}" and open_braces:
            closed[open_braces.pop()] = index
        index += 1
    if not closed:
        return None
    start = min(closed)
    options = _alternatives(text[start + 1 : closed[start]])
    if len(options) == 1:
        options = [*options, "\\{" + options[0] + "\\}"]
    return start, closed[start], options


def _alternatives(text: str) -> List[str]:
    """Split what stands between two braces at its own commas."""
    depth, index, begin = 0, 0, 0
    options: List[str] = []
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
        elif char == "," and depth == 0:
            options.append(text[begin:index])
            begin = index + 1
        index += 1
    return [*options, text[begin:]]


def _bracket(text: str, start: int) -> Optional[Tuple[int, str]]:
    """Translate the bracket expression that begins at `start`: index of its ``]`` and a regular expression."""
    index, limit = start + 1, min(len(text), start + MAX_BRACKET)
    if text.find("]", start + 2, limit) < 0:
        return None
    negated = text[index : index + 1] in ("!", "^")
    if negated:
        index += 1
    first = True
    items: List[str] = []
    # A bracket without its end is found out again for each of its characters: that must not grow with the square.
    while index < limit:
        char = text[index]
        if char == "]" and not first:
            body = "".join(items)
            if not body:
                return index, "[^/]" if negated else "(?!)"
            return index, ("[^/%s]" if negated else "(?!/)[%s]") % body
        first = False
        named = _NAMED.match(text, index)
        if named and named.group(1) in _CLASSES:
            items.append(_CLASSES[named.group(1)])
            index = named.end()
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


@dataclass(frozen=True)
class _Token:
    kind: str
    """``char`` (itself), ``set`` (one of a bracket expression), ``any`` (?), ``star`` (*), ``deep`` (**) or
    ``directories`` (**/ at the beginning of a component: any number of them)."""
    char: str = ""
    one: Optional[Pattern[str]] = None
    after: bool = False
    """It follows a star: a dot at the beginning of a component is then not written out by the pattern."""


def _tokens(pattern: str) -> List[_Token]:
    out: List[_Token] = []
    index, start, after = 0, True, False
    while index < len(pattern):
        char = pattern[index]
        found = _bracket(pattern, index) if char == "[" else None
        if char == "*":
            end = index
            while pattern[end : end + 1] == "*":
                end += 1
            deep = end - index > 1
            if deep and start and pattern[end : end + 1] == "/":
                out.append(_Token("directories"))
                index = end + 1
                continue
            out.append(_Token("deep" if deep else "star"))
            index, start, after = end, False, True
            continue
        if char == "?":
            out.append(_Token("any"))
            index += 1
        elif found is not None:
            out.append(_Token("set", one=re.compile(found[1])))
            index = found[0] + 1
        else:
            char, index = _quoted(pattern, index)
            out.append(_Token("char", char, after=after))
        start, after = char == "/", False
    return out


class Matcher:
    """A pattern without braces, for `fullmatch` on relative paths. Raises `ValueError` on too many wildcards.

    Not a regular expression: that goes back at every star, for hours where a task chose both names and pattern, and
    `re` holds the interpreter all the while, so that one task would stop the whole agent. Here all places that the text
    so far can have reached in the pattern are carried along, once a character.
    """

    def __init__(self, pattern: str) -> None:
        self._tokens = _tokens(pattern)
        if sum(token.kind != "char" for token in self._tokens) > MAX_WILDCARDS:
            raise ValueError("the pattern has more than %d wildcards" % MAX_WILDCARDS)
        self._first = self._closed({0})
        self._known: Dict[Tuple[FrozenSet[int], str, bool], FrozenSet[int]] = {}

    def fullmatch(self, text: str) -> bool:
        """Whether the whole text is what the pattern means."""
        places, start = self._first, True
        for char in text:
            key = (places, char, start)
            following = self._known.get(key)
            if following is None:
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                following = self._known[key] = self._closed(self._step(places, char, start))
            if not following:
                return False
            places, start = following, char == "/"
        return 2 * len(self._tokens) in places

    def _step(self, places: FrozenSet[int], char: str, start: bool) -> Set[int]:
        """Places are counted twofold: the odd one is inside a directory that a ``**/`` takes."""
        following: Set[int] = set()
        for place in places:
            if place == 2 * len(self._tokens):
                continue
            token = self._tokens[place // 2]
            if place % 2:
                following.add(place if char != "/" else place - 1)
            elif char == "." and start and (token.kind != "char" or token.after):
                continue  # a hidden name is only matched by a dot that is written out
            elif token.kind == "char":
                if char == token.char:
                    following.add(place + 2)
            elif token.kind == "deep":
                following.add(place)
            elif char == "/":
                continue
            elif token.kind == "star":
                following.add(place)
            elif token.kind == "directories":
                following.add(place + 1)
            elif token.one is None or token.one.match(char):
                following.add(place + 2)
        return following

    def _closed(self, places: Set[int]) -> FrozenSet[int]:
        """With all that can be reached without a character."""
        for first in list(places):
            place = first
            while place % 2 == 0 and place < 2 * len(self._tokens):
                if self._tokens[place // 2].kind not in ("star", "deep", "directories"):
                    break
                place += 2
                places.add(place)
        return frozenset(places)
