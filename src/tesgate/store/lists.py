"""The statement of a list of tasks: made for its conditions, so that each list touches no more than it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tesgate.model.caller import Caller
from tesgate.model.records import ListQuery

__all__ = ["behind_prefix", "list_statement"]

INDEXED_NAME = 64
"""Characters of a name that its index has (schema.sql: task_name)."""
LAST_CHARACTER = 0x10FFFF


def behind_prefix(prefix: str) -> str | None:
    """The first text behind all that begin with `prefix`, in the order of code points; None: there is none."""
    for length in range(len(prefix), 0, -1):
        number = ord(prefix[length - 1]) + 1
        if number <= LAST_CHARACTER:
            # No text has surrogates.
            return prefix[: length - 1] + chr(0xE000 if 0xD800 <= number <= 0xDFFF else number)
    return None


def list_statement(caller: Caller, query: ListQuery, spans: Sequence[str] = ()) -> tuple[str, list[Any]]:
    """A list's statement: fixed fragments and numbered arguments, only as many as the query has conditions.

    With `spans` (ids, newest first) it is one query behind the other, each for the ids from a span's begin on: whether
    a tag or a prefix is frequent is then judged for each span by itself, and nothing is read behind the one that fills
    the page. Over all at once PostgreSQL would take one way for all, and walk through years to find what is old.
    """
    arguments: list[Any] = []

    def argument(value: Any) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    conditions: list[str] = []
    if not caller.admin:
        mine = f"owner = {argument(caller.subject)}"
        if caller.groups:
            mine = f'({mine} OR "group" = ANY({argument(list(caller.groups))}::text[]))'
        conditions.append(mine)
    if query.after is not None:
        conditions.append(f"id < {argument(query.after)}")
    states = [f"state = {argument(state)}" for state in query.states]
    if query.name_prefix:
        beginning = query.name_prefix[:INDEXED_NAME]
        conditions.append(f"left(name, {INDEXED_NAME}) >= {argument(beginning)}")
        if (end := behind_prefix(beginning)) is not None:
            conditions.append(f"left(name, {INDEXED_NAME}) < {argument(end)}")
        if beginning != query.name_prefix:
            conditions.append(f"starts_with(name, {argument(query.name_prefix)})")
    exact = {key: value for key, value in query.tags if value is not None}
    for key, value in query.tags:
        if value is None:
            conditions.append(f"tags ? {argument(key)}")
        elif exact[key] != value:
            conditions.append("false")  # one key cannot have two values
    if exact:
        conditions.append(f"tags @> {argument(exact)}::jsonb")
    limit = argument(query.limit)
    parts = []
    spans = [span for span in spans if query.after is None or span < query.after]
    for newer, span in zip([None, *spans], [*spans, None], strict=True):
        place = [f"id >= {argument(span)}"] if span is not None else []
        if newer is not None:
            place.append(f"id < {argument(newer)}")
        parts.append(f"({_page([*conditions, *place], states, limit)})")
    return f"{' UNION ALL '.join(parts)} LIMIT {limit}" if spans else parts[0][1:-1], arguments


def _page(conditions: Sequence[str], states: Sequence[str], limit: str) -> str:
    """One page's query. Of several states it is one query each, merged: each has an index in the right order.

    With all states in one condition PostgreSQL would read every task that is in them, and sort.
    """

    def page(*state: str) -> str:
        where = " AND ".join([*conditions, *state]) or "true"
        return f"SELECT id, state FROM task WHERE {where} ORDER BY id DESC LIMIT {limit}"  # noqa: S608

    if len(states) < 2:
        return page(*states)
    merged = " UNION ALL ".join(f"({page(state)})" for state in states)
    return f"SELECT id, state FROM ({merged}) AS pages ORDER BY id DESC LIMIT {limit}"  # noqa: S608
