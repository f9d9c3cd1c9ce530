"""The reference page and the JSON schema of the configuration, made from the settings themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tesgate.config.schema import ENV_PREFIX, Settings

__all__ = ["reference_page", "settings_schema"]

_HEAD = """# Configuration

<!-- Made by tools/export_config.py from src/tesgate/config; do not edit. -->

`tesgate serve --config tesgate.yaml` reads a YAML file (`TESGATE_CONFIG` names one, too). Each setting can also come
from an environment variable, and some from the command line. The first one wins: command line, environment, file,
default. Lists in variables are JSON or words with commas between them; tables are JSON. An unknown or wrong setting
stops the start, with its name and what to do.

```yaml
server:
  port: 8080
auth:
  mode: tokens
  tokens_file: /etc/tesgate/tokens
file_roots:
  - {name: data, path: /data, writable: true}
```
"""


def settings_schema() -> dict[str, Any]:
    """JSON schema of the configuration file."""
    schema = Settings.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "tesgate configuration"
    _strip(schema)
    return schema


def _strip(node: Any) -> None:
    """Leave out what only our own reference page uses."""
    if isinstance(node, dict):
        for word in ("flag", "secret", "default_text"):
            if isinstance(node.get(word), (str, bool)):
                del node[word]
        for value in node.values():
            _strip(value)
    elif isinstance(node, list):
        for value in node:
            _strip(value)


def reference_page() -> str:
    """Markdown of ``docs/configuration.md``."""
    top: list[str] = []
    groups: list[str] = []
    ranges = _ranges(Settings)
    for name, info in Settings.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            groups += ["", f"## {name}", "", kind.__doc__ or "", "", *_table(name, kind), *_lists(name, kind)]
        else:
            top.append(_row("", name, info, ranges[name]))
    head = ["", "## Top level", "", *_HEADER, *top, *_lists("", Settings)]
    return "\n".join([_HEAD.rstrip(), *head, *groups]) + "\n"


_HEADER = ["| setting | default | meaning | variable, option |", "|---|---|---|---|"]


def _lists(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """A table for each setting that is a list of tables, and for those inside of it."""
    for name, info in model.model_fields.items():
        kind = next(iter(get_args(info.annotation)), None) if get_origin(info.annotation) is list else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            path = f"{prefix}.{name}" if prefix else name
            yield from ("", f"### {path}", "", kind.__doc__ or "", "", *_table(f"{path}[]", kind))
            yield from _lists(f"{path}[]", kind)


def _table(prefix: str, model: type[BaseModel]) -> list[str]:
    ranges = _ranges(model)
    return [*_HEADER, *(_row(prefix, name, info, ranges[name]) for name, info in model.model_fields.items())]


def _row(prefix: str, name: str, info: FieldInfo, range_: str) -> str:
    path = f"{prefix}.{name}" if prefix else name
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    ways = [] if "[]" in path else [f"`{ENV_PREFIX}{path.replace('.', '__').upper()}`"]
    if "flag" in extra:
        ways.append(f"`{extra['flag']}`")
    meaning = (info.description or "").replace("|", "\\|")
    words = f"{meaning} {range_}".strip()
    return f"| `{path}` | {_default(info, extra)} | {words} | {', '.join(ways)} |"


def _default(info: FieldInfo, extra: dict[str, Any]) -> str:
    if "default_text" in extra:
        return f"`{extra['default_text']}`"
    if info.default is PydanticUndefined:
        return "required"
    value = str(info.default) if isinstance(info.default, Path) else info.default
    return f"`{json.dumps(value)}`"


def _ranges(model: type[BaseModel]) -> dict[str, str]:
    """Range and choices of each setting, from the JSON schema (which knows about them whatever the type's form)."""
    return {name: _in_words(schema) for name, schema in model.model_json_schema()["properties"].items()}


def _in_words(schema: dict[str, Any]) -> str:
    found: list[str] = []
    for part in [schema, *schema.get("anyOf", [])]:
        if "enum" in part:
            found.append("One of " + ", ".join(f"`{value}`" for value in part["enum"]) + ".")
        low, above = part.get("minimum"), part.get("exclusiveMinimum")
        high = part.get("maximum")
        if low is not None and high is not None:
            found.append(f"{low} to {high}.")
        elif low is not None:
            found.append(f"At least {low}.")
        elif above is not None:
            found.append(f"More than {above}." if high is None else f"More than {above}, at most {high}.")
        elif high is not None:
            found.append(f"At most {high}.")
    return " ".join(found)
