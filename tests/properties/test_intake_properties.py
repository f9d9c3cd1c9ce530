"""What holds for every body of a POST, every token of a page, every pattern of an output."""

from __future__ import annotations

import fnmatch
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesgate.api.body import parse_json
from tesgate.config import Defaults, Limits
from tesgate.errors import BadRequest
from tesgate.model.ids import is_task_id
from tesgate.model.intake import IntakeRules, accept
from tesgate.runner.transfer.patterns import Matcher, expand_braces, has_wildcards
from tesgate.services.tasks import decode_page_token, encode_page_token

RULES = IntakeRules(Limits(), Defaults())
FEW = settings(max_examples=150, deadline=None, derandomize=True)

TEXTS = st.text(max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
PATHS = st.lists(
    st.sampled_from(["a", "b", "out", "usr", "tmp", "..", ".", "", "*", "x?", "[ab]", "\u00e9"]), max_size=4
)
TEXT = st.one_of(PATHS.map("/".join), PATHS.map(lambda parts: "/" + "/".join(parts)), TEXTS, st.just("FILE"))
NUMBERS = st.integers() | st.floats() | st.booleans()


def near(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there."""
    return st.one_of(strategy, strategy, strategy, st.none(), ANYTHING)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: near(kind) for name, kind in fields.items()})


def lists(kind: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(near(kind), max_size=3)


TYPES = st.sampled_from(["FILE", "DIRECTORY"])
ABSOLUTE = PATHS.map(lambda parts: "/" + "/".join(parts))
TASKS = st.fixed_dictionaries(
    {
        "executors": st.lists(
            st.fixed_dictionaries(
                {"image": TEXTS.map(lambda text: f"i{text}"), "command": st.lists(TEXTS, min_size=1, max_size=3)},
                optional={"workdir": ABSOLUTE, "stdout": ABSOLUTE, "env": st.dictionaries(TEXTS, TEXTS | st.none())},
            ),
            min_size=1,
            max_size=2,
        )
    },
    optional={
        "name": TEXTS,
        "inputs": lists(objects(path=ABSOLUTE, url=TEXT, content=TEXTS, type=TYPES)),
        "outputs": lists(objects(path=ABSOLUTE, url=TEXT, path_prefix=ABSOLUTE, type=TYPES)),
        "volumes": lists(ABSOLUTE),
        "tags": near(st.dictionaries(TEXTS, TEXTS | st.none(), max_size=3)),
        "resources": objects(cpu_cores=NUMBERS, ram_gb=NUMBERS, backend_parameters=st.dictionaries(TEXTS, TEXTS)),
        "id": ANYTHING,
        "state": ANYTHING,
        "logs": ANYTHING,
        "other": ANYTHING,
    },
)


def check_refusal(refusal: BadRequest) -> None:
    assert refusal.msg.strip() and len(refusal.msg) < 5000


@given(st.one_of(TASKS, ANYTHING))
@FEW
def test_a_body_is_a_task_or_a_clean_refusal(body: Any) -> None:
    try:
        accepted = accept(body, RULES)
    except BadRequest as refusal:
        check_refusal(refusal)
        return
    document = accepted.document
    assert json.loads(json.dumps(document)) == document
    assert "null" not in json.dumps(strip_texts(document))
    assert not {"id", "state", "logs", "creation_time", "other"} & document.keys()
    # What is kept is what would be accepted again, and nothing changes by that.
    again = accept(document, RULES)
    assert again.document == document and again.tags == accepted.tags and again.need == accepted.need


def strip_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {"k": [strip_texts(item) for item in value.values()]}
    if isinstance(value, list):
        return [strip_texts(item) for item in value]
    return "" if isinstance(value, str) else value


@given(st.one_of(st.binary(max_size=200), ANYTHING.map(lambda value: json.dumps(value).encode())))
@FEW
def test_bytes_are_json_or_a_clean_refusal(body: bytes) -> None:
    try:
        value = parse_json(body)
    except BadRequest as refusal:
        check_refusal(refusal)
        return
    assert json.dumps(value).encode("ascii")
    texts = json.dumps(value, ensure_ascii=False)
    texts.encode("utf-8")
    assert "\\u0000" not in json.dumps(value)


IDS = st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=25, max_size=25).map(lambda text: "0" + text)


@given(IDS, st.data())
@FEW
def test_tokens_of_pages(last: str, data: st.DataObject) -> None:
    token = encode_page_token(last)
    assert decode_page_token(token) == last
    place = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.sampled_from("ABCXYZabcxyz0189-_=+/ \0\u00e9"))
    changed = token[:place] + character + token[place + 1 :]
    if changed != token:
        with pytest.raises(BadRequest):
            decode_page_token(changed)


@given(st.text(max_size=60))
@FEW
def test_other_texts_are_no_tokens(text: str) -> None:
    try:
        assert is_task_id(decode_page_token(text))
    except BadRequest:
        pass


PARTS = st.sampled_from(["a", "b", ".", "ab", "*", "?", "[ab]", "[!a]", "x", "\u00e9"])
NAMES = st.text("abx.\u00e9", min_size=1, max_size=6)


@given(st.lists(PARTS, min_size=1, max_size=5).map("".join), NAMES)
@settings(max_examples=500, deadline=None, derandomize=True)
def test_one_component_of_a_pattern_is_what_a_shell_takes_it_for(pattern: str, name: str) -> None:
    """The reference: Python's fnmatch, but for a leading dot, which no wildcard matches."""
    expected = fnmatch.fnmatchcase(name, pattern) and not (name.startswith(".") and pattern[0] in "*?[")
    assert Matcher(pattern).fullmatch(name) == expected
    assert has_wildcards(pattern) == any(character in pattern for character in "*?[")


@given(st.text("ab{},\\*", max_size=14))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_braces_end(pattern: str) -> None:
    """Whatever is expanded has nothing left to expand, and nothing twice."""
    try:
        found = expand_braces(pattern)
    except ValueError:
        return
    assert len(set(found)) == len(found) and found
    assert all(expand_braces(item) == [item] for item in found)
