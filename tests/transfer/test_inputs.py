"""Local and inline inputs: what is staged, with which modes, and what is refused."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesgate.runner.plan import Input, Output, UrlPolicy
from tesgate.runner.report import Root
from tesgate.runner.transfer import copying
from tesgate.runner.transfer.faults import PathRefused
from tesgate.runner.transfer.paths import Roots
from tesgate.runner.transfer.stage import Stager, StagingError, unsupported
from tests.transfer.conftest import Bed

ROOT = os.geteuid() == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def refused(bed: Bed, url: str, match: str, **more: str) -> StagingError:
    with pytest.raises(StagingError, match=match) as caught:
        bed.stage(url, **more)
    assert not (bed.attempt / "ro" / "data" / "thing").exists()
    return caught.value


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}", "file:{}", "FILE://{}"])
def test_a_file_in_every_spelling(bed: Bed, form: str) -> None:
    (bed.root / "in.txt").write_text("hello")
    assert bed.stage(form.format(bed.root / "in.txt")).read_text() == "hello"


def test_plain_paths_are_literal_and_file_urls_are_decoded_once(bed: Bed) -> None:
    for name in ("a b", "a%20b", "a%2520b", "ü?#x"):
        (bed.root / name).write_text(name)
    assert bed.stage(f"{bed.root}/a b").read_text() == "a b"
    assert bed.stage(f"{bed.root}/a%20b").read_text() == "a%20b"
    assert bed.stage(f"file://{bed.root}/a%20b").read_text() == "a b"
    assert bed.stage(f"file://{bed.root}/a b").read_text() == "a b"
    assert bed.stage(f"file://{bed.root}/a%2520b").read_text() == "a%20b"
    assert bed.stage(f"file://{bed.root}/ü?#x").read_text() == "ü?#x"
    assert bed.stage(f"file://{bed.root}/{quote('ü?#x')}").read_text() == "ü?#x"
    assert bed.stage(f"{bed.root}//./a b/").read_text() == "a b"


def test_what_lies_outside_is_refused(bed: Bed) -> None:
    for place in (bed.outside, bed.sibling):
        (place / "x").write_text("secret")
    refused(bed, f"{bed.root}/../secret/x", r"'\.\.' component")
    refused(bed, f"file://{bed.root}/%2e%2e/secret/x", r"'\.\.' component")
    refused(bed, f"file://{bed.root}/..%2Fsecret/x", r"'\.\.' component")
    refused(bed, f"{bed.sibling}/x", "outside the agent's roots")
    refused(bed, f"{bed.outside}/x", "outside the agent's roots")
    refused(bed, f"{bed.root}/x\0y", "NUL")
    refused(bed, f"file://{bed.root}/x%00y", "NUL")
    refused(bed, f"file://otherhost{bed.root}/x", "names the host 'otherhost'")
    refused(bed, "file:relative", "not an absolute path")


def test_links_inside_the_root_are_followed(bed: Bed) -> None:
    (bed.root / "d").mkdir()
    (bed.root / "d" / "real").write_text("real")
    (bed.root / "relative").symlink_to("d/../d/real")
    (bed.root / "absolute").symlink_to(bed.root / "d" / "real")
    (bed.root / "directory").symlink_to("d")
    (bed.root / "chain").symlink_to("relative")
    for name in ("relative", "absolute", "directory/real", "chain"):
        assert bed.stage(f"{bed.root}/{name}").read_text() == "real"


def test_links_that_lead_out_are_refused(bed: Bed) -> None:
    (bed.outside / "x").write_text("secret")
    (bed.sibling / "x").write_text("secret")
    (bed.root / "absolute").symlink_to(bed.outside / "x")
    (bed.root / "relative").symlink_to("../secret/x")
    (bed.root / "directory").symlink_to("../secret")
    (bed.root / "sibling").symlink_to(f"{bed.root}-sibling/x")
    (bed.root / "dots").symlink_to(f"{bed.root}/../secret/x")
    (bed.root / "loop").symlink_to("loop")
    for name in ("absolute", "relative", "directory/x", "sibling", "dots"):
        error = refused(bed, f"{bed.root}/{name}", "leads out of")
        assert not error.transient
    refused(bed, f"{bed.root}/loop", "too many symbolic links")


def test_a_link_into_another_root_is_followed(bed: Bed) -> None:
    (bed.sibling / "x").write_text("other")
    (bed.root / "link").symlink_to(bed.sibling / "x")
    bed.extra_roots.append(Root("other", str(bed.sibling), writable=False))
    assert bed.stage(f"{bed.root}/link").read_text() == "other"


def test_a_root_that_is_itself_a_link_is_trusted(bed: Bed) -> None:
    (bed.outside / "x").write_text("mine")
    (bed.base / "alias").symlink_to(bed.outside)
    bed.extra_roots.append(Root("alias", str(bed.base / "alias")))
    assert bed.stage(f"{bed.base}/alias/x").read_text() == "mine"
    assert bed.stage(f"{bed.outside}/x").read_text() == "mine"


def test_missing_and_special_inputs_are_refused_for_good(bed: Bed) -> None:
    error = refused(bed, f"file://{bed.root}/x", f"input file://{bed.root}/x does not exist; ")
    assert not error.transient
    (bed.root / "f").write_text("x")
    refused(bed, f"{bed.root}/f/x", "does not exist")
    refused(bed, f"{bed.root}/f", "DIRECTORY in the task but not on disk", type="DIRECTORY")
    os.mkfifo(bed.root / "fifo")
    refused(bed, f"{bed.root}/fifo", "neither a file nor a directory")
    with pytest.raises(StagingError, match="neither url nor content"):
        bed.stage_in(Input("/x", "ro/x"))


def test_a_directory_comes_with_all_below_it(bed: Bed) -> None:
    deep = bed.root / "d" / "sub" / "deep"
    deep.mkdir(parents=True)
    (bed.root / "d" / "empty").mkdir()
    (deep / "x y").write_text("deep")
    (bed.root / "d" / "link").symlink_to("sub/deep/x y")
    (bed.root / "d" / "linked").symlink_to("sub/deep")
    (bed.root / "d" / "dangling").symlink_to("nowhere")
    (bed.root / "d" / "up").symlink_to("..")
    (bed.root / "d" / ".tesgate-tg-other-1.part").write_text("half")
    os.mkfifo(bed.root / "d" / "fifo")
    for kind, url in (("DIRECTORY", f"file://{bed.root}/d/"), ("FILE", f"{bed.root}/d")):
        staged = bed.stage(url, type=kind)
        assert bed.tree(staged) == {
            "empty": None,
            "link": "deep",
            "linked": None,
            "linked/x y": "deep",
            "sub": None,
            "sub/deep": None,
            "sub/deep/x y": "deep",
            "up": None,
        }
        assert any("dangling" in note for note in bed.notes)
        assert any("fifo" in note for note in bed.notes)
        assert any("repeats a directory" in note for note in bed.notes)


def test_a_link_out_of_an_input_directory_fails_it(bed: Bed) -> None:
    (bed.outside / "x").write_text("secret")
    (bed.root / "d").mkdir()
    (bed.root / "d" / "evil").symlink_to(bed.outside / "x")
    with pytest.raises(StagingError, match="holds 'evil', which leads out"):
        bed.stage(f"{bed.root}/d", type="DIRECTORY")


def test_read_only_inputs_are_links_and_writable_ones_are_copies(bed: Bed) -> None:
    original = bed.root / "in.txt"
    original.write_text("original")
    assert bed.stage(f"{original}").samefile(original) or copying_clones(bed)
    private = bed.stage(f"{original}", writable=True)
    assert not private.samefile(original)
    private.write_text("changed")
    assert original.read_text() == "original"
    assert mode(private) == 0o666


def copying_clones(bed: Bed) -> bool:
    with open(bed.root / "c1", "wb") as a, open(bed.root / "c2", "wb") as b:
        return copying.Copier().clone(a.fileno(), b.fileno())


def test_a_read_only_input_below_rw_is_never_linked(bed: Bed) -> None:
    (bed.root / "in.txt").write_text("x")
    bed.stage_in(Input("/data/in", "rw/data/in", url=f"{bed.root}/in.txt"))
    assert not (bed.rw / "data" / "in").samefile(bed.root / "in.txt")


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o700, 0o744, 0o4755, 0o2755])
def test_what_not_everybody_can_read_or_run_is_copied(bed: Bed, bits: int) -> None:
    original = bed.root / "in.sh"
    original.write_text("x")
    original.chmod(bits)
    staged = bed.stage(f"{original}")
    assert not staged.samefile(original)
    assert mode(staged) == (0o755 if bits & 0o111 else 0o644)
    assert mode(original) == bits


def test_modes_of_what_is_staged(bed: Bed) -> None:
    (bed.root / "d").mkdir(mode=0o700)
    (bed.root / "d" / "run.sh").write_text("x")
    (bed.root / "d" / "run.sh").chmod(0o700)
    staged = bed.stage(f"{bed.root}/d", writable=True)
    assert (mode(staged), mode(staged / "run.sh"), mode(staged.parent)) == (0o777, 0o777, 0o777)
    staged = bed.stage(f"{bed.root}/d")
    assert (mode(staged), mode(staged / "run.sh"), mode(staged.parent)) == (0o755, 0o755, 0o755)


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_staged_files_belong_to_the_containers_user(bed: Bed) -> None:
    (bed.root / "in").write_text("x")
    (bed.root / "in").chmod(0o600)
    staged = bed.stage(f"{bed.root}/in", owner=(4242, 4243), writable=True)
    assert (staged.stat().st_uid, staged.stat().st_gid) == (4242, 4243)
    assert staged.parent.stat().st_uid == 4242
    assert bed.stage(f"{bed.root}/in", owner=(4242, 4243)).stat().st_uid == 4242
    assert (bed.root / "in").stat().st_uid == os.geteuid()


def test_inline_content_is_exact_and_wins(bed: Bed) -> None:
    text = "ä\r\n\0€\U0001f600 no newline at the end"
    bed.stage_in(
        Input("/a", "ro/a", content=text, url="file:///does/not/exist"),
        Input("/b", "rw/b", content="", writable=True),
        Input("/c d", "rw/c d/e", content="x", type="DIRECTORY", writable=True),
    )
    assert (bed.attempt / "ro" / "a").read_bytes() == text.encode()
    assert mode(bed.attempt / "ro" / "a") == 0o644
    assert (bed.rw / "b").read_bytes() == b""
    assert mode(bed.rw / "b") == 0o666
    with pytest.raises(StagingError, match="surrogate"):
        bed.stage_in(Input("/a", "ro/a", content="\ud800"))


def test_a_file_inside_a_directory_input_wins(bed: Bed) -> None:
    (bed.root / "d").mkdir()
    (bed.root / "d" / "x").write_text("of the directory")
    (bed.root / "d" / "y").write_text("y")
    bed.stage_in(
        Input("/d/x", "ro/d/x", content="of its own"), Input("/d", "ro/d", url=f"{bed.root}/d", type="DIRECTORY")
    )
    assert bed.tree(bed.attempt / "ro" / "d") == {"x": "of its own", "y": "y"}
    assert (bed.root / "d" / "x").read_text() == "of the directory"


def test_staging_again_after_a_crash_overwrites(bed: Bed) -> None:
    (bed.root / "in").write_text("new")
    place = bed.attempt / "ro" / "data" / "thing"
    place.parent.mkdir(parents=True)
    place.write_text("half of something older")
    assert bed.stage(f"{bed.root}/in").read_text() == "new"
    assert bed.stage(f"{bed.root}/in").read_text() == "new"


@pytest.mark.parametrize("place", ["/etc/x", "ro/../../x", "steps/0/x", "ro", "x", "plan.json"])
def test_places_outside_rw_and_ro_are_refused(bed: Bed, place: str) -> None:
    with pytest.raises(StagingError, match=r"place|\.\."):
        bed.stage_in(Input("/x", place, content="x"))


def test_two_inputs_at_one_place_are_refused(bed: Bed) -> None:
    with pytest.raises(StagingError, match="two inputs"):
        bed.stage_in(Input("/x", "ro/x", content="1"), Input("/x", "ro//x", content="2"))


UNSERVED = ["s3://b/k", "gs://b/k", "az://c/b", "drs://h/1", "ftp://h/f", "ftps://h/f", "sftp://h/f", "htsget://h/1"]


@pytest.mark.parametrize("url", [*UNSERVED, "_:0a1b", "rel/path", "x:y"])
def test_what_is_not_served_is_said_in_one_sentence(bed: Bed, url: str) -> None:
    sentence = unsupported(url)
    assert sentence
    assert sentence.endswith(".")
    refused(bed, url, "cannot be staged")
    with pytest.raises(StagingError, match="cannot be stored"):
        bed.stager().check([], [Output("/x", url)])


def test_check_before_anything_runs(bed: Bed) -> None:
    bed.extra_roots.append(Root("ro", str(bed.sibling), writable=False))
    stager = bed.stager()
    stager.check([Input("/x", "ro/x", url=f"{bed.root}/x")], [Output("/x", f"{bed.root}/x")])
    for url, match in (
        (f"{bed.outside}/x", "outside"),
        (f"{bed.sibling}/x", "read-only"),
        ("https:///x", "names no host"),
        (f"{bed.root}/../x", r"\.\."),
    ):
        with pytest.raises(StagingError, match=match):
            stager.check([], [Output("/x", url)])
    with pytest.raises(StagingError, match="DIRECTORY, which http"):
        stager.check([Input("/x", "ro/x", url="https://u:p@h/x?q", type="DIRECTORY")], [])


@pytest.mark.parametrize("missing", ["copy_file_range", "copy_file_range sendfile"])
def test_copies_without_the_kernels_help(bed: Bed, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def unable(*arguments: object) -> int:
        raise OSError(18, "no")

    for name in missing.split():
        monkeypatch.setattr(os, name, unable)
    data = os.urandom(3 << 20) + b"tail"
    (bed.root / "in").write_bytes(data)
    assert bed.stage(f"{bed.root}/in", writable=True).read_bytes() == data


def test_a_file_that_keeps_growing_is_not_staged_half(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    (bed.root / "in").write_text("x")
    real = os.copy_file_range

    def meanwhile(*arguments: int) -> int:
        count = real(*arguments)
        with open(bed.root / "in", "a") as file:
            file.write("y")
        return min(count, 1) if arguments[3] == 0 else 0

    monkeypatch.setattr(os, "copy_file_range", meanwhile)
    monkeypatch.setattr(os, "sendfile", lambda *arguments: 0)
    with pytest.raises(StagingError, match="kept changing"):
        bed.stage(f"{bed.root}/in", writable=True)


def test_passing_faults_are_tried_again(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    (bed.root / "in").write_text("x")
    real, faults = os.copy_file_range, [5, 116]

    def shaky(*arguments: int) -> int:
        if faults:
            raise OSError(faults.pop(), "shaky")
        return real(*arguments)

    monkeypatch.setattr(os, "copy_file_range", shaky)
    assert bed.stage(f"{bed.root}/in", writable=True).read_text() == "x"
    assert faults == []


def test_a_full_disk_is_worth_another_attempt(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "full")

    (bed.root / "in").write_text("x")
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(StagingError, match="free some space") as caught:
        bed.stage(f"{bed.root}/in", writable=True)
    assert caught.value.transient


def test_a_cancel_stops_a_copy_at_the_next_chunk(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    (bed.root / "in").write_bytes(bytes(1 << 20))
    calls, started = [], threading.Event()

    def endless(*arguments: int) -> int:
        calls.append(1)
        started.set()
        return 1

    monkeypatch.setattr(os, "copy_file_range", endless)

    async def run() -> float:
        item = Input("/x", "rw/x", url=f"{bed.root}/in", writable=True)
        async with anyio.create_task_group() as group:
            group.start_soon(bed.stager().stage_in, [item], str(bed.attempt))
            await anyio.to_thread.run_sync(started.wait)
            group.cancel_scope.cancel()
            begun = anyio.current_time()
        return anyio.current_time() - begun

    assert anyio.run(run) < 1
    after = len(calls)
    assert threading.active_count() < 50
    assert len(calls) == after


SEGMENTS = ["a", "b", "c", "..", ".", "", "link", "out", "%2e%2e", "a b"]


@settings(max_examples=300, deadline=None)
@given(
    path=st.lists(st.sampled_from(SEGMENTS), max_size=6),
    links=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "c"]), max_size=2),
            st.sampled_from(["link", "out"]),
            st.booleans(),
            st.lists(st.sampled_from(["a", "b", "..", "link", "out"]), min_size=1, max_size=4),
        ),
        max_size=4,
    ),
)
def test_nothing_outside_is_ever_found(path: list[str], links: list[tuple[list[str], str, bool, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        base = Path(os.path.realpath(directory))
        root = base / "root"
        for parent in ("root/a/b", "root/b/c", "root/c", "a/b", "b", "root-a/b"):
            (base / parent).mkdir(parents=True, exist_ok=True)
        for parts, name, absolute, target in links:
            try:
                place = root.joinpath(*parts, name)
                place.symlink_to((f"{base}/root/" if absolute else "") + "/".join(target))
            except OSError:
                continue
        text = f"{root}/" + "/".join(path)
        roots = Roots([Root("r", str(root))])
        real = os.path.realpath(text)
        inside = real == str(root) or real.startswith(f"{root}/")
        try:
            with roots.find(text) as found:
                reached = "/".join([found.root.real, *found.parts])
                assert found.info is not None
                assert (found.info.st_dev, found.info.st_ino) == (os.stat(text).st_dev, os.stat(text).st_ino)
            assert inside
            assert reached == real
        except (FileNotFoundError, NotADirectoryError):
            assert not os.path.exists(text)
        except PathRefused:
            assert links or ".." in path
        try:
            with roots.find(text, write=True) as found:
                place = "/".join([found.root.real, *found.parts])
                holder = place if found.missing or not found.parts else os.path.dirname(place)
                assert holder == os.path.realpath(holder)
                assert f"{holder}/".startswith(f"{root}/")
                assert os.path.samestat(os.fstat(found.parent), os.stat(holder))
        except (PathRefused, NotADirectoryError):
            return


def test_policy_entries_are_checked_when_a_stager_is_made(bed: Bed) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        Stager(roots=[], policy=UrlPolicy(allowed_hosts=["http://x"]))


def test_what_the_task_may_write_is_copied_wherever_it_lies(bed: Bed) -> None:
    (bed.root / "in").write_text("x")
    bed.stage_in(Input("/data/in", "ro/data/in", url=f"{bed.root}/in", writable=True))
    assert not (bed.attempt / "ro/data/in").samefile(bed.root / "in")


def test_a_copy_that_ends_early_is_noticed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.copy_file_range
    (bed.root / "in").write_text("a whole file")

    def short(*arguments: int) -> int:
        return real(*arguments[:2], 3, *arguments[3:]) if arguments[3] == 0 else 0

    monkeypatch.setattr(os, "copy_file_range", short)
    with pytest.raises(StagingError, match="kept changing"):
        bed.stage(f"{bed.root}/in", writable=True)
