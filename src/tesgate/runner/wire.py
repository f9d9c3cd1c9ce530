"""JSON to dataclasses and back, for the wire between gateway and runner.

Unknown fields are ignored and absent ones take their default, so that a runner and a gateway one version apart
understand each other (protocol: every message carries ``wire``).
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from typing import Any, Dict, List, Type, TypeVar, Union

__all__ = ["WIRE", "WireError", "decode", "encode"]

WIRE = 1
"""The version of the wire that this program speaks."""

_LARGEST = sys.float_info.max

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not have the shape that its type promises."""


def encode(value: Any) -> Any:
    """Turn a dataclass (or a list or dict of them) into plain JSON values; ``None`` fields are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out: Dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item is not None:
                out[field.name] = encode(item)
        return out
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


@functools.lru_cache(maxsize=None)
def _hints(cls: type) -> Dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(cls: Type[T], value: Any, where: str = "message") -> T:
    """Build `cls` from plain JSON values.

    Raises `WireError` that names the field which is missing or has another type.
    """
    if not isinstance(value, dict):
        raise WireError("%s must be an object" % where)
    hints = _hints(typing.cast(Any, cls))
    kwargs: Dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = "%s.%s" % (where, field.name)
        if field.name in value and value[field.name] is not None:
            kwargs[field.name] = _value(hints[field.name], value[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise WireError("%s is missing" % name)
    return cls(**kwargs)


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is Any:
        return value
    if origin is Union:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return _value(inner[0], value, where)
    if origin in (list, List):
        if not isinstance(value, list):
            raise WireError("%s must be a list" % where)
        (item,) = typing.get_args(hint)
        return [_value(item, part, "%s[%d]" % (where, index)) for index, part in enumerate(value)]
    if origin in (dict, Dict):
        if not isinstance(value, dict):
            raise WireError("%s must be an object" % where)
        _, item = typing.get_args(hint)
        return {str(key): _value(item, part, "%s.%s" % (where, key)) for key, part in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value, where)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not -_LARGEST < value < _LARGEST:  # nor NaN
            raise WireError("%s must be a finite number" % where)
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise WireError("%s must be of type %s" % (where, hint.__name__))
    return value
