"""What a task asks of the agent that gets it, beside room: zones, labels, a pool, GPUs. Pure.

Zones are TES' own (``resources.zones``). The rest are keys of ``resources.backend_parameters``; no specification names
such keys, so these are ours (docs/agents.md):

``pool``    name of the one pool that the task may go to
``labels``  ``name=value,name=value``: the agent must have been started with every one of them
``gpus``    how many whole NVIDIA devices each executor gets
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BACKEND_PARAMETERS", "MOST_GPUS", "NOTHING", "POOL_NAME", "Seen", "Wish", "WishError", "gpus_of", "wish_of"]

BACKEND_PARAMETERS = ("gpus", "labels", "pool")
"""Keys that are understood, in any letter case."""
MOST_GPUS = 1024
MOST_WORDS = 64
"""Zones or labels of one task."""
LONGEST = 255
"""Characters of one: they stand in the reasons of tasks that wait."""
POOL_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"

_COUNT = re.compile(r"[0-9]{1,4}")
_POOL = re.compile(POOL_NAME)


class WishError(ValueError):
    """It cannot be understood. The message begins with the path of the field and says what to write."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What an agent must be. Two tasks with the same wish and need fit the same agents."""

    zones: tuple[str, ...] = ()
    """Any one of them; none: anywhere."""
    labels: tuple[tuple[str, str], ...] = ()
    """All of them, in order of their names."""
    pool: str | None = None


NOTHING = Wish()
"""Of most tasks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a task's document says to the dispatcher: it is read once."""

    paths: tuple[tuple[str, bool], ...] = ()
    """Local paths that it stages from (False) or to (True)."""
    wish: Wish = NOTHING


def wish_of(document: Mapping[str, Any]) -> Wish:
    """The wish of a task's document. Raises `WishError`."""
    resources = document.get("resources") or {}
    zones = tuple(dict.fromkeys(zone.strip() for zone in resources.get("zones") or () if zone.strip()))
    if len(zones) > MOST_WORDS or any(len(zone) > LONGEST for zone in zones):
        raise WishError(
            f"resources.zones: at most {MOST_WORDS} zones of {LONGEST} characters are accepted here; name fewer"
        )
    parameters = _parameters(resources)
    if not parameters:
        return Wish(zones) if zones else NOTHING
    pool = parameters.get("pool")
    if pool is not None and _POOL.fullmatch(pool) is None:
        raise WishError(
            "resources.backend_parameters.pool: must be the name of one pool, of small letters, digits, - and _; "
            "correct it, or leave it away"
        )
    return Wish(zones, _labels(parameters.get("labels")), pool)


def gpus_of(resources: Mapping[str, Any]) -> int:
    """How many GPUs a task's ``resources`` ask for. Raises `WishError`."""
    word = _parameters(resources).get("gpus")
    if word is None:
        return 0
    if _COUNT.fullmatch(word) is None or int(word) > MOST_GPUS:
        raise WishError(
            f'resources.backend_parameters.gpus: must be a whole number from 0 to {MOST_GPUS} in quotes, such as "1"'
        )
    return int(word)


def _labels(text: str | None) -> tuple[tuple[str, str], ...]:
    wanted: dict[str, str] = {}
    for word in (text or "").split(","):
        if not word.strip():
            continue
        name, sign, value = (part.strip() for part in word.partition("="))
        if not sign or not name or not value or wanted.setdefault(name, value) != value:
            raise WishError(
                f"resources.backend_parameters.labels: {word.strip()[:80]!r} must be name=value, each name once, with "
                'commas between them, such as "disk=ssd,cpu=avx512"'
            )
    if len(wanted) > MOST_WORDS or any(len(name) + len(value) > LONGEST for name, value in wanted.items()):
        raise WishError(
            f"resources.backend_parameters.labels: at most {MOST_WORDS} labels of {LONGEST} characters are accepted "
            "here; ask for fewer"
        )
    return tuple(sorted(wanted.items()))


def _parameters(resources: Mapping[str, Any]) -> dict[str, str]:
    """The keys that are ours, without letter case. Null is absent."""
    given = resources.get("backend_parameters") or {}
    return {
        key.casefold(): value.strip()
        for key, value in given.items()
        if value is not None and key.casefold() in BACKEND_PARAMETERS
    }
