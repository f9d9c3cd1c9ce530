"""tools/build_image.py: which wheels the image gets."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tests.runner.test_exec import ROOT, load


def test_the_wheels_are_for_the_python_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = load(ROOT / "tools" / "build_image.py")
    index, folder, lock = tmp_path / "index", tmp_path / "wheels", tmp_path / "base.lock"
    index.mkdir()
    names = {python: f"thing-1-{python}-{python}-manylinux_2_28_x86_64.whl" for python in ("cp311", "cp313")}
    for name in names.values():
        with zipfile.ZipFile(index / name, "w") as archive:
            archive.writestr("thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
            archive.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
            archive.writestr("thing-1.dist-info/RECORD", "")
    hashes = [f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in index.iterdir()]
    lock.write_text(f"thing==1 {' '.join(hashes)}\n")
    # As it lies there after a build for the Dockerfile's own base.
    folder.mkdir()
    (index / names["cp311"]).rename(folder / names["cp311"])
    (folder / ".fetched").write_text(f"{hashlib.sha256(lock.read_bytes()).hexdigest()} x86_64 3.11")
    assert builder.fetch(folder, machine="x86_64", lock=lock) == folder
    assert [path.name for path in folder.glob("*.whl")] == [names["cp311"]]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    builder.fetch(folder, machine="x86_64", python="3.13", lock=lock)
    assert [path.name for path in folder.glob("*.whl")] == [names["cp313"]]
