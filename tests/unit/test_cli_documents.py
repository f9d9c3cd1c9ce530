"""Task files: formats, variables, settings; file roots and spans of time."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tesgate.cli.documents import assign, fill, pairs, read_document
from tesgate.cli.failure import Exit, Failure, exit_of
from tesgate.cli.roots import file_roots
from tesgate.cli.tokens import span

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_json_and_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"name": "a", "executors": []}')
    (tmp_path / "a.yaml").write_text("name: a\nexecutors: []\n")
    assert read_document(str(tmp_path / "a.json")) == read_document(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("text", "sentence"), [("[1]", "one task"), ("a: [", "neither JSON nor YAML in line"), ("just words", "one task")]
)
def test_what_is_no_task(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(Failure, match=sentence):
        read_document(str(tmp_path / "x"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read"):
        read_document(str(tmp_path / "x"))


def test_variables_are_filled_in_and_a_scripts_own_are_left() -> None:
    document = {"inputs": [{"url": "file://${D}/x"}], "executors": [{"command": ["sh", "-c", "echo ${D} ${HOME} $D"]}]}
    assert fill(document, {"D": "/d"}) == {
        "inputs": [{"url": "file:///d/x"}],
        "executors": [{"command": ["sh", "-c", "echo /d ${HOME} $D"]}],
    }


def test_a_url_with_an_unknown_variable_is_refused() -> None:
    with pytest.raises(Failure, match="--var D=VALUE"):
        fill({"outputs": [{"url": "file://${D}/x"}]}, {})


def test_assign() -> None:
    document = {"executors": [{"image": "a"}]}
    assert assign(document, {"executors.0.image": "b", "resources.cpu_cores": "2", "name": "x y"}) == {
        "executors": [{"image": "b"}],
        "resources": {"cpu_cores": 2},
        "name": "x y",
    }


@pytest.mark.parametrize("path", ["executors.1.image", "executors.x", "name.first"])
def test_assign_to_what_is_not_there(path: str) -> None:
    with pytest.raises(Failure, match="there is no"):
        assign({"executors": [{"image": "a"}], "name": "n"}, {path: "b"})


def test_pairs() -> None:
    assert pairs(["A=b=c", "D="], "--var") == {"A": "b=c", "D": ""}
    with pytest.raises(Failure, match="NAME=VALUE"):
        pairs(["A"], "--var")


@pytest.mark.parametrize("path", sorted(filter(Path.is_file, EXAMPLES.iterdir())), ids=lambda path: path.name)
def test_examples_are_tasks(path: Path) -> None:
    from tesgate.model.mounts import check_paths

    places = {
        "DEMO_DIR": "/demo",
        "DEMO_HTTP": "http://127.0.0.1:1",
        "DEMO_S3": "s3://b",
        "DEMO_FTP": "ftp://127.0.0.1:1",
    }
    document = fill(read_document(str(path)), places)
    assert document["executors"]
    check_paths(document)
    assert "DEMO_" not in json.dumps(document)


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], Exit.COMPLETE),
        (["COMPLETE"], Exit.COMPLETE),
        (["COMPLETE", "CANCELED"], Exit.CANCELED),
        (["CANCELED", "EXECUTOR_ERROR"], Exit.EXECUTOR_ERROR),
        (["EXECUTOR_ERROR", "SYSTEM_ERROR", "COMPLETE"], Exit.SYSTEM_ERROR),
        (["SOMETHING_NEW"], Exit.SYSTEM_ERROR),
    ],
)
def test_exit_codes(states: list[str], code: Exit) -> None:
    assert exit_of(states) == code


def test_file_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("My Data", "ref", "x=y"):
        (tmp_path / name).mkdir()
    (tmp_path / "deep" / "ref").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    roots = file_roots(["My Data", "r=ref:ro", "ref", "deep/ref:rw", "./x=y"])
    assert [(root["name"], root["path"], root["writable"]) for root in roots] == [
        ("my-data", str(tmp_path / "My Data"), True),
        ("r", str(tmp_path / "ref"), False),
        ("ref", str(tmp_path / "ref"), True),
        ("ref-2", str(tmp_path / "deep/ref"), True),
        ("x-y", str(tmp_path / "x=y"), True),
    ]
    with pytest.raises(Failure, match="not a directory"):
        file_roots(["nowhere"])


def test_spans() -> None:
    assert span("30d") == timedelta(days=30)
    assert span("12h") == timedelta(hours=12)
    for wrong in ("0d", "12", "d", "1w", "-1d"):
        with pytest.raises(Failure, match="30d"):
            span(wrong)
