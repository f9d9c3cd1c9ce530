"""Named statements."""

from __future__ import annotations

from importlib.resources import files

import pytest

from tesgate.store.queries import load_queries, parse_queries

TEXT = """-- Statements of a test.

-- name: first
-- why: because.
SELECT 1,  -- stays with its line
       2;

-- name: second_one
UPDATE t SET a = 'x;y'
"""


def test_blocks_become_statements() -> None:
    queries = parse_queries(TEXT, source="test.sql")
    assert list(queries) == ["first", "second_one"]
    assert queries["first"] == "SELECT 1,  -- stays with its line\n       2"
    assert queries["second_one"] == "UPDATE t SET a = 'x;y'"
    assert queries.why["first"] == "why: because."


def test_an_unknown_name_is_said_with_its_file() -> None:
    with pytest.raises(KeyError, match=r"test\.sql has no statement named third"):
        parse_queries(TEXT, source="test.sql")["third"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("SELECT 1;\n-- name: a\nSELECT 2", "before its first"),
        ("-- name: a\n-- only a comment\n", "a has no statement"),
        ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "names a twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_queries(text, source="test.sql")


def test_every_file_can_be_read() -> None:
    names = [entry.name for entry in files("tesgate.store").joinpath("sql").iterdir() if entry.name.endswith(".sql")]
    for name in names:
        if name != "schema.sql":
            assert len(load_queries(name.removesuffix(".sql"))) > 0
