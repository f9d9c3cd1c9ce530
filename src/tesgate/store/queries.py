"""Named SQL statements from ``store/sql/*.sql``.

A file is a sequence of blocks: ``-- name: some_name``, comment lines that say why, then one statement. The comments are
not sent to the server.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

__all__ = ["Queries", "load_queries", "parse_queries"]

_NAME = re.compile(r"^-- name: ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)


class Queries(Mapping[str, str]):
    """The statements of one file by name; `why` holds their comments."""

    def __init__(self, source: str, statements: Mapping[str, str], why: Mapping[str, str]) -> None:
        self._source = source
        self._statements = dict(statements)
        self.why = dict(why)

    def __getitem__(self, name: str) -> str:
        try:
            return self._statements[name]
        except KeyError:
            raise KeyError(f"{self._source} has no statement named {name}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)


def parse_queries(text: str, *, source: str) -> Queries:
    """Split `text` into its blocks. Raises `ValueError` for text before the first, an empty block or a name twice."""
    first, *rest = _NAME.split(text)
    if any(line.strip() and not line.startswith("--") for line in first.splitlines()):
        raise ValueError(f"{source} has SQL before its first '-- name:'")
    statements: dict[str, str] = {}
    why: dict[str, str] = {}
    for name, block in zip(rest[::2], rest[1::2], strict=True):
        if name in statements:
            raise ValueError(f"{source} names {name} twice")
        lines = block.splitlines()
        comments = [line.strip()[2:].strip() for line in lines if line.lstrip().startswith("--")]
        code = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("--")]
        statement = "\n".join(code).strip().removesuffix(";").rstrip()
        if not statement:
            raise ValueError(f"{source}: {name} has no statement")
        statements[name], why[name] = statement, " ".join(comments)
    return Queries(source, statements, why)


@functools.cache
def load_queries(name: str) -> Queries:
    """The statements of ``store/sql/<name>.sql``, parsed once."""
    source = f"{name}.sql"
    return parse_queries(files("tesgate.store").joinpath("sql", source).read_text("utf-8"), source=source)
