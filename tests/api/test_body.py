"""Reading a body: bounds that hold without the rest of the application."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tesgate.api.body import _parse_slowly, parse_json, read_body
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


WORDS = [*'{}[],:"', '"a"', '"b":', '":"', '"\\":', "\\", "\\u0000", "\\ud800", "\\n", "\n", " ", "1", "-0", "1e999"]
PIECES = [*WORDS, "12" * 20, "0.5", "true", "null", "NaN", "Infinity", "\ufeff", "ü", "\x01"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.builds(lambda value, plain: json.dumps(value, ensure_ascii=plain), VALUES, st.booleans()),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def outcome(parse: Any, body: bytes) -> Any:
    try:
        return repr(parse(body))
    except BadRequest as error:
        return error.msg


@given(st.one_of(TEXTS, st.binary(max_size=12)))
@settings(max_examples=150, deadline=None)
@example(b'{"a":1,"a":2}')
@example(b'{"a" :{"b":1},"c":{"b":1}}')
@example(b'{"a":":","b":"\\":"}')
@example(b'[{"a":1, "a":1}, ":", "\\":"]')
@example(b"1" * 5000)
@example(b"1e400")
@example(b'"\xed\xa0\x80"')
def test_the_quick_parser_and_the_slow_one_agree(body: bytes) -> None:
    assert outcome(parse_json, body) == outcome(_parse_slowly, body)
