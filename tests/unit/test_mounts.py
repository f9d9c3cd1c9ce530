"""The table of mounts: every shape of path that a client has been seen to send, and some that none should."""

from __future__ import annotations

from typing import Any

import pytest

from tesgate.model.container_paths import MountError, has_wildcards, normal_path
from tesgate.model.mounts import MANY_INPUTS, MountTable, Place, check_paths, mount_table
from tesgate.runner.transfer import patterns


def task(
    inputs: list[Any] | None = None,
    outputs: list[Any] | None = None,
    volumes: list[str] | None = None,
    **executor: Any,
) -> dict[str, Any]:
    """A document; an input or output given as text is a FILE, or a DIRECTORY where it ends in a slash."""

    def item(value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        return {"path": value, "url": "file:///x" + value, "type": "DIRECTORY" if value.endswith("/") else "FILE"}

    return {
        "inputs": [item(value) for value in inputs or []],
        "outputs": [item(value) for value in outputs or []],
        "volumes": volumes,
        "executors": [{"image": "busybox", "command": ["true"], **executor}],
    }


def shape(table: MountTable) -> tuple[list[str], list[str], list[str], list[str]]:
    """Mounts as text (``rw``/``ro``, ``/`` for a directory), places, collected paths, directories; without /tmp."""
    mounts = [
        mount.source[:2] + " " + mount.target + ("/" if mount.directory else "")
        for mount in table.mounts
        if mount.target != "/tmp"
    ]
    for mount in table.mounts:
        assert mount.source == ("ro" if mount.read_only else "rw") + mount.target
    return mounts, [place.place for place in table.places], [item.path for item in table.collect], table.directories


CASES: dict[str, tuple[dict[str, Any], list[str], list[str], list[str], list[str]]] = {
    # name: (document, mounts, places of the inputs, collected, directories)
    "nothing": (task(), [], [], [], []),
    "nulls everywhere (Pulsar)": (
        {"inputs": None, "outputs": None, "volumes": None, "executors": [{"workdir": None, "stdout": None}]},
        [],
        [],
        [],
        [],
    ),
    "input file": (task(["/data/in.bam"]), ["ro /data/in.bam"], ["ro/data/in.bam"], [], []),
    "input directory": (task(["/ref/"]), ["ro /ref/"], ["ro/ref"], [], []),
    "input file at the top": (task(["/in.txt"]), ["ro /in.txt"], ["ro/in.txt"], [], []),
    "the same input twice": (task(["/a/x", "/a/x"]), ["ro /a/x"], ["ro/a/x", "ro/a/x"], [], []),
    "input among system files": (
        task(["/etc/app.conf", "/usr/local/bin/x", "/root/.netrc"]),
        ["ro /etc/app.conf", "ro /root/.netrc", "ro /usr/local/bin/x"],
        ["ro/etc/app.conf", "ro/usr/local/bin/x", "ro/root/.netrc"],
        [],
        [],
    ),
    "file inside an input directory": (
        task(["/ref/", "/ref/extra.txt"]),
        ["ro /ref/"],
        ["ro/ref", "ro/ref/extra.txt"],
        [],
        [],
    ),
    "output file": (task(outputs=["/out/r.txt"]), ["rw /out/"], [], [], []),
    "output file under /tmp": (task(outputs=["/tmp/a/r.txt"]), [], [], [], ["rw/tmp/a"]),
    "output file at the top": (task(outputs=["/r.txt"]), [], [], ["/r.txt"], []),
    "pattern at the top": (task(outputs=["/r*.txt"]), [], [], ["/r*.txt"], []),
    "output file in the image's directories": (
        task(outputs=["/usr/src/app/r.txt", "/opt/conda/r.txt", "/root/r.txt", "/home/u/r.txt", "/var/lib/x/r"]),
        [],
        [],
        ["/home/u/r.txt", "/opt/conda/r.txt", "/root/r.txt", "/usr/src/app/r.txt", "/var/lib/x/r"],
        [],
    ),
    "deep enough": (
        task(outputs=["/home/u/p/r.txt", "/var/lib/cwl/stg1/r", "/mnt/r", "/var/tmp/r"]),
        ["rw /home/u/p/", "rw /mnt/", "rw /var/lib/cwl/stg1/", "rw /var/tmp/"],
        [],
        [],
        [],
    ),
    "output directory": (task(outputs=["/out/"]), ["rw /out/"], [], [], []),
    "output directory that the task names in /opt": (task(outputs=["/opt/res/"]), ["rw /opt/res/"], [], [], []),
    "output directory that is the image's": (task(outputs=["/opt/"]), [], [], ["/opt"], []),
    "outputs inside such a directory": (
        task(outputs=["/home/", "/home/a/b/r.txt", "/home/a/x/"]),
        [],
        [],
        ["/home"],
        [],
    ),
    "wildcards": (task(outputs=["/out/a/*/x_?.txt"]), ["rw /out/a/"], [], [], []),
    "braces beside wildcards": (task(outputs=["/out/{a,b}/*.txt"]), ["rw /out/"], [], [], []),
    "braces alone are a name": (task(outputs=["/out/{a}/x.txt"]), ["rw /out/{a}/"], [], [], []),
    "pattern among system files": (task(outputs=["/usr/share/app/*.txt"]), [], [], ["/usr/share/app/*.txt"], []),
    "a bracket, complete or not": (task(outputs=["/a/x[1].txt", "/opt/[/x"]), ["rw /a/"], [], ["/opt/[/x"], []),
    "quoted wildcards are a name": (
        task(outputs=[r"/out/\*/x", r"/o/a\?/*"]),
        ["rw /o/a?/", r"rw /out/\*/"],
        [],
        [],
        [],
    ),
    "a FILE output at the top that is a directory": (
        task(["/a/x"], ["/a", "/a/b"]),
        ["rw /a/"],
        ["rw/a/x"],
        [],
        [],
    ),
    "two outputs with one path": (task(outputs=["/out/r", "/out/r"]), ["rw /out/"], [], [], []),
    "two outputs with one path, collected": (task(outputs=["/r", "/r"]), [], [], ["/r"], []),
    "directory output and file in it (cwl-tes)": (
        task(
            ["/var/lib/cwl/stg1/in.txt"],
            ["/uQMmjL/md5", "/uQMmjL/"],
            workdir="/uQMmjL",
            stdout="/uQMmjL/md5",
            env={"HOME": "/uQMmjL", "TMPDIR": "/tmp"},
        ),
        ["rw /uQMmjL/", "ro /var/lib/cwl/stg1/in.txt"],
        ["ro/var/lib/cwl/stg1/in.txt"],
        [],
        [],
    ),
    "Nextflow": (
        task(
            ["/work/.command.sh", "/work/.command.run", "/home/u/p/bin/hello.sh", "/work/b.txt"],
            ["/work/.exitcode", "/work/b.n", "/work/part_*.txt", "/work/d_b/"],
            workdir="/work",
        ),
        ["rw /work/", "ro /home/u/p/bin/hello.sh"],
        ["rw/work/.command.sh", "rw/work/.command.run", "ro/home/u/p/bin/hello.sh", "rw/work/b.txt"],
        [],
        ["rw/work/d_b"],
    ),
    "Pulsar": (task(volumes=["/pulsar_staging/"], workdir="/"), ["rw /pulsar_staging/"], [], [], []),
    "Snakemake": (
        task(["/tmp/run_snakemake.sh"], workdir="/tmp"),
        [],
        ["rw/tmp/run_snakemake.sh"],
        [],
        [],
    ),
    "Toil's job store": (task(["/shared/js/"]), ["ro /shared/js/"], ["ro/shared/js"], [], []),
    "volume and the same output directory": (task(outputs=["/v/"], volumes=["/v"]), ["rw /v/"], [], [], []),
    "volume inside an output directory": (
        task(outputs=["/out/"], volumes=["/out/tmp"]),
        ["rw /out/"],
        [],
        [],
        ["rw/out/tmp"],
    ),
    "output inside a volume": (task(outputs=["/v/a/r"], volumes=["/v"]), ["rw /v/"], [], [], ["rw/v/a"]),
    "volume that the task names in /opt": (task(volumes=["/opt/shared"]), ["rw /opt/shared/"], [], [], []),
    "changed in place": (task(["/data/x"], ["/data/x"]), ["rw /data/"], ["rw/data/x"], [], []),
    "changed in place among system files": (
        task(["/etc/app.conf"], ["/etc/app.conf"]),
        ["rw /etc/app.conf"],
        ["rw/etc/app.conf"],
        [],
        [],
    ),
    "output beside an input": (
        task(["/data/x", "/data/sub/y"], ["/data/r"]),
        ["rw /data/"],
        ["rw/data/x", "rw/data/sub/y"],
        [],
        [],
    ),
    "output in an input directory": (
        task(["/ref/", "/ref/x"], ["/ref/idx/r"]),
        ["rw /ref/"],
        ["rw/ref", "rw/ref/x"],
        [],
        ["rw/ref/idx"],
    ),
    "output in an input directory in /opt": (
        task(["/opt/ref/"], ["/opt/ref/r"]),
        ["rw /opt/ref/"],
        ["rw/opt/ref"],
        [],
        [],
    ),
    "input directory that is an output": (task(["/d/"], ["/d/"]), ["rw /d/"], ["rw/d"], [], []),
    "volume in an input directory": (task(["/ref/"], volumes=["/ref/v"]), ["rw /ref/"], ["rw/ref"], [], ["rw/ref/v"]),
    "stdout among outputs": (
        task(outputs=["/o/out"], stdout="/o/out", stderr="/e/err"),
        ["rw /e/", "rw /o/"],
        [],
        [],
        [],
    ),
    "stdout that the container has": (task(stdout="/dev/null", stderr="/dev/stderr"), [], [], [], []),
    "stdout in the image's directories": (task(stdout="/opt/app/log"), [], [], ["/opt/app/log"], []),
    "workdir of the image": (task(workdir="/app"), [], [], [], []),
    "workdir of the image, deep": (
        task(["/usr/src/app/c"], workdir="/usr/src/app"),
        ["ro /usr/src/app/c"],
        ["ro/usr/src/app/c"],
        [],
        [],
    ),
    "workdir above inputs": (task(["/w/in/a"], workdir="/w"), ["rw /w/"], ["rw/w/in/a"], [], []),
    "workdir in a volume": (task(volumes=["/v"], workdir="/v/w"), ["rw /v/"], [], [], ["rw/v/w"]),
    "workdir in an input directory": (task(["/src/"], workdir="/src/a"), ["rw /src/"], ["rw/src"], [], ["rw/src/a"]),
    "slashes": (
        task(["//data//in/./x"], ["/out//r/"], workdir="/out/"),
        ["rw /out/", "ro /data/in/x"],
        ["ro/data/in/x"],
        [],
        ["rw/out/r"],
    ),
    "similar names are not nested": (
        task(["/out2/x"], ["/out/r", "/out-1/r"]),
        ["rw /out/", "rw /out-1/", "ro /out2/x"],
        ["ro/out2/x"],
        [],
        [],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    document, mounts, places, collect, directories = CASES[name]
    assert shape(mount_table(document)) == (mounts, places, collect, directories)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (task(["/a/../b"]), "inputs[0].path"),
        (task(outputs=["/out/../etc/passwd"]), "outputs[0].path"),
        (task(["data/x"]), "absolute"),
        (task([{"url": "file:///x"}]), "missing"),
        (task(["/a\0b"]), "NUL"),
        (task(["/.tesgate/exec"]), "reserved"),
        (task(workdir="/.tesgate"), "reserved"),
        (task(stdin="in.txt"), "executors[0].stdin"),
        (task(workdir="work"), "executors[0].workdir"),
        (task(["/proc/x"]), "nothing can be put"),
        (task(["/"]), "nothing can be put"),
        (task(["/etc/"]), "belongs to the image"),
        (task(["/usr/lib/"]), "belongs to the image"),
        (task(["/usr"]), "is a directory in every container"),
        (task(["/tmp"]), "is a directory in every container"),
        (task([{"path": "/a", "content": "1"}, {"path": "/a", "content": "2"}]), "earlier input"),
        (task(outputs=["/"]), "whole container"),
        (task(outputs=["/**/x"]), "whole container"),
        (task(outputs=["/dev/shm/x"]), "nothing can be stored"),
        (task(outputs=["/t*"]), "'/tmp'"),
        (task(outputs=["/opt/"], volumes=["/opt/v"]), "'/opt/v'"),
        (task(["/opt/ref/"], ["/opt/", "/opt/ref/r"]), "'/opt/ref'"),
        (task(["/opt/x"], ["/opt/", "/opt/x"]), "in place"),
        *((task(volumes=[path]), f"volumes[0]: {path.rstrip('/') or '/'!r}") for path in
          ("/", "/usr", "/usr/local/lib/", "/bin", "/etc", "/etc/ssl", "/lib64", "/var", "/var/lib",
           "/opt", "/root", "/home", "/run", "/srv", "/dev/shm", "/proc", "/boot/x")),
    ],
)  # fmt: skip
def test_refused_with_a_sentence(document: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MountError) as caught:
        check_paths(document)
    assert sentence in str(caught.value)


def test_tmp_is_always_there_and_everybodys() -> None:
    (mount,) = mount_table(task()).mounts
    assert (mount.source, mount.target, mount.mode, mount.read_only) == ("rw/tmp", "/tmp", 0o1777, False)


def test_many_inputs_of_one_directory_are_one_mount() -> None:
    paths = [f"/data/{index}" for index in range(MANY_INPUTS + 1)]
    mounts, places, _, _ = shape(mount_table(task(paths)))
    assert mounts == ["rw /data/"]
    assert places[0] == "rw/data/0"
    assert len(shape(mount_table(task(paths[1:])))[0]) == MANY_INPUTS


def test_many_inputs_in_a_system_directory_stay_single() -> None:
    mounts, _, _, _ = shape(mount_table(task([f"/usr/share/x/{index}" for index in range(MANY_INPUTS + 1)])))
    assert len(mounts) == MANY_INPUTS + 1


def test_many_inputs_inside_an_input_directory_make_it_writable() -> None:
    table = mount_table(task(["/ref/", *(f"/ref/many/{index}" for index in range(MANY_INPUTS + 1))]))
    assert shape(table)[0] == ["rw /ref/"]
    assert table.places[0] == Place("rw/ref", True)


def test_thousands_of_paths_take_no_time() -> None:
    document = task([f"/in/{n}/{m}/x" for n in range(60) for m in range(60)], [f"/out/{n}/x" for n in range(3000)])
    assert len(mount_table(document).mounts) == 3600 + 3000 + 1


@pytest.mark.parametrize(
    "path", ["/a", "/a/*", "/a?", "/[ab]", "/[", "/]", r"/\*", r"/\[a]", "/[!a]", "/[]]", "/[]", "/{a,b}"]
)
def test_patterns_are_told_as_the_runner_tells_them(path: str) -> None:
    assert has_wildcards(path) == patterns.has_wildcards(path)


def test_normal_path_keeps_the_root() -> None:
    assert normal_path("//", "x") == "/"
