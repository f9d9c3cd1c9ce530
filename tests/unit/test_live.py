"""What is mounted as it is from roots of mode ``mount``, and what is copied nevertheless."""

from __future__ import annotations

from typing import Any

import pytest

from tesgate.model.live import is_live_output, live_places, notes_of
from tesgate.model.mounts import Live, mount_table
from tesgate.model.placement import AgentRoom, Candidate, Need, place
from tesgate.model.planning import PlanSettings, build_plan
from tesgate.model.roots import KnownRoot

ROOTS = (
    KnownRoot("/shared", True, True),
    KnownRoot("/ref", False, True),
    KnownRoot("/shared/private", True, False),
    KnownRoot("/data", True, False),
    KnownRoot("/work", True, True),
    KnownRoot("/work/a/fixed", False, True),
)


def given(url: str, path: str | None = None, kind: str = "DIRECTORY", **more: Any) -> dict[str, Any]:
    return {"url": url, "path": path or url.removeprefix("file://"), "type": kind, **more}


def task(*inputs: dict[str, Any], outputs: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    executor = {"image": "x", "command": ["x"], **more.pop("executor", {})}
    return {"inputs": list(inputs), "outputs": outputs or [], "executors": [executor], **more}


RW, RO = True, False
CASES: dict[str, tuple[dict[str, Any], dict[str, Live]]] = {
    "Toil's job store": (task(given("file:///shared/js")), {"/shared/js": Live("/shared/js", RW, True)}),
    "elsewhere in the container, percent-encoded": (
        task(given("file:///shared/a%20b/", "/in/x")),
        {"/in/x": Live("/shared/a b", RW, True)},
    ),
    "a file": (task(given("/shared/f", kind="FILE")), {"/shared/f": Live("/shared/f", RW, False)}),
    "a read-only root": (task(given("file:///ref/hg38")), {"/ref/hg38": Live("/ref/hg38", RO, True)}),
    "the root itself": (task(given("file:///ref", "/s")), {"/s": Live("/ref", RO, True)}),
    "a root that copies inside: copies": (task(given("file:///shared", "/s")), {}),
    "a read-only root inside what is written: copies": (
        task(given("file:///work", "/s"), outputs=[given("/work/a", "/o")]),
        {},
    ),
    "beside the read-only root": (task(given("/work/b", "/s")), {"/s": Live("/work/b", RW, True)}),
    "the innermost root counts": (task(given("file:///shared/private/x")), {}),
    "out of it by dots": (task(given("file:///shared/../data/x", "/in")), {}),
    "a copying root, the web, and content": (
        task(given("/data/x"), given("http://h/x", "/w", "FILE"), {"path": "/c", "content": "x", "type": "FILE"}),
        {},
    ),
    "what lies in it already is part of it": (
        task(given("/shared/d", "/d"), given("/shared/d/sub/f", "/d/sub/f", "FILE")),
        {"/d": Live("/shared/d", RW, True)},
    ),
    "another source inside: copies": (
        task(given("/shared/d", "/d"), given("/shared/e", "/d/e", "FILE"), given("/shared/z", "/z")),
        {"/z": Live("/shared/z", RW, True)},
    ),
    "content inside: copies": (task(given("/shared/d", "/d"), {"path": "/d/e", "content": "x", "type": "FILE"}), {}),
    "inside an input that is a copy": (task(given("/data/d", "/d"), given("/shared/e", "/d/e", "FILE")), {}),
    "a volume inside: copies": (task(given("/shared/d", "/d"), volumes=["/d/v"]), {}),
    "written to, and read-only": (
        task(given("/ref/d", "/d"), outputs=[given("/data/x", "/d/x", "FILE")]),
        {},
    ),
    "stdout into it, and read-only": (task(given("/ref/d", "/d"), executor={"stdout": "/d/out"}), {}),
    "an output directory": (
        task(outputs=[given("/shared/out", "/out")]),
        {"/out": Live("/shared/out", RW, True, True)},
    ),
    "an output directory in a read-only root": (task(outputs=[given("/ref/out", "/out")]), {}),
    "output files are stored as ever": (task(outputs=[given("/shared/out/x", "/out/x", "FILE")]), {}),
    "wildcards are stored as ever": (task(outputs=[given("/shared/out", "/out/*", path_prefix="/out")]), {}),
    "an output directory with an input in it": (
        task({"path": "/out/in", "content": "x", "type": "FILE"}, outputs=[given("/shared/out", "/out")]),
        {},
    ),
    "an output directory of the image": (task(outputs=[given("/shared/out", "/usr/share")]), {}),
    "an input wins over an output": (
        task(given("/shared/a", "/d"), outputs=[given("/shared/b", "/d")]),
        {"/d": Live("/shared/a", RW, True)},
    ),
    "cwl-tes: a file inside the directory": (
        task(
            given("/shared/wf/in.txt", "/var/lib/cwl/stg1/in.txt", "FILE"),
            outputs=[given("/shared/t/md5", "/uQ/md5", "FILE"), given("/shared/t/", "/uQ")],
            executor={"workdir": "/uQ", "stdout": "/uQ/md5"},
        ),
        {
            "/uQ": Live("/shared/t", RW, True, True),
            "/var/lib/cwl/stg1/in.txt": Live("/shared/wf/in.txt", RW, False),
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_table(name: str) -> None:
    document, expected = CASES[name]
    assert live_places(document, ROOTS) == expected
    mount_table(document, live_places(document, ROOTS))  # raises nothing


def test_without_mounted_roots_nothing_is() -> None:
    document, _ = CASES["Toil's job store"]
    assert live_places(document, [KnownRoot("/shared"), KnownRoot("/ref")]) == {}


def test_which_outputs_need_no_copy() -> None:
    live = {"/d": Live("/shared/d", True, True)}
    for output, expected in (
        (given("/shared/d/", "/d"), True),
        (given("file:///shared/d/a%20b", "/d/a b", "FILE"), True),
        (given("/shared/e", "/d"), False),
        (given("/shared/d/b", "/d/a", "FILE"), False),
        (given("/shared/d", "/d/*.txt", path_prefix="/d/"), True),
        (given("/shared/d/s", "/d/s/*.txt", path_prefix="/d/s"), True),
        (given("/shared/d", "/d/*.txt"), False),
        (given("/shared/d", "/d/*.txt", path_prefix="/d/x"), False),
        (given("/shared/dd", "/dd"), False),
        (given("s3://b/k", "/d/x"), False),
    ):
        assert is_live_output(output, output["path"].rstrip("/"), live) is expected, output


def test_the_plan_of_a_task_with_everything() -> None:
    """Live mounts inside a scratch mount; nothing of them is staged, collected, made or stored."""
    plan = build_plan(
        "t",
        1,
        "tg-x-t-1",
        task(
            given("/shared/js", "/work/js"),
            given("/ref/hg38.fa", "/work/ref/hg38.fa", "FILE"),
            given("/data/in.txt", "/work/in.txt", "FILE"),
            outputs=[
                given("/shared/out", "/work/out"),
                given("/shared/out/r.txt", "/work/out/r.txt", "FILE"),
                given("/data/r.txt", "/work/out/deep/r.txt", "FILE"),
                given("/data/log", "/work/log", "FILE"),
            ],
            executor={"workdir": "/work", "stdout": "/work/js/log"},
        ),
        "token",
        settings=PlanSettings(roots=ROOTS),
    )
    assert {
        (mount.source, mount.target, mount.read_only, mount.directory, mount.host, mount.make) for mount in plan.mounts
    } == {
        ("rw/tmp", "/tmp", False, True, None, False),
        ("rw/work", "/work", False, True, None, False),
        ("live/shared/js", "/work/js", False, True, "/shared/js", False),
        ("live/ref/hg38.fa", "/work/ref/hg38.fa", True, False, "/ref/hg38.fa", False),
        ("live/shared/out", "/work/out", False, True, "/shared/out", True),
    }
    assert [item.path for item in plan.inputs] == ["/work/in.txt"]
    assert [(output.path, output.live) for output in plan.outputs] == [
        ("/work/out", True),
        ("/work/out/r.txt", True),
        ("/work/out/deep/r.txt", False),
        ("/work/log", False),
    ]
    assert (plan.directories, plan.collect) == ([], [])
    assert plan.notes == [
        "/work/js, /work/out: mounted from a file root as it is; what the task writes there is seen at once and stays"
    ]
    assert notes_of({f"/{n}": Live("/x", True, True) for n in "abcde"})[0].startswith("/a, /b, /c and 2 more:")


def test_only_an_agent_that_mounts_the_root_gets_the_task() -> None:
    need = Need(1, 1, 0)
    known = [(root.path, root.writable) for root in ROOTS]

    def agent(name: str, mounted: tuple[tuple[str, bool], ...]) -> AgentRoom:
        return AgentRoom(name, name, Need(9, 9, 9), Need(0, 0, 0), roots=tuple(known), mounted=mounted)

    copying, reading = agent("copying", ()), agent("reading", (("/shared", False), ("/ref", False)))
    mounting = agent("mounting", (("/shared", True), ("/ref", True)))
    for paths, agents, chosen in (
        ((("/shared/x", False),), [copying, reading], None),
        ((("/shared/x", False),), [copying, reading, mounting], "mounting"),
        ((("/ref/x", False),), [copying, reading], "reading"),
        ((("/shared/private/x", True),), [copying], "copying"),
        ((("/data/x", True),), [copying], "copying"),
    ):
        task = Candidate("t", 1, need, paths)
        result = place([task], agents, reserve_after=30, known_roots=known, mount_roots=ROOTS)
        assert [pick.agent_id for pick in result.picks] == ([chosen] if chosen else []), paths
        if chosen is None:
            assert "is mounted (`--root NAME=PATH:mount`)" in result.reasons["t"]
