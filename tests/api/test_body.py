"""Reading a body: bounds that hold without the rest of the application."""

from __future__ import annotations

from typing import Any

import pytest

from tesgate.api.body import parse_json, read_body
from tesgate.errors import BadRequest, TooLarge


def receiving(*messages: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    return receive, left


def piece(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_reading_stops_at_the_limit() -> None:
    receive, left = receiving(piece(b"12345"), piece(b"67890"), piece(b"never"), piece(b"", False))
    with pytest.raises(TooLarge, match=r"limits\.max_body_bytes"):
        await read_body({}, receive, 9)
    assert len(left) == 2, "it read on"
    receive, _ = receiving(piece(b"12345"), piece(b"6789", False))
    assert await read_body({}, receive, 9) == b"123456789"


async def test_a_client_that_goes_away() -> None:
    receive, _ = receiving(piece(b"123"), {"type": "http.disconnect"})
    with pytest.raises(BadRequest, match="closed"):
        await read_body({}, receive, 9)


def test_depth_is_bounded_before_anything_recurses() -> None:
    for opened, closed in ((b"[", b"]"), (b'{"a":', b"}")):
        assert parse_json(opened * 90 + b"1" + closed * 90)
        for levels in (150, 500, 900, 100_000):
            with pytest.raises(BadRequest, match="nested"):
                parse_json(opened * levels + b"1" + closed * levels)


def test_a_fault_deep_inside_is_named() -> None:
    with pytest.raises(BadRequest, match=r"^a\[1\]\.b: holds a NUL"):
        parse_json(rb'{"a":["x",{"b":"\u0000"}]}')
    with pytest.raises(BadRequest, match=r"'a' stands twice"):
        parse_json(b'{"x":[{"a":1,"a":2}]}')
