"""Directories that sandboxes see, as words of an agent's command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from tesgate.runner.__main__ import _directory


@pytest.mark.parametrize(
    ("text", "path"), [("/usr/lib/../lib/", "/usr/lib"), ("//usr", "/usr"), ("/usr/./lib", "/usr/lib")]
)
def test_a_path_is_what_sandboxes_will_have(text: str, path: str) -> None:
    assert _directory(text) == path


@pytest.mark.parametrize("text", ["/etc", "/etc/ssl", "/proc", "/dev/", "/tmp", "//tmp", "/usr/../tmp"])
def test_what_a_sandbox_would_hide(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"would be hidden by .*: move it elsewhere, such as below /opt"):
        _directory(text)


@pytest.mark.parametrize("text", ["usr", "", "/no/such/directory", "/etc/passwd", "/", "//", "/usr/.."])
def test_what_is_no_directory_of_software(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="must"):
        _directory(text)


def test_dots_behind_a_link_lead_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a" / "inner").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a" / "inner")
    with pytest.raises(ArgumentTypeError, match=r"without \.\."):
        _directory(f"{tmp_path}/b/link/..")
