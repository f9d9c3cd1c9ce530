"""Intake: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tesgate.config import Defaults, Limits
from tesgate.errors import BadRequest
from tesgate.ga4gh import tes
from tesgate.model.ids import TaskIds, is_task_id
from tesgate.model.intake import Accepted, IntakeRules, accept
from tesgate.model.records import Resources

RULES = IntakeRules(Limits(), Defaults())
BASE: dict[str, Any] = {"executors": [{"image": "alpine", "command": ["echo"]}]}


def take(rules: IntakeRules = RULES, /, **fields: Any) -> Accepted:
    return accept({**copy.deepcopy(BASE), **fields}, rules)


def executor(**fields: Any) -> dict[str, Any]:
    return {"executors": [{**BASE["executors"][0], **fields}]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"executors": []}, "executors: must hold at least one"),
        ({"executors": None}, "executors: must be a list"),
        ({"executors": [None]}, "executors[0]: must be an object"),
        ({"executors": [{"image": "a"}]}, "executors[0].command: is missing"),
        (executor(command=[]), "executors[0].command"),
        (executor(command=[""]), "executors[0].command"),
        (executor(command="ls -l"), "executors[0].command: must be a list, not a text"),
        (executor(command=["sleep", 5]), "executors[0].command[1]: must be a text, not a number"),
        (executor(command=[None]), "executors[0].command[0]"),
        (executor(image=""), "executors[0].image"),
        (executor(image="--privileged -v /:/host alpine"), "executors[0].image"),
        (executor(image="-v"), "executors[0].image"),
        (executor(image="a\nb"), "executors[0].image"),
        (executor(workdir="data"), "executors[0].workdir"),
        (executor(stdin="in"), "executors[0].stdin"),
        (executor(stdout="/a/../b"), "executors[0].stdout"),
        (executor(stderr=""), "executors[0].stderr"),
        (executor(env={"A=B": "c"}), "executors[0].env"),
        (executor(env={"": "c"}), "executors[0].env"),
        (executor(env={"A": 5}), "executors[0].env.A: must be a text, not a number"),
        (executor(ignore_error="perhaps"), "executors[0].ignore_error: must be true or false"),
        (executor(command=["x" * 2_000_000]), "executors[0].command"),
        ({"inputs": [{"url": "u"}]}, "inputs[0].path: is missing"),
        ({"inputs": [{"path": "/in/a"}]}, "inputs[0].url: is missing"),
        ({"inputs": [{"path": "in/a", "url": "u"}]}, "inputs[0].path"),
        ({"inputs": [{"path": "/in/a", "url": "u"}, {"path": "/in//a/", "url": "v"}]}, "inputs[1].path"),
        ({"inputs": [{"path": "/in/a", "url": "u", "type": "LINK"}]}, "inputs[0].type: must be 'FILE' or 'DIRECTORY'"),
        ({"inputs": [{"path": "/in/a", "content": "x", "type": "DIRECTORY"}]}, "inputs[0].content"),
        ({"inputs": [{"path": "/.tesgate/x", "url": "u"}]}, "reserved"),
        ({"inputs": {"path": "/in/a"}}, "inputs: must be a list, not an object"),
        ({"outputs": [{"path": "/out/a"}]}, "outputs[0].url: is missing"),
        ({"outputs": [{"path": "/out/a", "url": ""}]}, "outputs[0].url"),
        ({"outputs": [{"path": "/out/*", "url": "u"}]}, "outputs[0].path_prefix: is required"),
        ({"outputs": [{"path": "/out/[ab]", "url": "u"}]}, "outputs[0].path_prefix: is required"),
        ({"outputs": [{"path": "/out/*", "url": "u", "path_prefix": "/other"}]}, "outputs[0].path_prefix"),
        ({"outputs": [{"path": "/out/*", "url": "u", "path_prefix": "out"}]}, "outputs[0].path_prefix"),
        ({"volumes": ["vol"]}, "volumes[0]"),
        ({"volumes": ["/"]}, "volumes[0]"),
        ({"volumes": [5]}, "volumes[0]: must be a text"),
        ({"resources": {"cpu_cores": 0}}, "resources.cpu_cores: must be more than 0"),
        ({"resources": {"cpu_cores": -1}}, "resources.cpu_cores"),
        ({"resources": {"cpu_cores": float("nan")}}, "resources.cpu_cores"),
        ({"resources": {"ram_gb": float("inf")}}, "resources.ram_gb"),
        ({"resources": {"disk_gb": 1e300}}, "resources.disk_gb"),
        ({"resources": {"cpu_cores": True}}, "resources.cpu_cores: must be a number"),
        ({"resources": {"cpu_cores": "many"}}, "resources.cpu_cores: must be a number, not a text"),
        ({"resources": {"backend_parameters": {"A": "1", "a": "2"}}}, "'A' and 'a' are the same key"),
        ({"resources": []}, "resources: must be an object"),
        ({"tags": {"a": 5}}, "tags.a: must be a text, not a number"),
        ({"tags": ["a"]}, "tags: must be an object"),
        ({"name": 5}, "name: must be a text"),
    ],
)
def test_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        take(**fields)
    assert words in caught.value.msg


def test_several_faults_are_told_at_once() -> None:
    with pytest.raises(BadRequest) as caught:
        take(name=5, tags={str(n): n for n in range(9)})
    assert "name:" in caught.value.msg and "tags.0:" in caught.value.msg and "and 5 more" in caught.value.msg


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("max_executors", {"executors": BASE["executors"] * 3}),
        ("max_inputs", {"inputs": [{"path": f"/in/{n}", "url": "u"} for n in range(3)]}),
        ("max_outputs", {"outputs": [{"path": f"/out/{n}", "url": "u"} for n in range(3)]}),
        ("max_volumes", {"volumes": [f"/vol/{n}" for n in range(3)]}),
        ("max_tags", {"tags": {str(n): "x" for n in range(3)}}),
        ("max_env", executor(env={str(n): "x" for n in range(3)})),
    ],
)
def test_counts_have_limits(name: str, fields: dict[str, Any]) -> None:
    take(IntakeRules(Limits(**{name: 3}), Defaults()), **fields)
    with pytest.raises(BadRequest, match="at most 2"):
        take(IntakeRules(Limits(**{name: 2}), Defaults()), **fields)


def test_type_is_filled_in_and_nothing_else() -> None:
    document = take(
        inputs=[
            {"path": "/in/a", "url": "u", "type": None, "name": None},
            {"path": "/in/d/", "url": "u", "type": "DIRECTORY"},
        ],
        outputs=[{"path": "/out/x", "url": "/plain path/with spaces"}],
    ).document
    assert document["inputs"] == [
        {"path": "/in/a", "url": "u", "type": "FILE"},
        {"path": "/in/d/", "url": "u", "type": "DIRECTORY"},
    ]
    assert document["outputs"] == [{"path": "/out/x", "url": "/plain path/with spaces", "type": "FILE"}]
    assert set(document) == {"executors", "inputs", "outputs"}


def test_an_input_that_is_named_twice() -> None:
    """As cwl-tes does with what an InitialWorkDirRequirement lists and a tool takes; words about it may differ."""
    file = {"path": "/in/a", "url": "file:///data/a"}
    twice = [{**file, "name": "given"}, {**file, "path": "/in//a", "type": "FILE", "name": "a"}]
    kept = take(inputs=twice).document["inputs"]
    assert [item["name"] for item in kept] == ["given", "a"]
    take(inputs=[{"path": "/in/a", "content": "x"}] * 2)
    for other in ({"type": "DIRECTORY"}, {"url": "file:///data/b"}, {"content": "x"}):
        with pytest.raises(BadRequest, match=r"inputs\[1\].path: '/in/a' is also the path of inputs\[0\]"):
            take(inputs=[file, {**file, **other}])


def test_a_url_beside_empty_content_is_looked_at() -> None:
    with pytest.raises(BadRequest, match=r"inputs\[0\].url"):
        take(inputs=[{"path": "/in/a", "content": "", "url": "file:///data/%00"}])


def test_content_and_url() -> None:
    def one(**fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = take(inputs=[{"path": "/in/a", **fields}]).document["inputs"][0]
        return {key: value for key, value in found.items() if key not in ("path", "type")}

    assert one(content="x", url="u") == {"content": "x", "url": "u"}
    assert one(content="", url="u") == {"url": "u"}
    assert one(content="") == {"content": ""}
    assert one(content="", url="") == {"content": ""}


def test_what_real_clients_send_is_taken() -> None:
    """cwl-tes, Snakemake, Pulsar and nf-ga4gh, as recorded."""
    take(
        outputs=[
            {"url": "file:///t/x/md5", "path": "/uQM/md5", "type": "FILE"},
            {"url": "file:///t/x/", "path": "/uQM", "type": "DIRECTORY"},
        ],
        **executor(workdir="/uQM", stdout="/uQM/md5", env={"HOME": "/uQM", "TMPDIR": "/tmp"}),
    )
    take(inputs=[{"path": "/tmp/run_snakemake.sh", "content": "#!"}], outputs=[], **executor(workdir="/tmp"))
    take(volumes=["/pulsar_staging/"], **executor(workdir="/", command=["sh", "-c", "", "x"]))
    take(
        outputs=[
            {"url": "/w", "path": "/work/part_*.txt", "path_prefix": "/work", "type": "FILE"},
            {"url": "/w", "path": "/work/{a,b}_*", "path_prefix": "/work"},
            {"url": "/w/.exitcode", "path": "/work/.exitcode"},
        ],
        inputs=[{"url": "_:1234", "path": "/in/literal", "type": "DIRECTORY"}],
    )


def test_resources_and_their_defaults() -> None:
    rules = IntakeRules(Limits(), Defaults(cpu_cores=2, ram_gb=3, disk_gb=4))
    assert take(rules).need == Resources(2.0, 3_000_000_000, 4_000_000_000)
    asked = take(rules, resources={"cpu_cores": "0.5", "ram_gb": 1.0737421802418856, "disk_gb": 7.0})
    assert asked.need == Resources(0.5, 1_073_742_181, 7_000_000_000)
    assert asked.document["resources"] == {"cpu_cores": 0.5, "ram_gb": 1.0737421802418856, "disk_gb": 7}
    assert type(asked.document["resources"]["disk_gb"]) is int


def test_supported_backend_parameters_stay_in_any_letter_case() -> None:
    rules = IntakeRules(Limits(), Defaults(), frozenset({"VmSize"}))
    taken = take(rules, resources={"backend_parameters": {"vmsize": "a", "other": "b", "nothing": None}})
    assert taken.document["resources"]["backend_parameters"] == {"vmsize": "a"}
    assert len(taken.notes) == 2 and "'other'" in taken.notes[0] and "VmSize" in taken.notes[0]
    with pytest.raises(BadRequest, match="'other' not supported"):
        take(rules, resources={"backend_parameters": {"other": "b"}, "backend_parameters_strict": True})


def test_tags_and_env_with_null() -> None:
    taken = take(tags={"a": None, "b": "c"}, **executor(env={"A": None, "B": ""}))
    assert taken.tags == taken.document["tags"] == {"a": "", "b": "c"}
    assert taken.document["executors"][0]["env"] == {"B": ""}


def test_the_request_is_not_changed() -> None:
    body = {**BASE, "id": "x", "resources": {"backend_parameters": {"A": "b"}}}
    before = copy.deepcopy(body)
    accept(body, RULES)
    assert body == before


def test_ids_rise_also_within_a_millisecond_and_when_the_clock_goes_back() -> None:
    times = iter([5, 5, 5, 4, 6, 6])
    ids = TaskIds(clock_ms=lambda: next(times))
    made = [ids() for _ in range(6)]
    assert made == sorted(set(made))
    assert all(is_task_id(id) for id in made)
    assert made[0].startswith("0000000005")
    assert not is_task_id("x") and not is_task_id(made[0].upper()) and not is_task_id(made[0] + "\n")


def test_states_are_the_specifications() -> None:
    assert len(tes.State) == 11 and sorted(tes.READ_ONLY) == ["creation_time", "id", "logs", "state"]
