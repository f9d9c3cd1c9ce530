"""JSON to dataclasses and back, for the wire between gateway and runner.

Unknown fields are ignored and absent ones take their default, so that a runner and a gateway one version apart
understand each other (protocol: every message carries ``wire``).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from typing import Any, Callable, Dict, List, Optional, Tuple, Type, TypeVar, Union

__all__ = ["WIRE", "WireError", "decode", "encode"]

WIRE = 1
"""The version of the wire that this program speaks."""

_LARGEST = sys.float_info.max

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not have the shape that its type promises."""


_PLAIN = frozenset((str, int, float, bool, type(None)))


class _Unfit(Exception):
    """A value that does not fit; `where` is put together on the way out, since it is hardly ever needed."""

    def __init__(self, said: str, where: str = "") -> None:
        super().__init__(said)
        self.said, self.where = said, where


def encode(value: Any) -> Any:
    """Turn a dataclass (or a list or dict of them) into plain JSON values; ``None`` fields are left out."""
    kind: Any = type(value)
    if kind in _PLAIN:
        return value
    if kind is list or kind is tuple:
        return [encode(item) for item in value]
    if kind is dict:
        return {str(key): encode(item) for key, item in value.items()}
    names = _names(kind)
    if names is None:
        return value
    out: Dict[str, Any] = {}
    for name in names:
        item = getattr(value, name)
        if item is not None:
            out[name] = item if type(item) in _PLAIN else encode(item)
    return out


@functools.lru_cache(maxsize=None)
def _names(kind: type) -> Optional[Tuple[str, ...]]:
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def decode(cls: Type[T], value: Any, where: str = "message") -> T:
    """Build `cls` from plain JSON values.

    Raises `WireError` that names the field which is missing or has another type.
    """
    try:
        return typing.cast(T, _reader(typing.cast(Any, cls))(value))
    except _Unfit as unfit:
        raise WireError("%s%s %s" % (where, unfit.where, unfit.said)) from None


@functools.lru_cache(maxsize=None)
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what reads a value of this type; made once for each type, since messages are many and types are few."""
    if hint is Any:
        return _anything
    origin = typing.get_origin(hint)
    if origin is Union:
        return _reader(next(arg for arg in typing.get_args(hint) if arg is not type(None)))
    if origin in (list, List):
        return _list_reader(_reader(typing.get_args(hint)[0]))
    if origin in (dict, Dict):
        return _dict_reader(_reader(typing.get_args(hint)[1]))
    if dataclasses.is_dataclass(hint):
        return _object_reader(hint)
    return _scalar_reader(hint)


def _anything(value: Any) -> Any:
    return value


def _scalar_reader(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            if not -_LARGEST < value < _LARGEST:  # nor NaN
                raise _Unfit("must be a finite number")
            return float(value)
        if type(value) is kind:
            return value
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _Unfit("must be of type %s" % kind.__name__)
        return value

    return read


def _list_reader(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _Unfit("must be a list")
        out: List[Any] = []
        for part in value:
            try:
                out.append(item(part))
            except _Unfit as unfit:
                raise _Unfit(unfit.said, "[%d]%s" % (len(out), unfit.where)) from None
        return out

    return read


def _dict_reader(item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Unfit("must be an object")
        out: Dict[str, Any] = {}
        for key, part in value.items():
            try:
                out[str(key)] = item(part)
            except _Unfit as unfit:
                raise _Unfit(unfit.said, ".%s%s" % (key, unfit.where)) from None
        return out

    return read


def _object_reader(cls: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    fields = [
        (
            field.name,
            _reader(hints[field.name]),
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(cls)
    ]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Unfit("must be an object")
        found: Dict[str, Any] = {}
        for name, reader, required in fields:
            part = value.get(name)
            if part is not None:
                try:
                    found[name] = reader(part)
                except _Unfit as unfit:
                    raise _Unfit(unfit.said, ".%s%s" % (name, unfit.where)) from None
            elif required:
                raise _Unfit("is missing", "." + name)
        return cls(**found)

    return read
