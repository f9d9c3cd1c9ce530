"""From the body of a POST to the task that is kept: checked, freed of nulls, `type` filled in. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from tesgate.config import Defaults, Limits
from tesgate.errors import BadRequest
from tesgate.ga4gh import tes
from tesgate.model.container_paths import MountError, has_wildcards, normal_path
from tesgate.model.mounts import check_paths
from tesgate.model.records import Resources
from tesgate.model.wishes import WishError, gpus_of, wish_of

__all__ = ["Accepted", "IntakeRules", "accept"]

_TASK = TypeAdapter(tes.Task)
_SPACES = re.compile(r"[\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """What this deployment accepts."""

    limits: Limits
    defaults: Defaults
    backend_parameters: frozenset[str] = frozenset()
    """Keys of ``resources.backend_parameters`` that a backend here understands."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that can be carried out, as far as one can see."""

    document: dict[str, Any]
    tags: dict[str, str]
    need: Resources
    notes: tuple[str, ...]
    pool: str | None = None
    """The only one that it may go to."""


def accept(body: Any, rules: IntakeRules) -> Accepted:
    """Check `body` (decoded JSON) and put it into the form that is kept.

    Raises `BadRequest`, whose message begins with the path of the field and says what to do.
    """
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object: a TES task.")
    limits = rules.limits
    for name in ("executors", "inputs", "outputs", "volumes", "tags"):
        # Before anything looks at each of them.
        if isinstance(items := body.get(name), list | dict):
            _count(name, items, getattr(limits, f"max_{name}"))
    try:
        task = _TASK.validate_python({key: value for key, value in body.items() if key not in tes.READ_ONLY})
    except ValidationError as error:
        raise BadRequest(_sentences(error.errors(include_url=False))) from None
    if not task.executors:
        raise BadRequest("executors: must hold at least one executor; add one with an image and a command")
    _size("name", task.name or "", limits.max_name_bytes)
    for index, executor in enumerate(task.executors):
        _executor(f"executors[{index}]", executor, limits)
    _inputs(task.inputs or (), limits)
    for index, output in enumerate(task.outputs or ()):
        _output(f"outputs[{index}]", output, limits)
    for index, volume in enumerate(task.volumes or ()):
        _path(f"volumes[{index}]", volume, limits)
    if task.tags is not None:
        for key in task.tags:
            _size(f"tags.{key[:40]}", key, limits.max_name_bytes)
        task.tags = {key: value or "" for key, value in task.tags.items()}
    notes = _resources(task.resources, rules)
    document: dict[str, Any] = task.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    for key in ("cpu_cores", "ram_gb", "disk_gb"):
        # The response schema says integer for cpu_cores; whole numbers read better everywhere.
        if key in document.get("resources", ()) and document["resources"][key].is_integer():
            document["resources"][key] = int(document["resources"][key])
    try:
        check_paths(document)
    except MountError as error:
        raise BadRequest(str(error)) from None
    tags: dict[str, str] = document.get("tags", {})
    resources = document.get("resources") or {}
    try:
        wish, gpus = wish_of(document), gpus_of(resources)
    except WishError as error:
        raise BadRequest(str(error)) from None
    return Accepted(document, tags, _need(task.resources, rules.defaults, gpus), notes, wish.pool)


def _count(where: str, items: Sized, limit: int) -> None:
    size = len(items)
    if size > limit:
        raise BadRequest(f"{where}: holds {size} entries, at most {limit} are accepted here; split the task")


def _size(where: str, text: str, limit: int) -> None:
    # A character is at most four bytes: most texts need no encoding to be seen to fit.
    if len(text) * 4 > limit and len(text.encode()) > limit:
        raise BadRequest(f"{where}: is longer than the {limit} bytes that are accepted here; shorten it")


def _url(where: str, url: str) -> None:
    if "%00" in url and url[:5].lower() == "file:":
        raise BadRequest(f"{where}: holds a NUL character (%00), which no name of a file can have; remove it")


def _path(where: str, path: str, limits: Limits) -> str:
    _size(where, path, limits.max_path_bytes)
    try:
        return normal_path(path, where)
    except MountError as error:
        raise BadRequest(f"{error}") from None


def _executor(where: str, executor: tes.Executor, limits: Limits) -> None:
    if not executor.image:
        raise BadRequest(f"{where}.image: must not be empty; name a container image such as 'ubuntu:24.04'")
    _size(f"{where}.image", executor.image, limits.max_name_bytes)
    if _SPACES.search(executor.image) or executor.image.startswith("-"):
        raise BadRequest(f"{where}.image: must be the name of one image, without spaces, options or control characters")
    if not executor.command or not executor.command[0]:
        raise BadRequest(f"{where}.command: must begin with a program; give it as a list such as ['echo', 'hello']")
    size = sum(len(word.encode()) + 9 for word in executor.command)
    for name in ("workdir", "stdin", "stdout", "stderr"):
        path = getattr(executor, name)
        if path is not None:
            _path(f"{where}.{name}", path, limits)
    if executor.env is not None:
        _count(f"{where}.env", executor.env, limits.max_env)
        for key, value in executor.env.items():
            if not key or "=" in key or "\0" in key:
                raise BadRequest(
                    f"{where}.env: {key[:40]!r} is no name of a variable; it must not be empty nor hold '='"
                )
            size += len(key.encode()) + len((value or "").encode()) + 10
        executor.env = {key: value for key, value in executor.env.items() if value is not None}
    if size > limits.max_command_bytes:
        raise BadRequest(
            f"{where}.command: has {size} bytes together with env, at most {limits.max_command_bytes} can be started; "
            "put long texts into an input with content"
        )


def _inputs(inputs: Iterable[tes.Input], limits: Limits) -> None:
    seen: dict[str, tuple[int, tes.Input]] = {}
    for index, item in enumerate(inputs):
        where = f"inputs[{index}]"
        path = _path(f"{where}.path", item.path, limits)
        if item.type is None:
            item.type = tes.FileType.FILE
        if item.url == "":
            item.url = None
        if item.content == "" and item.url is not None:
            # "If content is not empty, url must be ignored": an empty one beside a url says nothing.
            item.content = None
        first, other = seen.setdefault(path, (index, item))
        # cwl-tes names a file once for each part of a workflow that wants it there; it is staged once.
        if other is not item and (other.url, other.content, other.type) != (item.url, item.content, item.type):
            raise BadRequest(f"{where}.path: {path!r} is also the path of inputs[{first}]; give each its own")
        if item.content is None:
            if item.url is None:
                raise BadRequest(f"{where}.url: is missing; give the url of the file, or its content")
            _url(f"{where}.url", item.url)
            continue
        if item.type is tes.FileType.DIRECTORY:
            raise BadRequest(f"{where}.content: is the content of a file; leave type away or say FILE")
        _size(f"{where}.content", item.content, limits.max_content_bytes)


def _output(where: str, output: tes.Output, limits: Limits) -> None:
    if not output.url:
        raise BadRequest(f"{where}.url: must not be empty; say where to store the output")
    _url(f"{where}.url", output.url)
    _path(f"{where}.path", output.path, limits)
    if output.type is None:
        output.type = tes.FileType.FILE
    if not has_wildcards(output.path):
        return
    if not output.path_prefix:
        raise BadRequest(
            f"{where}.path_prefix: is required because path has wildcards; give the leading directory of path that is "
            "left out of the names below url"
        )
    prefix = _path(f"{where}.path_prefix", output.path_prefix, limits)
    if not normal_path(output.path, where).startswith(prefix):
        raise BadRequest(f"{where}.path_prefix: {output.path_prefix!r} is not the beginning of path {output.path!r}")


def _resources(resources: tes.Resources | None, rules: IntakeRules) -> tuple[str, ...]:
    if resources is None:
        return ()
    limits = rules.limits
    for name, limit in (
        ("cpu_cores", limits.max_cpu_cores),
        ("ram_gb", limits.max_ram_gb),
        ("disk_gb", limits.max_disk_gb),
    ):
        value = getattr(resources, name)
        if value is None:
            continue
        if not math.isfinite(value) or not 0 < value <= limit:
            raise BadRequest(
                f"resources.{name}: must be more than 0 and at most {limit:g}; correct it or leave it away"
            )
    return _backend_parameters(resources, rules.backend_parameters)


def _backend_parameters(resources: tes.Resources, supported: frozenset[str]) -> tuple[str, ...]:
    """Drop what no backend understands; the sentences say so to the task's owner."""
    if resources.backend_parameters is None:
        return ()
    known = {key.casefold() for key in supported}
    kept: dict[str, str | None] = {}
    dropped: list[str] = []
    seen: dict[str, str] = {}
    for key, value in resources.backend_parameters.items():
        other = seen.setdefault(key.casefold(), key)
        if other != key:
            raise BadRequest(
                f"resources.backend_parameters: {other!r} and {key!r} are the same key (letter case does not count); "
                "keep one of them"
            )
        if key.casefold() not in known:
            dropped.append(key)
        elif value is not None:
            kept[key] = value
    words = ", ".join(sorted(supported)) or "none"
    if dropped and resources.backend_parameters_strict:
        raise BadRequest(
            f"resources.backend_parameters: {', '.join(map(repr, dropped))} not supported here (supported: {words}); "
            "remove it, or set backend_parameters_strict to false to run without it"
        )
    resources.backend_parameters = kept
    return tuple(
        f"backend_parameters: {key!r} is not supported here and was ignored (supported: {words})." for key in dropped
    )


def _need(resources: tes.Resources | None, defaults: Defaults, gpus: int) -> Resources:
    asked = resources if resources is not None else tes.Resources()
    ram_gb = defaults.ram_gb if asked.ram_gb is None else asked.ram_gb
    disk_gb = defaults.disk_gb if asked.disk_gb is None else asked.disk_gb
    return Resources(
        cpu_cores=float(defaults.cpu_cores if asked.cpu_cores is None else asked.cpu_cores),
        ram_bytes=math.ceil(ram_gb * 1e9),
        disk_bytes=math.ceil(disk_gb * 1e9),
        gpus=gpus,
    )


def _sentences(errors: list[ErrorDetails]) -> str:
    shown = [f"{_where(error['loc'])}: {_words(error)}" for error in errors[:5]]
    if errors[5:]:
        shown.append(f"and {len(errors) - 5} more")
    return "; ".join(shown)


def _where(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part != "[key]":
            text += f".{part[:80]}" if text else part[:80]
    return text or "body"


def _words(error: ErrorDetails) -> str:
    context: Mapping[str, Any] = error.get("ctx", {})
    given = type(error["input"]).__name__
    kind = {"str": "a text", "int": "a number", "float": "a number", "bool": "true or false", "NoneType": "null"}.get(
        given, {"list": "a list", "dict": "an object"}.get(given, given)
    )
    match error["type"]:
        case "missing":
            return "is missing; it is required"
        case "string_type":
            return f"must be a text, not {kind}; put it in quotes" if kind != "null" else "must be a text, not null"
        case "list_type":
            return f"must be a list, not {kind}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be an object, not {kind}"
        case "enum":
            return f"must be {context['expected']}"
        case "bool_type" | "bool_parsing":
            return f"must be true or false, not {kind}"
        case "float_type" | "float_parsing" | "value_error":
            return f"must be a number, not {kind}"
        case _:
            return error["msg"][:1].lower() + error["msg"][1:]
