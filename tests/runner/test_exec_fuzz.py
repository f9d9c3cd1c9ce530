"""tesgate-exec under the address and undefined-behaviour sanitizers: its corpus, and mutations of it by a seed.

``FUZZ_RUNS`` and ``FUZZ_SEED`` go on where the suite stops. Commands are from a list of harmless ones, and every path
lies in a directory of the test: nothing that a mutation can say reaches further.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.beds import is_required

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="tesgate-exec runs on Linux"),
    pytest.mark.timeout(300),
]

SOURCES = Path(__file__).resolve().parents[2] / "src/tesgate/runner/exec"
CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "corpus/exec.json").read_text())
RUNS = int(os.environ.get("FUZZ_RUNS", "60"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
SANITIZER = 99
ENDINGS = {0, 1, 64, 74, 75, 124, 125, 126, 127, 128 + 9, 128 + 15}

OPTIONS = ["--tail", "--timeout-ms", "--grace-ms", "--copy-stdout", "--stdin", "--stdout", "--stderr", "--workdir"]
NUMBERS = [
    "0",
    "1",
    "10",
    "4096",
    "16777216",
    "16777217",
    "-1",
    "",
    "x",
    "9" * 30,
    "+5",
    " 7",
    "0x10",
    "2305843009213693952",
]
PATHS = [
    "in",
    "out",
    "same",
    "dir",
    "deep/er/x",
    "link",
    "loop",
    "fifo",
    "n" * 255,
    "n" * 256,
    "p/" * 2500,
    "",
    "%s%n",
    "a b\n\u00fc",
]
COMMANDS = [
    ["/bin/true"], ["/bin/false"], ["/bin/echo", "%n%s", "x" * 5000], ["no-such"], [""], ["/"],
    ["n" * 5000], ["/bin/cat"],
    ["/bin/sleep", "30"],
]  # fmt: skip
ENTRIES = [
    "started",
    "result",
    "stdout",
    "stderr",
    "stdout.tail",
    "stderr.tail",
    ".result.0",
    ".stdout.tail.0",
    "result/",
    "started/",
]
CONTENTS = ["", "1 1\n", "1 " + "9" * 50, "-1 -1", "x" * 70_000, "1\0002", "{}", "1 -9223372036854775808\n"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exec with both sanitizers; any finding ends it with `SANITIZER`."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    target = tmp_path_factory.mktemp("sanitized") / "tesgate-exec"
    flags = ["-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    said = "no compiler"
    if compiler is not None:
        line = [compiler, *flags, *map(str, sorted(SOURCES.glob("*.c"))), "-o", str(target)]
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return target
        said = done.stderr[-500:]
    if is_required("all"):
        pytest.fail(f"exec cannot be built with sanitizers: {said}")
    pytest.skip(f"exec cannot be built with sanitizers here: {said}")


def mutated(chance: random.Random) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(json.dumps(chance.choice(CORPUS)))
    for _ in range(chance.randint(1, 5)):
        what = chance.randrange(4)
        if what == 0:
            name = chance.choice(OPTIONS)
            value = chance.choice(NUMBERS) if OPTIONS.index(name) < 4 else "HOME/" + chance.choice(PATHS)
            case["options"] += [name, value]
        elif what == 1:
            case["command"] = chance.choice(COMMANDS)
        elif what == 2:
            case["control"][chance.choice(ENTRIES)] = chance.choice(CONTENTS)
        elif case["options"]:
            case["options"].pop(chance.randrange(len(case["options"])))
    return case


def carry_out(program: Path, case: dict[str, Any], home: Path) -> None:
    control = home / "control"
    control.mkdir(parents=True)
    (home / "in").write_text("input\n")
    (home / "dir").mkdir()
    (home / "link").symlink_to("out")
    (home / "loop").symlink_to("loop")
    os.mkfifo(home / "fifo")
    for name, content in case["control"].items():
        place = control / name.rstrip("/")
        if place.exists():
            continue
        if name.endswith("/"):
            (place / "full").mkdir(parents=True)
        else:
            place.write_text(content)
    there_before = (control / "result").is_file() and (control / "result").stat().st_size > 0
    words = [
        word.replace("HOME", str(home)) for word in ["--timeout-ms", "3000", "--grace-ms", "100", *case["options"]]
    ]
    command = [word.replace("HOME", str(home)) for word in case["command"]]
    done = subprocess.run(
        [str(program), "run", "--control", str(control), *words, "--", *command],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=home,
        timeout=60,
        # No leak check: it needs ptrace, which exec forbids everybody.
        env={
            "PATH": "/bin:/usr/bin",
            "ASAN_OPTIONS": f"detect_leaks=0:exitcode={SANITIZER}",
            "UBSAN_OPTIONS": f"exitcode={SANITIZER}",
        },
    )
    assert b"runtime error" not in done.stderr, (case, done.stderr)
    assert b"Sanitizer" not in done.stderr, (case, done.stderr)
    assert done.returncode in ENDINGS, (case, done.returncode, done.stderr)
    if done.returncode not in (64, 74, 75) and not there_before:
        result = json.loads((control / "result").read_text())
        assert result["wire"] == 1
        assert set(os.listdir(control)) >= {"result", "started"}


def test_the_corpus(program: Path, tmp_path: Path) -> None:
    for number, case in enumerate(CORPUS):
        carry_out(program, case, tmp_path / str(number))


def test_mutations(program: Path, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    for number in range(RUNS):
        carry_out(program, mutated(chance), tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
