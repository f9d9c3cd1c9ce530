"""The real Toil, unchanged, with its job store in a mounted file root. Run by ``make clients``: it takes minutes.

Its tasks run in bubblewrap with the environment of the bed shown inside, so no image is needed. Once with py-tes 0.4.2,
which Toil's plugin asks for (`/v1`), and once with the py-tes 1.1.4 of our own tests in its place (`/ga4gh/tes/v1`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tes

from tests.beds.venvs import environment
from tests.e2e.harness import Gateway, wait_for
from tests.e2e.test_cwl_tes import SLEEP, TOOLS
from tests.serving import begun

pytestmark = pytest.mark.timeout(600)

COMMIT = "d569ea5711eb310ffd5703803f7250ebf7c19576"
"""Of Toil 7.0.0. An image with this in its tag is not asked for at a registry."""

WORKFLOW = """
cwlVersion: v1.0
class: Workflow
requirements: {ScatterFeatureRequirement: {}}
inputs: {words: "File[]", suffix: string}
outputs: {counted: {type: File, outputSource: count/counted}}
steps:
  shout: {run: shout.cwl, scatter: words, in: {words: words, suffix: suffix}, out: [said]}
  count: {run: count.cwl, in: {said: shout/said}, out: [counted]}
"""


class Site:
    """A directory that leader and tasks share, and Toil on it."""

    def __init__(self, gateway: Gateway, tools: Path, first: Path | None) -> None:
        """`tools`: Toil's programs. `first`: a directory in which the leader looks for packages first."""
        self.gateway, self.tools, self.first, self.place = gateway, tools, first, gateway.files
        for name, text in {"workflow.cwl": WORKFLOW, "slow.cwl": SLEEP, **TOOLS}.items():
            gateway.write(name, text)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        command = [str(self.tools / "toil-cwl-runner"), "--batchSystem", "tes"]
        command += ["--tesEndpoint", f"http://127.0.0.1:{self.gateway.port}"]
        command += ["--jobStore", str(self.place / f"store-{words[0]}"), "--outdir", "out", "--no-container"]
        command += ["--symlinkImports=False", "--retryCount", "0", "--clean", "always"]
        command += ["--setEnv", f"PATH={self.tools}:/usr/bin:/bin", *words]
        variables = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "HOME": str(self.place),
            "TOIL_APPLIANCE_SELF": f"toil:{COMMIT}",
        }
        if self.first is not None:
            variables["PYTHONPATH"] = str(self.first)
        return begun(command, variables, self.place, words[0])

    def said(self, name: str) -> str:
        return (self.place / f"{name}.said").read_text()

    def tasks(self) -> list[dict[str, Any]]:
        tasks: list[dict[str, Any]] = self.gateway.client.get("/tasks", params={"view": "FULL"}).json()["tasks"]
        return tasks


@pytest.fixture(scope="module", params=["0.4.2", "1.1.4"])
def site(request: pytest.FixtureRequest, bubblewrap: Any, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    tools = environment("toil")
    base = tmp_path_factory.mktemp("toil")
    first = None
    if request.param == "1.1.4":
        assert version("py-tes") == "1.1.4"
        first = base / "first"
        first.mkdir()
        (first / "tes").symlink_to(Path(tes.__file__).parent)
    shown = f"{tools},{sys.base_prefix}"
    gateway = Gateway(base, "bubblewrap", RUNTIME__SANDBOX_PATHS=shown, AGENT__RAM_GB="64")
    gateway.root_words = ":mount"
    try:
        yield Site(gateway.start().ready(), tools / "bin", first)
        gateway.assert_nothing_left()
    finally:
        gateway.close()


def test_a_workflow(site: Site) -> None:
    site.gateway.write("a.txt", "one\ntwo\n")
    site.gateway.write("b.txt", "two\n")
    words = [{"class": "File", "location": name} for name in ("a.txt", "b.txt")]
    site.gateway.write("job.json", json.dumps({"words": words, "suffix": "done"}))
    leader = site.begin("workflow.cwl", "job.json")
    printed = leader.communicate(timeout=500)[0]
    assert leader.returncode == 0, site.said("workflow.cwl")[-4000:]
    assert json.loads(printed)["counted"]["size"] == 22
    assert site.gateway.read("out/counted.txt") == " 1 ONE\n 2 TWO\n 2 done\n"
    assert [task["state"] for task in site.tasks()] == ["COMPLETE"] * 3
    for task in site.tasks():
        assert any("mounted from a file root as it is" in line for line in task["logs"][0]["system_logs"])


def test_a_command_that_fails(site: Site) -> None:
    leader = site.begin("fail.cwl")
    leader.communicate(timeout=500)
    said = site.said("fail.cwl")
    assert leader.returncode == 1 and "broken here" in said and "exited with status: 3" in said, said[-4000:]
    assert site.tasks()[0]["state"] == "EXECUTOR_ERROR"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_leader_that_is_told_to_end_cancels(site: Site, number: signal.Signals) -> None:
    before = {task["id"] for task in site.tasks()}
    leader = site.begin("slow.cwl")

    def found() -> str | None:
        assert leader.poll() is None, site.said("slow.cwl")
        new = [task for task in site.tasks() if task["id"] not in before]
        return new[0]["id"] if new and new[0]["state"] == "RUNNING" else None

    task_id = wait_for("the task to run", found, 300) or ""
    leader.send_signal(number)
    leader.communicate(timeout=200)
    assert leader.returncode != 0
    site.gateway.wait(task_id, "CANCELED")
