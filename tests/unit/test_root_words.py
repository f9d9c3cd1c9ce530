"""File roots as words of the command line, of the gateway and of an agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tesgate.cli.roots import file_roots
from tesgate.runner.__main__ import _root
from tesgate.runner.report import Root


@pytest.mark.parametrize(
    ("words", "writable", "mode"),
    [
        ("", True, "copy"),
        (":rw", True, "copy"),
        (":ro", False, "copy"),
        (":mount", True, "mount"),
        (":ro:mount", False, "mount"),
    ],
)
def test_words_behind_the_path(tmp_path: Path, words: str, writable: bool, mode: str) -> None:
    (root,) = file_roots([f"data={tmp_path}{words}"])
    assert root == {"name": "data", "path": str(tmp_path), "writable": writable, "mode": mode}
    assert _root(f"data={tmp_path}{words}") == Root("data", str(tmp_path), writable, mode)
