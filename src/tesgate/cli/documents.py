"""Task documents as people keep them: JSON or YAML files with ``${NAME}`` in them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tesgate.cli.failure import Failure

__all__ = ["assign", "fill", "pairs", "read_document"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def read_document(source: str) -> dict[str, Any]:
    """Read a task from a file or, as ``-``, from standard input. Raises `Failure`."""
    name = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except OSError as error:
        raise Failure(f"{name}: cannot be read ({error.strerror}); give a JSON or YAML file, or - for stdin.") from None
    except UnicodeDecodeError:
        raise Failure(f"{name}: is not UTF-8 text; save it as UTF-8.") from None
    try:
        document = json.loads(text)
    except ValueError:
        document = _yaml(text, name)
    if not isinstance(document, dict):
        raise Failure(f"{name}: must hold one task, an object with at least `executors`.")
    return document


def _yaml(text: str, name: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or "cannot be understood"
        raise Failure(f"{name}: is neither JSON nor YAML{place}: {what}.") from None


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` words of an option. Raises `Failure`."""
    found = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not sign or not name:
            raise Failure(f"{option} {value!r}: write it as NAME=VALUE.")
        found[name] = text
    return found


def fill(document: dict[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Replace ``${NAME}`` in all texts by the variables that are given.

    Others stay as they are, since commands may be scripts with variables of their own; but a URL with one in it
    cannot be meant. Raises `Failure`.
    """

    def value_of(found: re.Match[str]) -> str:
        return variables.get(found[1], found[0])

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(value_of, value)
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return value

    filled: dict[str, Any] = walk(document)
    for part in ("inputs", "outputs"):
        for item in filled.get(part) or []:
            url = item.get("url") if isinstance(item, dict) else None
            if isinstance(url, str) and (left := _VARIABLE.search(url)):
                raise Failure(f"The document needs a value for {left[1]}; give it with --var {left[1]}=VALUE.")
    return filled


def assign(document: dict[str, Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Set dotted fields, as ``resources.cpu_cores`` or ``executors.0.image``; values are YAML. Raises `Failure`."""
    for path, text in settings.items():
        node: Any = document
        *parents, last = path.split(".")
        for depth, name in enumerate([*parents, last]):
            if isinstance(node, list) and name.isdigit() and int(name) < len(node):
                key: Any = int(name)
            elif isinstance(node, dict):
                key = name
            else:
                raise Failure(f"--set {path}: there is no {name!r} in {'.'.join(parents[:depth]) or 'the task'}.")
            if depth == len(parents):
                node[key] = _yaml(text, f"--set {path}")
            else:
                node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    return document
