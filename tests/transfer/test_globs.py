"""Wildcards, compared with the standard library's glob over real trees and with cases from Nextflow."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tesgate.runner.transfer import globs
from tesgate.runner.transfer.patterns import base_of, expand_braces, has_braces, has_wildcards
from tesgate.runner.transfer.view import View

NAMES = ["a", "b", "ab", "a.txt", ".a", "a-b", "]", "A1", "é", "[a]"]
PIECES = ["a", "b", "*", "?", ".", "[ab]", "[!a]", "[a-z]", "txt", "1", "[]]", "[!]a]", "é", "-"]

trees = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), min_size=1, max_size=8)
components = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
patterns = st.lists(components, min_size=1, max_size=3)


def build(base: Path, tree: list[list[str]]) -> None:
    for parts in tree:
        path = base.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text("x")
        except (FileExistsError, NotADirectoryError):
            continue


def ours(attempt: Path, pattern: str) -> list[str]:
    view = View(attempt_dir=str(attempt), mounts=[])
    return ["/" + "/".join(parts) for parts, _ in globs.expand(view, view.root, pattern)]


def reference(base: Path, pattern: str, recursive: bool = False) -> list[str]:
    found = glob.glob(str(base) + pattern, recursive=recursive)
    return sorted("/" + os.path.relpath(path, base) for path in found)


@settings(max_examples=300, deadline=None)
@given(tree=trees, pattern=patterns)
def test_agrees_with_the_standard_library_on_posix_patterns(tree: list[list[str]], pattern: list[str]) -> None:
    assume(not any(part in (".", "..") or "**" in part for part in pattern))
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        build(base / "rw" / "w", tree)
        text = "/w/" + "/".join(pattern)
        assert sorted(ours(base, text)) == reference(base / "rw", text)


@settings(max_examples=150, deadline=None)
@given(tree=trees, before=st.lists(components, max_size=1), after=components)
def test_agrees_with_the_standard_library_on_double_stars(tree: list[list[str]], before: list[str], after: str) -> None:
    assume(not any(part in (".", "..") or "**" in part for part in [*before, after]))
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        build(base / "rw" / "w", tree)
        text = "/w/" + "/".join([*before, "**", after])
        assert sorted(ours(base, text)) == sorted(set(reference(base / "rw", text, recursive=True)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.txt", "b.txt", "c.csv", "d/e.txt", "d/f/g.txt", ".h/i.txt", "d/.j.txt", "x{1}", "s*r"):
        path = tmp_path / "rw" / "w" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/w/*.{txt,csv}", ["a.txt", "b.txt", "c.csv"]),
        ("/w/{a,c}.*", ["a.txt", "c.csv"]),
        ("/w/{a,d/{e,f/g}}.t*", ["a.txt", "d/e.txt", "d/f/g.txt"]),
        ("/w/**.txt", ["a.txt", "b.txt", "d/e.txt", "d/f/g.txt"]),
        ("/w/**/*.txt", ["a.txt", "b.txt", "d/e.txt", "d/f/g.txt"]),
        ("/w/d/**", ["d/e.txt", "d/f", "d/f/g.txt"]),
        ("/w/*/", ["d"]),
        ("/w/**/", ["d", "d/f"]),
        ("/w/.*/*.txt", [".h/i.txt"]),
        ("/w/**/.j.*", ["d/.j.txt"]),
        ("/w/s\\*?", ["s*r"]),
        ("/w/s\\*\\?", []),
        ("/w/x{1}*", ["x{1}"]),
        ("/w/[[:alpha:]].[[:alpha:]]??", ["a.txt", "b.txt", "c.csv"]),
        ("/w/[^ab].*", ["c.csv"]),
        ("/w/[ab", []),
        ("/w/?.t?t", ["a.txt", "b.txt"]),
        ("//w/./*.csv", ["c.csv"]),
        ("/w/nothing*", []),
        ("/w/a.txt/*", []),
    ],
)
def test_what_a_pattern_matches(tree: Path, pattern: str, expected: list[str]) -> None:
    assert ours(tree, pattern) == ["/w/" + name for name in expected]


def test_what_is_a_pattern() -> None:
    assert [path for path in ("/a*", "/a?", "/[a]", "/x/[!b]c") if not has_wildcards(path)] == []
    assert [path for path in ("/a", "/a\\*", "/[a", "/a]", "/{a,b}", "/[a/b]") if has_wildcards(path)] == []
    assert [path for path in ("/{a,b}", "/a\\{a,b}", "/{a,b") if has_braces(path)] == ["/{a,b}"]


def test_base_is_the_longest_plain_directory() -> None:
    assert base_of("/work/a\\*b/c*/d") == "/work/a*b"
    assert base_of("/*") == "/"
    assert base_of("/work/x/{a,b}*") == "/work/x"


def test_too_many_alternatives_are_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        expand_braces("/" + "{a,b}" * 11)
