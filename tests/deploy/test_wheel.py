"""The release wheel: what is in it, that it is the same anywhere, and that it runs a task where nothing else is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import DATE
from tests.e2e.harness import wait_for
from tests.runner.test_exec import ROOT, load

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="tesgate-exec runs on Linux")]

MACHINES = {"x86_64": b"\x3e\x00", "aarch64": b"\xb7\x00"}
"""e_machine of the ELF header."""


def test_it_holds_a_static_exec_for_each_architecture(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 3_000_000
    is_static = load(ROOT / "src/tesgate/cli/demo/image.py").is_static
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if "/exec/bin/" in name}
        assert names == {f"tesgate-exec-{machine}" for machine in MACHINES}
        # Beside the examples lie the secrets that people make for examples/compose.
        examples = {Path(name).name for name in archive.namelist() if "/examples/" in name}
        assert examples == {"count-reads.json", "hello.json", "s3-to-ftp.json", "split-and-sum.yaml"}
        for machine, number in MACHINES.items():
            info = archive.getinfo(f"tesgate/runner/exec/bin/tesgate-exec-{machine}")
            assert archive.read(info)[18:20] == number
            assert (info.external_attr >> 16) & 0o111 == 0o111
            unpacked = wheel.with_name(info.filename.rpartition("/")[2])
            unpacked.write_bytes(archive.read(info))
            assert is_static(unpacked)


def test_the_same_sources_elsewhere_give_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    builder = load(ROOT / "tools" / "build_wheel.py")
    copy = tmp_path / "another place"
    copy.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, copy / name)  # with a new time, and without a mode
    for name in ("src", "examples"):
        ignore = shutil.ignore_patterns("bin", "__pycache__", "secrets")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore, copy_function=shutil.copyfile)
    old, other = copy / "dist" / "tesgate-0.0.1-py3-none-any.whl", copy / "dist" / "wheels" / "urllib3-py3-none-any.whl"
    for path in (old, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    again = builder.build(copy / "dist", root=copy, date=DATE)
    assert again.read_bytes() == wheel.read_bytes()
    # The Dockerfile takes every wheel of ours that lies there.
    assert (old.exists(), other.exists(), again.exists()) == (False, True, True)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel, and with the dependencies that are locked for the tests."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    line = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*line, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # A plain path: the editable tesgate that stands there by a .pth of its own is not taken along.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    packages.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


@pytest.fixture
def gateway(installed: Path, tmp_path: Path, bubblewrap: object) -> Iterator[str]:
    """The URL of a gateway that runs from the wheel."""
    out = tmp_path / "out"
    line = [installed / "tesgate", "serve", "--port", "0", "--runtime", "bubblewrap", "--data-dir", tmp_path / "data"]
    with out.open("wb") as stdout, (tmp_path / "log").open("wb") as stderr:
        process = subprocess.Popen(line, stdout=stdout, stderr=stderr, cwd=tmp_path)
    try:
        found = wait_for("the gateway", lambda: re.search(r"listens on (http://\S+)", out.read_text()), 60)
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


def test_installed_it_runs_a_task(installed: Path, gateway: str, tmp_path: Path) -> None:
    said = subprocess.run([installed / "tesgate", "--version"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"tesgate \d+\.\d+\.\d+\n", said)
    script = "import tesgate.runner.exec as e; print(e.binary('x86_64')); print(e.binary('aarch64'))"
    line = [installed / "python", "-c", script]
    found = subprocess.run(line, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert len(found) == 2 and all(path.startswith(str(installed.parent)) for path in found)
    example = ROOT / "examples" / "hello.json"
    line = [installed / "tesgate", "task", "submit", example, "--wait", "--timeout", "60", "--url", gateway]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Hello from a container.\n"), done.stderr
