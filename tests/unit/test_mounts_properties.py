"""What holds for the mounts of every task, whatever its paths."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tesgate.model.container_paths import MountError, has_wildcards
from tesgate.model.mounts import check_paths, mount_table
from tesgate.runner.plan import Mount

# Few names, so that paths meet; system directories among them.
NAMES = st.sampled_from(["a", "b", "ab", "work", "opt", "usr", "etc", "home", "tmp", "var", "root", "mnt"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
PATTERNS = st.tuples(PATHS, st.sampled_from(["*", "x*.txt", "?", "*/a", "[ab]"])).map("/".join)
TYPES = st.sampled_from(["FILE", "DIRECTORY"])


@st.composite
def documents(draw: st.DrawFn, paths: st.SearchStrategy[str] = PATHS) -> dict[str, Any]:
    inputs = st.fixed_dictionaries({"path": paths, "type": TYPES, "url": st.just("file:///x")})
    outputs = st.fixed_dictionaries({"path": st.one_of(paths, paths, PATTERNS), "type": TYPES, "url": st.just("u")})
    streams = {name: st.one_of(st.none(), paths) for name in ("workdir", "stdin", "stdout", "stderr")}
    return {
        "inputs": draw(st.lists(inputs, max_size=5)),
        "outputs": draw(st.lists(outputs, max_size=5)),
        "volumes": draw(st.lists(paths, max_size=2)),
        "executors": draw(st.lists(st.fixed_dictionaries(streams), min_size=1, max_size=2)),
    }


def within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def holder(path: str, mounts: list[Mount]) -> Mount | None:
    return next((mount for mount in mounts if within(path, mount.target)), None)


def base(path: str) -> str:
    """The directory that a pattern searches."""
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if has_wildcards(part)), len(parts))
    return "/".join(parts[:first]) or "/"


ODD = st.sampled_from(
    ["a", "work", "x y", ".", "..", "", "tmp", "usr", "proc", ".tesgate", "a*", "[b]", "var", "home", "\0", "t.t"]
)
ODD_PATHS = st.lists(ODD, max_size=4).map(lambda parts: "/" + "/".join(parts))


def refused(check: Any, document: dict[str, Any]) -> str:
    try:
        check(document)
    except MountError as error:
        return str(error)
    return ""


@given(documents() | documents(paths=ODD_PATHS))
@settings(max_examples=200, deadline=None)
def test_a_task_that_is_passed_at_a_glance_would_have_passed(document: dict[str, Any]) -> None:
    assert refused(check_paths, document) == refused(mount_table, document)


@given(documents())
@settings(max_examples=400, deadline=None)
def test_invariants(document: dict[str, Any]) -> None:
    try:
        table = mount_table(document)
    except MountError:
        return
    mounts = table.mounts
    targets = [mount.target for mount in mounts]

    # No target twice, and none inside another: no mount hides another's content.
    assert len(set(targets)) == len(targets)
    assert not [(one, two) for one in targets for two in targets if one != two and within(one, two)]
    for mount in mounts:
        assert mount.source == ("ro" if mount.read_only else "rw") + mount.target
        assert ".." not in mount.source.split("/")
        assert not mount.directory or mount.target not in (
            "/usr",
            "/etc",
            "/opt",
            "/home",
            "/var",
            "/root",
            "/usr/a",
            "/etc/a",
        )
        assert mount.directory or mount.target in {item["path"] for item in document["inputs"]}

    # Every input lies in a mount; what the task can write to is a private copy, everything else it cannot write to.
    assert len(table.places) == len(document["inputs"])
    for item, place in zip(document["inputs"], table.places, strict=True):
        held = holder(item["path"], mounts)
        assert held is not None
        assert place.place == held.source[:2] + item["path"]
        assert place.writable is not held.read_only

    # Every output is written below a writable mount, or collected, and no collected directory holds a mount of ours.
    written = [item["path"] for item in document["outputs"]]
    written += [executor[name] for executor in document["executors"] for name in ("stdout", "stderr") if executor[name]]
    for path in written:
        held = holder(base(path), mounts)
        if held is None:
            assert any(path == item.path or within(path, item.path) for item in table.collect)
        else:
            assert not held.read_only
    for entry in table.collect:
        assert entry.pattern == has_wildcards(entry.path)
        assert not entry.pattern or holder(base(entry.path), mounts) is None
        assert not [mount for mount in mounts if not mount.read_only and within(mount.target, entry.path)]

    for volume in document["volumes"]:
        held = holder(volume, mounts)
        assert held is not None
        assert not held.read_only
        assert (
            held.target == volume
            or "rw" + volume in table.directories
            or volume in {item["path"] for item in document["inputs"]}
        )
    for directory in table.directories:
        held = holder(directory[2:], mounts)
        assert held is not None
        assert not held.read_only
        assert held.target != directory[2:]
