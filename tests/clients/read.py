"""Runs in the environment of the bed `clients`: the real model classes read answers, which come as JSON on stdin.

Answered is, for each answer and reader, the state that the reader has in its hands, or null and what it said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from pulsar.client.tes import tes_state_is_complete, tes_state_to_pulsar_status
from pydantictes.models import TesListTasksResponse, TesServiceInfo, TesState, TesTask
from tes.models import ListTasksResponse, ServiceInfo, Task
from tes.utils import unmarshal


def pytes_task(text: str) -> Any:
    return unmarshal(text, Task).state


def pytes_list(text: str) -> Any:
    return [task.state for task in unmarshal(text, ListTasksResponse).tasks]


def pytes_info(text: str) -> Any:
    return unmarshal(text, ServiceInfo).storage


def pydantic_task(text: str) -> Any:
    return TesTask.model_validate_json(text).state.value


def pydantic_list(text: str) -> Any:
    return [task.state.value for task in TesListTasksResponse.model_validate_json(text).tasks]


def pydantic_info(text: str) -> Any:
    return TesServiceInfo.model_validate_json(text).storage


def pulsar_state(text: str) -> Any:
    state = TesState(text)
    return [tes_state_to_pulsar_status(state), tes_state_is_complete(state)]


READERS: dict[str, Callable[[str], Any]] = {
    name: value for name, value in globals().items() if name.startswith(("pytes_", "pydantic_", "pulsar_"))
}

answers = []
for reader, text in json.load(sys.stdin):
    try:
        answers.append([READERS[reader](text), None])
    except Exception as error:
        answers.append([None, f"{type(error).__name__}: {error}"[:500]])
json.dump(answers, sys.stdout)
