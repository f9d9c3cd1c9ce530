"""From a task document to the plan of an attempt."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tesgate.model.container_paths import MountError
from tesgate.model.planning import GB, Need, PlanSettings, build_plan, local_path, local_paths, need
from tesgate.runner.plan import Plan, RunAs
from tesgate.runner.wire import decode, encode

DEFAULTS = Need(1.0, 2 * GB, 10 * GB)

DOCUMENT: dict[str, Any] = {
    "name": "count",
    "inputs": [
        {"path": "/ref/x/y.txt", "content": "", "url": "file:///ignored"},
        {"path": "/ref/", "url": "file:///data/ref", "type": "DIRECTORY"},
        {"path": "/ref", "url": "file:///data/ref", "type": "DIRECTORY"},
        {"path": "//in//a", "url": "http://h/a"},
    ],
    "outputs": [
        {"path": "/out/r*.txt", "path_prefix": "/out", "url": "file:///data/out/"},
        {"path": "/out/sub/r", "url": "file:///data/r"},
        {"path": "/r", "url": "file:///data/r2"},
    ],
    "resources": {"cpu_cores": 2, "ram_gb": 1.0737421802418856},
    "executors": [
        {"image": "busybox", "command": ["echo", "$HOME"], "workdir": "/out/", "env": {"A": "1", "B": None}},
        {"image": "busybox", "command": ["cat"], "stdin": "/in//a", "stdout": "/out/o", "ignore_error": True},
    ],
}


def plan(document: dict[str, Any], settings: PlanSettings | None = None) -> Plan:
    return build_plan("task", 2, "tg-x-task-2", document, "secret", settings=settings or PlanSettings())


def test_plan() -> None:
    made = plan(DOCUMENT, PlanSettings(deployment="x", executor_timeout=60.0, run_as=RunAs(policy="image"), grace=3))
    assert (made.task, made.attempt, made.external_name, made.token) == ("task", 2, "tg-x-task-2", "secret")
    assert (made.deployment, made.run_as.policy, made.grace, made.timeout) == ("x", "image", 3, None)
    assert [(item.path, item.place, item.writable, item.content, item.url) for item in made.inputs] == [
        ("/ref", "ro/ref", False, None, "file:///data/ref"),
        ("/in/a", "ro/in/a", False, None, "http://h/a"),
        ("/ref/x/y.txt", "ro/ref/x/y.txt", False, "", None),
    ]
    assert [(item.path, item.type, item.path_prefix) for item in made.outputs] == [
        ("/out/r*.txt", "FILE", "/out"),
        ("/out/sub/r", "FILE", None),
        ("/r", "FILE", None),
    ]
    assert made.directories == ["rw/out/sub"]
    assert [item.path for item in made.collect] == ["/r"]
    first, second = made.executors
    assert (first.command, first.workdir, first.env, first.timeout) == (
        ["echo", "$HOME"],
        "/out",
        {"A": "1", "B": ""},
        60.0,
    )
    assert (second.stdin, second.stdout, second.stderr, second.ignore_error) == ("/in/a", "/out/o", None, True)
    assert made.limits.cpu_cores == 2
    assert made.limits.ram_bytes == round(1.0737421802418856 * GB)
    assert made.limits.disk_bytes is None


def test_plan_travels() -> None:
    made = plan(DOCUMENT)
    assert decode(Plan, json.loads(json.dumps(encode(made)))) == made


def test_plan_of_nulls() -> None:
    document = {
        "inputs": None,
        "outputs": None,
        "volumes": None,
        "resources": None,
        "executors": [{"image": "i", "command": ["c"], "env": None, "workdir": None, "ignore_error": None}],
    }
    made = plan(document)
    assert [mount.target for mount in made.mounts] == ["/tmp"]
    assert made.executors[0].env == {}


def test_a_disk_that_was_asked_for_is_a_limit() -> None:
    assert plan({**DOCUMENT, "resources": {"disk_gb": 3}}).limits.disk_bytes == 3 * GB


def test_plan_refuses_bad_paths() -> None:
    with pytest.raises(MountError):
        plan({**DOCUMENT, "volumes": ["/usr"]})


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        (None, DEFAULTS),
        ({}, DEFAULTS),
        ({"cpu_cores": None, "ram_gb": None, "disk_gb": None}, DEFAULTS),
        ({"cpu_cores": 0, "ram_gb": -1, "disk_gb": float("nan")}, DEFAULTS),
        ({"cpu_cores": 0.5, "ram_gb": 0.25, "disk_gb": 1}, Need(0.5, 250_000_000, GB)),
    ],
)
def test_need(resources: dict[str, Any] | None, wanted: Need) -> None:
    assert need({"resources": resources}, DEFAULTS) == wanted


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///data/a%20b", "/data/a b"),
        ("file:///data/a%2520b", "/data/a%20b"),
        ("FILE://localhost/data", "/data"),
        ("file:///data/", "/data"),
        ("file:////data//x", "/data/x"),
        ("file:///ok/../secret", "/secret"),
        ("file:///ok/%2e%2e/secret", "/secret"),
        ("/work/a b%20", "/work/a b%20"),
        ("//work/x", "/work/x"),
        ("file://otherhost/data", None),
        ("file://", None),
        ("file:/data/x", "/data/x"),
        ("file:data", None),
        ("s3://bucket/key", None),
        ("http://h/x", None),
        ("relative", None),
    ],
)
def test_local_path(url: str, path: str | None) -> None:
    assert local_path(url) == path


def test_local_paths_of_a_task() -> None:
    assert local_paths(DOCUMENT) == [
        ("/data/ref", False),
        ("/data/out", True),
        ("/data/r", True),
        ("/data/r2", True),
    ]
