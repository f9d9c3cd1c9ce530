"""Reads a JSON body: bounded, strict, and never a 500 for what a client sent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json
from starlette.types import Receive, Scope

from tesgate.errors import BadRequest, TooLarge, UnsupportedMediaType

__all__ = ["check_media_type", "headers_of", "parse_json", "read_body", "storable", "too_large"]

_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_MAX_DEPTH = 100
_KEY = re.compile(rb'"[ \t\r\n]*:')


def headers_of(scope: Scope) -> dict[bytes, bytes]:
    """Headers by lower-case name; of a repeated one the last."""
    return dict(scope["headers"])


def check_media_type(headers: Mapping[bytes, bytes]) -> None:
    """Raise `UnsupportedMediaType` for a body that says it is something else than JSON, or packed."""
    packed = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if packed not in ("identity", ""):
        raise UnsupportedMediaType(f"The body is packed ({packed[:80]}), which is not read here; send it as it is.")
    kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(
            f"The body is {kind[:80]}, but this takes JSON; send the header `Content-Type: application/json`."
        )


def too_large(limit: int) -> TooLarge:
    """The refusal of a body above the limit."""
    return TooLarge(
        f"The body has more than {limit} bytes, the most that is accepted here (limits.max_body_bytes). "
        "Put large contents into files and give their URL."
    )


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read the whole body; raises `TooLarge` as soon as it passes `limit` bytes, without reading on."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("The connection was closed before the body was complete.")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunks[0]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadRequest(f"The body is ambiguous: {double[:80]!r} stands twice in one object; keep one of them.")
    return found


def _constant(word: str) -> Any:
    raise BadRequest(f"The body holds {word}, which JSON does not have; write a number.")


def parse_json(body: bytes) -> Any:
    """Decode a body. Raises `BadRequest` for everything that is not JSON, and for texts that cannot be stored."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        return _parse_slowly(body)
    # That parser keeps the last of double keys. No object has more keys than the text has quotes before a colon, so
    # where the numbers agree none is double; where a text holds such a colon, the slow parser decides.
    if _count_keys(value) != len(_KEY.findall(body)):
        return _parse_slowly(body)
    if _SUSPECT.search(body):
        _check_texts(value)
    return value


def _parse_slowly(body: bytes) -> Any:
    """The same with a sentence for what is wrong."""
    if not body.strip():
        raise BadRequest("The body is empty; send a JSON object.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: byte {error.start} cannot be read; encode it as UTF-8.") from None
    try:
        value = json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply; a task needs no more than a few levels.") from None
    except ValueError:
        # A number with thousands of digits.
        raise BadRequest("The body holds a number that is too long; correct it.") from None
    _count_keys(value)
    if _SUSPECT.search(body):
        _check_texts(value)
    return value


def storable(body: bytes, value: Any) -> Any:
    """What `body` was decoded to, with U+FFFD for NUL and half surrogates: for messages that must not be refused."""
    return _cleaned(value) if _SUSPECT.search(body) else value


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def _count_keys(value: Any) -> int:
    """How many keys all objects have together. Depth is bounded here, so that nothing later has to fear a recursion."""
    level = [value]
    keys = 0
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                keys += len(item)
                below += [part for part in item.values() if type(part) is dict or type(part) is list]
            elif type(item) is list:
                below += [part for part in item if type(part) is dict or type(part) is list]
        if not below:
            return keys
        level = below
    raise BadRequest(f"The body is nested more than {_MAX_DEPTH} levels deep; a task needs no more than a few.")


def _check_texts(value: Any, where: str = "") -> None:
    """PostgreSQL holds neither NUL nor half of a surrogate pair, and no command line does."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadRequest(f"{where or 'body'}: holds a NUL character (\\u0000); remove it")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise BadRequest(f"{where or 'body'}: holds half of a surrogate pair (\\ud800 to \\udfff); correct it")
    elif isinstance(value, dict):
        for key, item in value.items():
            name = key.encode("ascii", "backslashreplace").decode()[:80].replace("\0", "\\0")
            _check_texts(key, f"{where}.{name}" if where else name)
            _check_texts(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_texts(item, f"{where}[{index}]")
