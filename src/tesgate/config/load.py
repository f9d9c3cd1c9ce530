"""Reads the configuration; a wrong setting names itself and the fix."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsError,
)

from tesgate.config.schema import ENV_PREFIX, Settings
from tesgate.errors import ConfigError

__all__ = ["check_bind", "is_loopback", "load_settings"]


def load_settings(config: Path | str | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings: `overrides` (nested, from the command line), then ``TESGATE_…`` variables, then the file.

    `config` is the YAML file; without it ``TESGATE_CONFIG`` names one, or there is none. Raises `ConfigError` with one
    line for every setting that is wrong.
    """
    path = config if config is not None else os.environ.get(f"{ENV_PREFIX}CONFIG") or None
    document = _read_file(Path(path)) if path is not None else {}
    _check_environment()

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                EnvSettingsSource(settings_cls),
                InitSettingsSource(settings_cls, init_kwargs=document),
            )

    try:
        settings = Sourced(**dict(overrides or {}))
        if settings.database_url_file is not None:
            settings = Sourced(**{**dict(overrides or {}), "database_url": _secret_url(settings)})
    except ValidationError as error:
        raise ConfigError([_line(item) for item in error.errors(include_url=False)]) from None
    except SettingsError as error:
        raise ConfigError(f"{_variable_of(str(error))}: lists and tables in variables are JSON; {error}") from None
    lines = settings.check()
    if lines:
        raise ConfigError(lines)
    return settings


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, settings: Settings) -> None:
    """Raise `ConfigError` for an open gateway on a network, unless that was asked for in so many words."""
    if settings.auth.mode == "none" and not settings.auth.allow_unauthenticated_network and not is_loopback(host):
        raise ConfigError(
            f"server.host: {host} can be reached from other machines while auth.mode is `none`, so anybody there could "
            "run containers here; set auth.mode to `tokens`, or listen on 127.0.0.1, or, if this is what you want, "
            "pass --allow-unauthenticated-network"
        )


def _secret_url(settings: Settings) -> str:
    """What `database_url_file` holds. Raises `ConfigError`."""
    path = settings.database_url_file
    assert path is not None
    if settings.database_url is not None:
        raise ConfigError("database_url_file: there is a database_url as well; give one of them")
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"database_url_file: {path} cannot be read ({why}); correct the path or its owner") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give another file with --config") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        place = f" in line {where.line + 1}" if where is not None else ""
        what = getattr(error, "problem", None) or "cannot be understood"
        raise ConfigError(f"{path}: is not YAML{place}: {what}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: must hold settings such as `server: {{port: 8000}}`, not a {type(document).__name__}"
        )
    lines = [
        f"{key}: must be a table of settings (you gave {_short(value)}); write `{key}:` and its settings indented below"
        for key, value in document.items()
        # The sources are merged before anything is checked, and a table elsewhere would hide this.
        if key in _groups() and value is not None and not isinstance(value, dict)
    ]
    if lines:
        raise ConfigError(lines)
    # An empty group (`server:` and nothing below it) means: nothing set.
    return {str(key): value for key, value in document.items() if value is not None or key not in _groups()}


def _groups() -> set[str]:
    return {name for name, info in Settings.model_fields.items() if _group(info) is not None}


def _group(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _member(info: FieldInfo) -> type[BaseModel] | None:
    """What a list of groups has in it."""
    kinds = [kind for kind in get_args(info.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return kinds[0] if get_origin(info.annotation) is list and kinds else None


def _check_environment() -> None:
    """A misspelt variable is otherwise passed over in silence.

    Without ``__`` only near misses are faults: other variables have the prefix, too (our command line's, and those that
    Kubernetes makes for a service of this name).
    """
    lines = []
    for name in sorted(os.environ):
        head, nested, _ = name.removeprefix(ENV_PREFIX).partition("__")
        if name.startswith(ENV_PREFIX) and nested and head.lower() not in Settings.model_fields:
            lines.append(
                f"{name}: there is no group {head.lower()!r}{_hint(head.lower(), Settings.model_fields)}; "
                "remove or correct it"
            )
        elif name.startswith(ENV_PREFIX) and not nested and head.lower() not in Settings.model_fields:
            near = difflib.get_close_matches(head.lower(), list(Settings.model_fields), n=1, cutoff=0.85)
            lines += [f"{name}: there is no such setting (did you mean {ENV_PREFIX}{near[0].upper()}?)"] if near else []
    if lines:
        raise ConfigError(lines)


def _variable_of(text: str) -> str:
    parts = text.split('"')
    return f"{ENV_PREFIX}{parts[1].upper()}" if len(parts) > 2 else "environment"


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _find(loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None, type[BaseModel]]:
    """Dotted name of a location, its field, and the model that the last part belongs to."""
    model: type[BaseModel] = Settings
    info: FieldInfo | None = None
    name = ""
    for part in loc:
        if isinstance(part, int):
            name += f"[{part}]"
            continue
        name += f".{part}" if name else part
        if part in model.model_fields:
            info = model.model_fields[part]
            model = _group(info) or _member(info) or model
    return name, info, model


def _line(item: ErrorDetails) -> str:
    name, info, model = _find(item["loc"])
    if item["type"] == "extra_forbidden":
        return (
            f"{name}: there is no such setting{_hint(str(item['loc'][-1]), model.model_fields)}; remove or correct it"
        )
    extra = info.json_schema_extra if info is not None and isinstance(info.json_schema_extra, dict) else {}
    # A table in a wrong place may have secrets in it.
    plain = isinstance(item["input"], str | int | float)
    given = f" (you gave {_short(item['input'])})" if plain and not extra.get("secret") else ""
    ways = [str(extra["flag"])] if "flag" in extra else []
    if all(isinstance(part, str) for part in item["loc"]):
        ways.append(ENV_PREFIX + "__".join(str(part) for part in item["loc"]).upper())
    ways.append(f"{name} in the file")
    return (
        f"{name}: {_words(item, info)}{given}; set it with {', '.join(ways[:-1])}{' or ' if ways[1:] else ''}{ways[-1]}"
    )


def _bounds(info: FieldInfo | None) -> tuple[Any, Any]:
    low = high = None
    for rule in info.metadata if info is not None else ():
        low = getattr(rule, "ge", low)
        high = getattr(rule, "le", high)
    return low, high


def _words(item: ErrorDetails, info: FieldInfo | None) -> str:
    context = item.get("ctx", {})
    low, high = _bounds(info)
    match item["type"]:
        case "greater_than_equal" | "less_than_equal" if low is not None and high is not None:
            return f"must be between {low} and {high}"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "greater_than":
            return f"must be more than {context['gt']}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "missing":
            return "is missing"
        case "int_parsing" | "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_parsing" | "float_type" | "finite_number":
            return "must be a number"
        case "bool_parsing" | "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be text"
        case "list_type":
            return "must be a list"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a table of settings"
        case "string_pattern_mismatch":
            return f"must look like {context['pattern']}"
        case "value_error":
            return str(context["error"])
        case _:
            return item["msg"][:1].lower() + item["msg"][1:]


def _short(value: Any) -> str:
    """For a message: without a password or a signature that an address may have."""
    text = re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@", r"\1***@", str(value), flags=re.DOTALL)
    text = re.sub(r"([:/][^?]*)\?.*", r"\1?***", text, flags=re.DOTALL)
    return text if len(text) <= 60 else text[:57] + "..."
