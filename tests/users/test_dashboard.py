"""The dashboard and the alerts: every query parses, and asks for metrics and labels that a gateway really exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import promql_parser
import pytest
import yaml

from tests.e2e.harness import Gateway, wait_for

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy/grafana/tesgate.json"
RULES = ROOT / "deploy/prometheus/tesgate.rules.yml"
OF_PROMETHEUS = {"job", "instance", "__name__"}
VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m", "$__range": "1h", "$job": ".+"}

PANEL = {
    "type": "object",
    "required": ["id", "type", "title", "gridPos"],
    "properties": {
        "id": {"type": "integer"},
        "type": {"enum": ["row", "timeseries", "stat"]},
        "title": {"type": "string", "minLength": 1},
        "gridPos": {
            "type": "object",
            "required": ["h", "w", "x", "y"],
            "properties": {
                "h": {"type": "integer", "minimum": 1},
                "w": {"type": "integer", "minimum": 1, "maximum": 24},
                "x": {"type": "integer", "minimum": 0, "maximum": 23},
                "y": {"type": "integer", "minimum": 0},
            },
        },
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["refId", "expr", "legendFormat", "datasource"],
                "properties": {"datasource": {"const": {"type": "prometheus", "uid": "${datasource}"}}},
            },
        },
    },
    "if": {"properties": {"type": {"const": "row"}}},
    "else": {"required": ["targets", "fieldConfig", "options", "description"]},
}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text("utf-8"))["groups"][0]["rules"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            yield f"panel {panel['title']}", expression
    for rule in rules():
        yield f"alert {rule['alert']}", rule["expr"]


def selectors(expression: Any) -> Iterator[Any]:
    """All vector selectors of a parsed query."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    elif isinstance(expression, promql_parser.MatrixSelector):
        yield expression.vector_selector
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from selectors(expression.lhs)
        yield from selectors(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from selectors(argument)
    elif isinstance(expression, promql_parser.AggregateExpr | promql_parser.ParenExpr | promql_parser.UnaryExpr):
        yield from selectors(expression.expr)
    else:
        assert isinstance(expression, promql_parser.NumberLiteral | promql_parser.StringLiteral), expression


def grouped_by(text: str) -> set[str]:
    return {word.strip() for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text) for word in group.split(",")}


def exported(page: str) -> dict[str, set[str]]:
    """Names of time series, with the labels that were seen on them."""
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + suffix] = set()
    for name, labels in re.findall(r"^([a-z_]+)(?:\{(.*)\})? ", page, re.MULTILINE):
        if name in found:
            found[name] |= set(re.findall(r'([a-z_]+)="', labels))
    return found


@pytest.fixture(scope="module")
def page(bubblewrap: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What a gateway with an agent exports when it has run a task."""
    gateway = Gateway(tmp_path_factory.mktemp("metrics"), "bubblewrap")
    try:
        gateway.start().ready()
        task = gateway.run({"image": "busybox", "command": ["true"]})
        assert task["state"] == "COMPLETE"
        gateway.wait(gateway.submit({"executors": [{"image": "i", "command": ["false"]}]}))
        address = f"http://127.0.0.1:{gateway.port}/metrics"

        def whole() -> str | None:
            text = httpx.get(address, trust_env=False).text
            return (
                text
                if 'tesgate_agents{pool="default",state="open"} 1.0' in text and "disk_free_bytes{" in text
                else None
            )

        yield wait_for("the gauges to be filled", whole)
    finally:
        gateway.close()


def test_queries_ask_for_what_is_exported(page: str) -> None:
    known = exported(page)
    for where, text in queries():
        for selector in selectors(promql_parser.parse(text)):
            if selector.name == "up":
                continue
            assert selector.name in known, f"{where}: no gateway exports {selector.name}"
            labels = {matcher.name for matcher in selector.matchers.matchers}
            if known[selector.name]:
                assert labels <= known[selector.name] | OF_PROMETHEUS, f"{where}: {labels} of {selector.name}"
        labels_of_all = set().union(*known.values()) | OF_PROMETHEUS
        assert grouped_by(text) <= labels_of_all | {""}, f"{where}: {grouped_by(text) - labels_of_all}"


def test_a_task_is_seen_in_every_phase(page: str) -> None:
    for phase in ("handover", "staging_in", "running", "staging_out"):
        assert f'tesgate_attempt_phase_seconds_count{{phase="{phase}"}} 2.0' in page
    for name in ("queue_seconds", "task_start_seconds"):
        assert f"tesgate_{name}_count 2.0" in page
    for state in ("COMPLETE", "EXECUTOR_ERROR"):
        assert f'tesgate_task_seconds_count{{state="{state}"}} 1.0' in page
    waited = re.search(r"^tesgate_task_start_seconds_sum (\S+)$", page, re.MULTILINE)
    assert waited is not None
    assert 0 < float(waited[1]) < 120  # seconds, not milliseconds, and not since 1970


def test_the_heap_of_the_start_is_settled(page: str) -> None:
    """Else a full collection stops every answer for a tenth of a second."""
    settled = re.search(r"^tesgate_heap_settled_objects (\S+)$", page, re.MULTILINE)
    assert settled is not None and float(settled[1]) > 50_000


def test_names_and_labels_keep_prometheus_rules(page: str) -> None:
    assert re.findall(r"^# HELP tesgate_\S+ .", page, re.MULTILINE)
    for name, kind in re.findall(r"^# TYPE (tesgate_\S+) (\S+)$", page, re.MULTILINE):
        assert (kind == "counter") == name.endswith("_total") or name.endswith("_created"), name
        assert not re.search(r"_(ms|milliseconds|kb|mb|percent)(_|$)", name), name
    # No label has values that clients choose: task ids, paths, names.
    labels = {label for names in exported(page).values() for label in names}
    assert labels <= {
        *(
            "state",
            "backend",
            "phase",
            "verdict",
            "pool",
            "kind",
            "use",
            "loop",
            "method",
            "route",
            "status",
            "place",
            "le",
        )
    }
    assert not re.search(r'="[^"]*[0-9a-z]{26}', page)


def test_every_metric_and_alert_is_explained(page: str) -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    for name in re.findall(r"^# TYPE (tesgate_\S+) ", page, re.MULTILINE):
        assert re.search(rf"`{name}\b", text) or name.endswith("_created"), (
            f"docs/operations.md does not explain {name}"
        )
    for rule in rules():
        assert f"`{rule['alert']}`" in text, f"docs/operations.md does not say what to do about {rule['alert']}"


def test_the_dashboard_is_whole() -> None:
    document = json.loads(DASHBOARD.read_text("utf-8"))
    assert document["id"] is None
    assert document["uid"] == "tesgate"
    assert {variable["name"] for variable in document["templating"]["list"]} == {"datasource", "job"}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        jsonschema.validate(panel, PANEL)
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_the_alerts_are_whole() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
    promtool = shutil.which("promtool")
    if promtool is not None:
        subprocess.run([promtool, "check", "rules", str(RULES)], check=True, capture_output=True)
