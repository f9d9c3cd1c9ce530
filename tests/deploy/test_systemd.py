"""The systemd units, read by systemd itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tesgate.config import load_settings
from tests.runner.test_exec import ROOT, cannot

UNITS = ROOT / "deploy" / "systemd"
PROGRAM = "/opt/tesgate/bin/tesgate"
NAMES = ("tesgate-gateway.service", "tesgate-agent.service")


@pytest.fixture(scope="module")
def analyze() -> str:
    return shutil.which("systemd-analyze") or cannot("systemd-analyze is not installed (apt-get install systemd)")


@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say(analyze: str, name: str, tmp_path: Path) -> None:
    text = (UNITS / name).read_text()
    assert text.count(PROGRAM) >= 1
    program = Path(sys.executable).with_name("tesgate")  # one that is here
    unit = tmp_path / name
    unit.write_text(text.replace(PROGRAM, str(program)))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    # What it cannot read it says, and goes on.
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilegs=yes"))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert "NoNewPrivilegs" in done.stderr


@pytest.mark.parametrize(("name", "most"), [(NAMES[0], 2.0), (NAMES[1], 3.0)])
def test_their_exposure_is_small(analyze: str, name: str, most: float) -> None:
    line = [analyze, "security", "--offline=true", "--no-pager", str(UNITS / name)]
    said = subprocess.run(line, capture_output=True, text=True, check=False).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= most


def test_the_gateway_s_settings_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unit = (UNITS / NAMES[0]).read_text()
    credentials = {"database_url": "postgresql://tesgate@127.0.0.1/tesgate", "tokens": "alice:secret"}
    for name, content in credentials.items():
        (tmp_path / name).write_text(content + "\n")
    for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE):
        for word in line.replace("%d", str(tmp_path)).split():
            name, _, value = word.partition("=")
            monkeypatch.setenv(name, value)
    assert set(re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)) == set(credentials)
    settings = load_settings(UNITS / "tesgate.yaml")
    assert settings.database_url == credentials["database_url"]
    assert (settings.auth.tokens_file, settings.auth.mode) == (tmp_path / "tokens", "tokens")
    assert str(settings.data_dir) == "/var/lib/tesgate"


def test_the_agent_s_options_are_options() -> None:
    unit = (UNITS / NAMES[1]).read_text().replace("\\\n", " ")
    command = re.search(rf"^ExecStart={PROGRAM} (.*)$", unit, re.MULTILINE)
    given = dict(re.findall(r"^(TESGATE_\w+)=(.*)$", (UNITS / "agent.env").read_text(), re.MULTILINE))
    assert command is not None
    text = command[1]
    for name, value in given.items():
        text = text.replace(f"${{{name}}}", value).replace(f"${name}", value)
    script = (
        "import sys\nfrom tesgate.runner import __main__ as m\ngiven = m._parser().parse_args(sys.argv[1:])\n"
        "print(given.url, given.scratch, given.roots[0].name, given.roots[0].path)"
    )
    line = [sys.executable, "-c", script, *text.split()]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == "http://127.0.0.1:8000 /var/lib/tesgate-agent data /srv/tesgate/data\n", done.stderr


def test_users_and_directories_are_those_of_the_units() -> None:
    users = set(re.findall(r"^u (\S+)", (UNITS / "sysusers.d" / "tesgate.conf").read_text(), re.MULTILINE))
    named = {match for name in NAMES for match in re.findall(r"^User=(\S+)$", (UNITS / name).read_text(), re.MULTILINE)}
    assert users == named
    made = re.findall(r"^d (\S+)", (UNITS / "tmpfiles.d" / "tesgate.conf").read_text(), re.MULTILINE)
    for name in NAMES:
        for path in re.findall(r"^LoadCredential=\w[\w.]*:(\S+)/[^/]+$", (UNITS / name).read_text(), re.MULTILINE):
            assert path in made
    roots = yaml.safe_load((UNITS / "tesgate.yaml").read_text())["file_roots"]
    assert {root["path"] for root in roots} <= set(made)
