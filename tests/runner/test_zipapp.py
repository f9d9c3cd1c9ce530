"""The runner as one file on a real Python 3.9, and the checks that keep it able to run there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.runner.bench import Bench
from tests.runner.test_exec import load

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="tesgate-exec runs on Linux"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    return load(ROOT / "tools" / "build_runner.py")


@pytest.fixture(scope="session")
def checker() -> ModuleType:
    return load(ROOT / "tools" / "check_runner.py")


@pytest.fixture(scope="session")
def zipapp(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        path: Path = builder.build(tmp_path_factory.mktemp("zipapp") / "tesgate-runner.pyz")
    except builder.BuildError as exc:
        if "cannot be fetched" in str(exc):
            pytest.skip(f"the runner's wheels are not here and cannot be fetched: {exc}")
        raise
    return path


class Python:
    """A Python 3.9 and the zipapp, which brings its dependencies itself (-I: nothing else is looked at)."""

    def __init__(self, bed: Any, zipapp: Path) -> None:
        self.bed = bed
        self.zipapp = str(zipapp)

    def command(self, *arguments: str, writable: Sequence[Path] = ()) -> list[str]:
        shared = [Path(self.zipapp).parent, *writable]
        return list(self.bed.command("-I", *arguments, writable=shared))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def python(zipapp: Path, python39: Any) -> Python:
    return Python(python39, zipapp)


def test_is_small_and_the_same_each_time(zipapp: Path, builder: ModuleType, tmp_path: Path) -> None:
    assert zipapp.stat().st_size <= 3_000_000
    assert zipapp.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert os.access(zipapp, os.X_OK)
    assert builder.build(tmp_path / "again.pyz").read_bytes() == zipapp.read_bytes()


def test_holds_nothing_of_the_gateway(zipapp: Path) -> None:
    with zipfile.ZipFile(zipapp) as archive:
        names = archive.namelist()
    ours = {name for name in names if name.startswith("tesgate/")}
    assert all(name.startswith("tesgate/runner/") for name in ours - {"tesgate/__init__.py"})
    assert any(name.startswith("tesgate/runner/exec/bin/tesgate-exec-") for name in ours)
    assert not [name for name in names if name.endswith((".so", ".pyc", ".c"))]


def test_every_module_imports_on_python_3_9(python: Python) -> None:
    script = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
import tesgate.runner, tesgate
found = pkgutil.walk_packages(tesgate.runner.__path__, "tesgate.runner.")
names = [module.name for module in found if not module.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
ours = {"tesgate", "anyio", "urllib3", "idna", "exceptiongroup", "typing_extensions"}
files = {n: getattr(m, "__file__", None) for n, m in sys.modules.items() if n.partition(".")[0] in ours}
foreign = [n for n, file in files.items() if file and sys.argv[1] not in file]
print(sys.version_info[:2], len(names), sorted(foreign), tesgate.__version__)
"""
    done = python.run("-c", script, python.zipapp)
    assert done.returncode == 0, done.stderr
    version, _, rest = done.stdout.partition(") ")
    count, foreign, tesgate_version = rest.split()
    assert version == "(3, 9"
    assert int(count) >= 4
    assert foreign == "[]", "everything must come out of the zipapp"
    assert f'__version__ = "{tesgate_version}"' in (ROOT / "src/tesgate/__init__.py").read_text()


def test_extracts_an_exec_that_runs_and_removes_it(python: Python) -> None:
    script = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from tesgate.runner.exec import ExecMissing, binary, content
path = binary()
assert path == binary() and os.access(str(path), os.X_OK) and path.read_bytes() == content()
assert os.stat(str(path.parent)).st_mode & 0o777 == 0o700
try:
    binary("pdp11")
except ExecMissing as exc:
    assert "hatch_build.py" in str(exc) and "pdp11" in str(exc)
else:
    raise SystemExit("binary() made up an exec")
print(subprocess.check_output([str(path), "version"], text=True).strip())
print(path)
"""
    done = python.run("-c", script, python.zipapp)
    assert done.returncode == 0, done.stderr
    version, path = done.stdout.splitlines()
    assert version.startswith("tesgate-exec ")
    assert not Path(path).exists()


def test_runs_as_a_program(python: Python) -> None:
    for arguments in (["--help"], ["agent", "--help"]):
        done = python.run(python.zipapp, *arguments)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()


def test_carries_out_a_task_and_goes_on_after_a_kill(python: Python, docker_bench: Bench, docker: Any) -> None:
    """A whole attempt on Python 3.9 out of the one file: staged, run, killed in the middle, taken up, stored."""
    bench = docker_bench
    socket = os.path.realpath(docker.socket)
    bench.options = ["--docker-socket", socket]
    bench.program = python.command(python.zipapp, writable=[bench.directory, Path(socket)])
    bench.start("between-executors")
    key = bench.gateway.assign(bench.counted())
    assert bench.process is not None
    assert bench.process.wait(60) != 0, bench.log()
    bench.start()
    said, body = bench.gateway.end_of(key)
    assert (said, body["state"]) == ("finish", "COMPLETE"), bench.log()
    assert bench.output("count.txt") == "run-0\nrun-1\n"
    bench.nothing_left(key)


def test_an_older_python_gets_a_sentence(zipapp: Path) -> None:
    for path in sorted(Path("/root/.pyenv/versions").glob("3.[678].*/bin/python3")) if os.geteuid() == 0 else []:
        done = subprocess.run([str(path), str(zipapp)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("tesgate-runner needs Python 3.9 or newer")
        return
    pytest.skip("no older Python here")


# --- what keeps it so -------------------------------------------------------------------------------------------


def test_the_runner_keeps_its_promise(checker: ModuleType) -> None:
    assert checker.check_tree() == []


def test_the_locked_wheels_are_pure(checker: ModuleType, builder: ModuleType, zipapp: Path) -> None:
    found = builder.wheels()
    assert len(found) >= 2
    assert checker.check_wheels(found) == []


@pytest.mark.parametrize(
    "text",
    [
        "import requests",
        "from typing_extensions import override",
        "from typing import TYPE_CHECKING\nif not TYPE_CHECKING:\n    import requests",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from typing_extensions import override",
        "import tomllib",
        "import tesgate.store",
        "from tesgate.model import state",
        "from tesgate import config",
        "from ... import errors",
        "from ...config import Settings",
        "from asyncio import TaskGroup",
        "import asyncio\nasyncio.timeout(1)",
        "from typing import Self",
        "match 1:\n    case 1: pass",
        "with (open('a') as a, open('b') as b): pass\ntry: pass\nexcept* ValueError: pass",
        "class A:\n    x: int | None = None",
        "def f(x: int | None): pass",
        "isinstance(1, int | str)",
        "@dataclass(slots=True)\nclass A: pass",
        "zip([], [], strict=True)",
    ],
)
def test_the_check_finds(checker: ModuleType, text: str) -> None:
    assert checker.check_module(text, "x.py", ["tesgate", "runner", "part"])


@pytest.mark.parametrize(
    "text",
    [
        "import anyio, urllib3.util, os.path",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from typing_extensions import override",
        "from . import wire\nfrom .. import plan\nfrom ..transfer.local import x",
        "from tesgate.runner.plan import Plan\nfrom tesgate import __version__",
        "from __future__ import annotations\ndef f(x: int | None) -> int | str: return 1 | 2",
        "from typing import Optional\nclass A:\n    x: Optional[int] = None",
    ],
)
def test_the_check_lets_pass(checker: ModuleType, text: str) -> None:
    assert checker.check_module(text, "x.py", ["tesgate", "runner", "part"]) == []


def test_a_wheel_with_native_code_is_found(checker: ModuleType, tmp_path: Path) -> None:
    for name in ("fast-1-cp39-cp39-linux_x86_64.whl", "lying-1-py3-none-any.whl", "good-1-py2.py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr("x.so" if name.startswith("lying") else "x.py", "")
    faults = checker.check_wheels({path.name: path for path in tmp_path.iterdir()})
    assert [fault.split("-")[0] for fault in faults] == ["fast", "lying"]
