"""Where the gateway keeps everybody's logs: which settings are refused, and that no task gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tesgate.app.workspace import open_workspace
from tesgate.cli.failure import Failure
from tesgate.cli.gateway import check_config
from tesgate.config import S3Endpoint, S3Settings, Settings
from tesgate.errors import ConfigError
from tesgate.storage.s3.endpoints import Endpoints
from tesgate.storage.s3.urls import UrlRefused, parse
from tesgate.storage.s3.workspace import ObjectWorkspace
from tesgate.storage.workspace import FileWorkspace


def settings(workspace: str | None, **endpoint: Any) -> Settings:
    return Settings(workspace=workspace, s3=S3Settings(endpoints=[S3Endpoint(name="e", **endpoint)]))


def test_settings() -> None:
    place: Any = type("Place", (), {"logs": Path("/nowhere")})()
    assert isinstance(open_workspace(settings(None), place), FileWorkspace)
    assert isinstance(open_workspace(settings("s3://logs"), place), ObjectWorkspace)
    assert isinstance(open_workspace(settings("s3://logs/p/", buckets=["logs/p"]), place), ObjectWorkspace)
    with pytest.raises(ConfigError, match="on none of"):
        open_workspace(settings("s3://logs/p", buckets=["c"]), place)
    with pytest.raises(ConfigError, match="everybody's logs"):
        open_workspace(settings("s3://logs/p", access=[{"read": ["logs"]}]), place)
    assert open_workspace(settings("s3://logs/p", access=[{"read": ["logs/q"], "write": ["c"]}]), place)
    assert Settings(workspace="s3://logs").check()
    with pytest.raises(ConfigError, match="without credentials"):
        open_workspace(settings("s3://logs/p", anonymous=True), place)


@pytest.mark.parametrize(
    "pattern", ["lab/{owner}/", "lab/tesgate/logs/", "lab/{group}", "lab/tes*", "la*", "*", "{owner}", "lab/tesgate/x*"]
)
def test_no_grant_may_meet_it(pattern: str) -> None:
    place: Any = None
    with pytest.raises(ConfigError, match="everybody's logs"):
        open_workspace(settings("s3://lab/tesgate", access=[{"read": [pattern]}]), place)


def test_grants_beside_it_may_stay() -> None:
    place: Any = None
    for pattern in ("lab/tesgate2", "lab/data/{owner}", "labs/*", "other"):
        assert open_workspace(settings("s3://lab/tesgate", access=[{"read": [pattern]}]), place)


def test_no_task_reads_or_writes_there() -> None:
    endpoints = Endpoints(S3Settings(endpoints=[S3Endpoint(name="e")]), reserved=parse("s3://lab/a/tesgate/"))
    for url in ("s3://lab/a/tesgate", "s3://lab/a/tesgate/logs/x", "s3://lab//a//tesgate/logs/x"):
        for use in ("read", "write"):
            with pytest.raises(UrlRefused, match="keeps its tasks' logs"):
                endpoints.find(parse(url), use, owner="o", groups=())  # type: ignore[arg-type]
    for url in ("s3://lab", "s3://lab/a/", "s3://lab/a"):
        with pytest.raises(UrlRefused, match="keeps its tasks' logs"):
            endpoints.find(parse(url), "read", owner="o", groups=())
    for url in ("s3://lab/a/tesgate2", "s3://lab/b", "s3://labs/a/tesgate"):
        assert endpoints.find(parse(url), "read", owner="o", groups=())
    assert endpoints.find(parse("s3://lab/a/out"), "write", owner="o", groups=())


@pytest.mark.parametrize(
    "given",
    [
        {"workspace": "s3://nowhere/x", "s3": {"endpoints": [{"name": "a", "buckets": ["other"]}]}},
        {"workspace": "s3://lab/x", "s3": {"endpoints": [{"name": "a", "access": [{"read": ["lab"]}]}]}},
        {"workspace": "s3://lab/x", "s3": {"endpoints": [{"name": "a", "anonymous": True}]}},
        {"credentials": [{"name": "a", "prefix": "https://h/a/../b", "headers": {"x": "y"}}]},
    ],
)
def test_check_config_says_what_serve_would(given: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"data_dir": str(tmp_path / "data"), **given}), "utf-8")
    with pytest.raises(Failure, match="cannot be used"):
        check_config(file)
