"""``tesgate demo`` as a newcomer runs it: a process of its own, on each engine that this machine has."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import psutil
import pytest

from tesgate.cli.demo import image, server
from tesgate.cli.demo.engine import find_engine
from tesgate.cli.demo.reads import count_reads, gc_by_chunk
from tesgate.cli.demo.run import CHUNK, EXAMPLES, WITH_STORES, check, prepare, task_of
from tesgate.cli.failure import Failure


def engine_or_skip(runtime: str) -> None:
    try:
        find_engine(runtime, lambda _: None)
    except Failure as failure:
        pytest.skip(failure.sentence)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["docker", "bubblewrap"])
def test_demo(runtime: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(runtime)  # the bed: where it is required and cannot stand, that is a failure
    command = [sys.executable, "-m", "tesgate.cli", "demo", "--data-dir", str(tmp_path), "--runtime", runtime]
    # A setting of the user's own must not reach the demo's gateway.
    environment = {**os.environ, "TESGATE_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the results are right") == len(EXAMPLES) + 1
    assert (tmp_path / "files/results/read_counts.tsv").read_text() == "sample_a\t12000\nsample_b\t8000\n"
    assert len(list((tmp_path / "files/results/sums").iterdir())) == 4
    nothing_is_left(tmp_path)


def nothing_is_left(directory: Path) -> None:
    deadline = time.monotonic() + 30
    while left := [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@contextlib.contextmanager
def kept(directory: Path, until: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A demo that goes on, and its lines up to the one that is wanted; nothing of it is left behind."""
    command = [sys.executable, "-m", "tesgate.cli", "demo", "--data-dir", str(directory), "--keep"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if until in line:
                    break
            yield process, lines
        finally:
            process.kill()
    nothing_is_left(directory)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=40)
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGHUP, 129)])
def test_keep_goes_on_until_it_is_interrupted(number: signal.Signals, code: int, tmp_path: Path) -> None:
    engine_or_skip("auto")
    with kept(tmp_path, "The gateway goes on") as (process, lines):
        (url,) = re.findall(r"^API +(\S+)", "".join(lines), re.MULTILINE)
        assert len(httpx.get(url + "/tasks?state=COMPLETE").json()["tasks"]) == len(EXAMPLES) + 1, lines
        process.send_signal(number)
        assert ended(process)[0] == code, lines


@pytest.mark.slow
def test_keep_ends_with_the_tasks_that_are_interrupted(tmp_path: Path) -> None:
    engine_or_skip("auto")
    with kept(tmp_path, "hello") as (process, _):
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 130
    assert "The gateway is stopped" in said


@pytest.mark.slow
def test_a_gateway_that_ends_by_itself_is_said(tmp_path: Path) -> None:
    engine_or_skip("auto")
    with kept(tmp_path, "The gateway goes on") as (process, _):
        (gateway,) = (
            p
            for p in psutil.process_iter(["cmdline"])
            if {"serve", f"{tmp_path}/gateway"} <= set(p.info["cmdline"] or [])
        )
        gateway.terminate()
        code, said = ended(process)
    assert code == 3
    assert "The gateway ended by itself" in said


@pytest.mark.slow
def test_a_port_that_another_has_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one answers like a gateway; two demos that start at one time meet so."""
    with server.web_server(tmp_path) as other:
        monkeypatch.setattr(server, "_PORT", int(other.rpartition(":")[2]))
        monkeypatch.setattr(server, "_is_free", lambda _: True)
        (tmp_path / "gateway").mkdir(mode=0o700)
        gateway = server.Gateway(home=tmp_path, files=tmp_path, runtime="none", hosts=[], environment={})
        try:
            gateway.start()
            assert not gateway.url.endswith(other)
            assert httpx.get(f"{gateway.url}/ga4gh/tes/v1/service-info").json()["type"]["artifact"] == "tes"
            assert gateway.command.endswith(gateway.url.rpartition(":")[2])
        finally:
            gateway.stop()


def test_results_are_really_checked(tmp_path: Path) -> None:
    files, web = prepare(tmp_path)
    results = files / "results"
    hello = {"logs": [{"logs": [{"stdout": "Hello from a container.\n"}]}]}
    assert check("hello.json", hello, files, web) is None
    assert check("hello.json", {"logs": [{"logs": [{"stdout": ""}]}]}, files, web) == "it said ''"
    assert "missing" in (check("hello.json", {"logs": []}, files, web) or "")

    (results / "read_counts.tsv").write_text("sample_a\t12000\nsample_b\t7999\n")
    assert "7999" in (check("count-reads.json", {}, files, web) or "")

    assert "missing" in (check("split-and-sum.yaml", {}, files, web) or "")
    for name in ("sums", "parts"):
        (results / name).mkdir()
    lines = (files / "sample_b.fastq").read_text().splitlines(keepends=True)
    for index, (reads, gc) in enumerate(gc_by_chunk(files / "sample_b.fastq", CHUNK)):
        (results / f"sums/part_{index}.txt").write_text(f"part_{index}\t{reads}\t{gc}\n")
        (results / f"parts/part_{index}.fastq").write_text("".join(lines[index * CHUNK * 4 : (index + 1) * CHUNK * 4]))
    assert check("split-and-sum.yaml", {}, files, web) is None
    (results / "parts/more").write_text("")
    assert "unexpected" in (check("split-and-sum.yaml", {}, files, web) or "")


def test_data_is_always_the_same(tmp_path: Path) -> None:
    one, two = prepare(tmp_path / "1"), prepare(tmp_path / "2")
    assert (one[0] / "sample_b.fastq").read_bytes() == (two[0] / "sample_b.fastq").read_bytes()
    assert count_reads(one[1] / "sample_a.fastq") == 12_000
    (one[0] / "results" / "old").write_text("")
    prepare(tmp_path / "1")
    assert list((one[0] / "results").iterdir()) == []


def test_tasks_are_filled_in(tmp_path: Path) -> None:
    for name in (*EXAMPLES, WITH_STORES):
        task = task_of(name, files=tmp_path, address="127.0.0.1:1", image="other:1", ftp="127.0.0.1:2")
        assert "DEMO_" not in str(task)
        assert {executor["image"] for executor in task["executors"]} == {"other:1"}


@pytest.mark.parametrize("make", [image.image_tar, lambda: (image._own_tar(), "own")], ids=["best", "own programs"])
def test_image_is_made_of_what_is_here(make: object) -> None:
    assert callable(make)
    content, _ = make()
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names)
    assert {"bin/sh", "bin/awk", "bin/sort", "bin/basename", "tmp", "etc/passwd"} <= set(names)


def test_static_programs_are_told_from_others(tmp_path: Path) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    assert not image.is_static(Path(shell).resolve())
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert not image.is_static(tmp_path / "script")


def test_no_engine_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="start it"):
        find_engine("docker", lambda _: None, socket=str(tmp_path / "none"))
    with pytest.raises(Failure, match="docker, bubblewrap or auto"):
        find_engine("podman", lambda _: None)
