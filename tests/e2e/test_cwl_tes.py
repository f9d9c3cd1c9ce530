"""The real cwl-tes, unchanged, on a file root that it shares with the agent: `/ga4gh/tes/v1`, by py-tes 1.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests import beds
from tests.e2e.harness import Gateway, gateway_of, wait_for
from tests.serving import begun

pytestmark = pytest.mark.timeout(240)

WORKFLOW = """
cwlVersion: v1.0
class: Workflow
requirements: {ScatterFeatureRequirement: {}}
inputs: {words: "File[]", suffix: string, tree: Directory, given: File}
outputs:
  counted: {type: File, outputSource: count/counted}
  made: {type: Directory, outputSource: describe/made}
  said: {type: File, outputSource: describe/said}
steps:
  shout: {run: shout.cwl, scatter: words, in: {words: words, suffix: suffix}, out: [said]}
  count: {run: count.cwl, in: {said: shout/said}, out: [counted]}
  describe: {run: describe.cwl, in: {tree: tree, given: given, through: count/counted}, out: [made, said]}
"""

SLEEP = """
cwlVersion: v1.0
class: CommandLineTool
baseCommand: [sleep, "600"]
inputs: []
outputs: []
"""

TOOLS = {
    "shout.cwl": """
cwlVersion: v1.0
class: CommandLineTool
hints: {DockerRequirement: {dockerPull: "busybox:latest"}}
inputs:
  words: {type: File, inputBinding: {position: 2}}
  suffix: {type: string, inputBinding: {position: 1}}
baseCommand: [sh, -c, 'tr a-z A-Z <"$2"; echo "$1"', sh]
stdout: said.txt
outputs: {said: stdout}
""",
    "count.cwl": """
cwlVersion: v1.0
class: CommandLineTool
inputs: {said: {type: "File[]", inputBinding: {position: 1}}}
baseCommand: [sh, -c, 'cat "$@" | sort | uniq -c | tr -s " " >counted.txt', sh]
outputs: {counted: {type: File, outputBinding: {glob: counted.txt}}}
""",
    # A directory, a file that is listed for the working directory too (named twice in the task), one beside it,
    # standard input, variables, and a directory among the outputs.
    "describe.cwl": """
cwlVersion: v1.0
class: CommandLineTool
requirements:
  InitialWorkDirRequirement: {listing: [$(inputs.given)]}
  EnvVarRequirement: {envDef: {WORD: two words}}
inputs: {tree: Directory, given: {type: File, secondaryFiles: [.idx]}, through: File}
stdin: $(inputs.through.path)
stdout: said.txt
arguments:
  - sh
  - -c
  - 'mkdir made; cat; cp -r "$1/sub" made/; cat given.txt "$2" "$2.idx"; echo "$WORD"'
  - sh
  - $(inputs.tree.path)
  - $(inputs.given.path)
outputs: {made: {type: Directory, outputBinding: {glob: made}}, said: stdout}
""",
    "fail.cwl": """
cwlVersion: v1.0
class: CommandLineTool
baseCommand: [sh, -c, 'echo broken here >&2; exit 3']
inputs: []
outputs: []
""",
    "canceled.cwl": SLEEP,
    "stopped.cwl": SLEEP,
}


class Site:
    """A directory that client and agent share, and the client on it."""

    def __init__(self, gateway: Gateway, program: Path) -> None:
        self.gateway, self.program, self.place = gateway, program, gateway.files
        for name, text in {"workflow.cwl": WORKFLOW, **TOOLS}.items():
            gateway.write(name, text)

    def begin(self, *words: str) -> subprocess.Popen[str]:
        command = [str(self.program), "--tes", f"http://127.0.0.1:{self.gateway.port}", "--outdir", "out", *words]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.place), "TMPDIR": str(self.place)}
        return begun(command, environment, self.place, words[-1])

    def said(self, name: str) -> str:
        return (self.place / f"{name}.said").read_text()

    def running(self, name: str, process: subprocess.Popen[str]) -> str:
        """The id of the task of that name that now runs."""

        def found() -> str | None:
            assert process.poll() is None, self.said(name)
            asked = {"name_prefix": name, "state": "RUNNING"}
            tasks = self.gateway.client.get("/tasks", params=asked).json()["tasks"]
            return tasks[0]["id"] if tasks else None

        return wait_for(f"{name} to run", found, 100) or ""


@pytest.fixture(scope="module")
def cwl_tes() -> Generator[Path]:
    with beds.standing("cwl_tes") as program:
        yield program


@pytest.fixture(scope="module")
def site(bubblewrap: Any, cwl_tes: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    with gateway_of(tmp_path_factory.mktemp("cwl-tes"), "bubblewrap") as gateway:
        yield Site(gateway, cwl_tes)


def test_a_workflow(site: Site) -> None:
    write = site.gateway.write
    write("a.txt", "one\ntwo\n")
    write("b.txt", "two\n")
    write("tree/sub/leaf", "leaf\n")
    write("given.txt", "given\n")
    write("given.txt.idx", "index\n")
    file = {name: {"class": "File", "location": name} for name in ("a.txt", "b.txt", "given.txt.idx")}
    given = {"class": "File", "location": "given.txt", "secondaryFiles": [file["given.txt.idx"]]}
    tree = {"class": "Directory", "location": "tree"}
    job = {"words": [file["a.txt"], file["b.txt"]], "suffix": "done", "tree": tree, "given": given}
    write("job.json", json.dumps(job))
    client = site.begin("--parallel", "workflow.cwl", "job.json")
    printed = client.communicate(timeout=150)[0]
    assert client.returncode == 0, site.said("job.json")[-4000:]
    outputs = json.loads(printed)
    read = site.gateway.read
    assert read("out/counted.txt") == " 1 ONE\n 2 TWO\n 2 done\n"
    assert read("out/said.txt") == read("out/counted.txt") + "given\ngiven\nindex\ntwo words\n"
    assert read("out/made/sub/leaf") == "leaf\n"
    assert outputs["counted"]["size"] == len(read("out/counted.txt"))
    tasks = site.gateway.client.get("/tasks", params={"view": "FULL", "state": "COMPLETE"}).json()["tasks"]
    assert sorted(task["name"].partition("_")[0] for task in tasks) == ["count", "describe", "shout", "shout"]
    (described,) = [task for task in tasks if task["name"] == "describe"]
    paths = [item["path"] for item in described["inputs"]]
    assert len(set(paths)) == len(paths) - 1


def test_what_does_not_end_well(site: Site) -> None:
    """A command that fails, a task that is cancelled, and a client that is interrupted: three clients at one time."""
    _, canceled, stopped = clients = [site.begin(name) for name in ("fail.cwl", "canceled.cwl", "stopped.cwl")]
    try:
        stopped_task = site.running("stopped.cwl", stopped)
        stopped.send_signal(signal.SIGINT)
        site.gateway.cancel(site.running("canceled.cwl", canceled))
        assert [client.wait(100) for client in clients] == [1, 1, 1]
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    assert "exit_code=3" in site.said("fail.cwl") and "broken here" in site.said("fail.cwl")
    assert "permanentFail" in site.said("fail.cwl")
    assert "FINAL JOB STATE: CANCELED" in site.said("canceled.cwl") and "permanentFail" in site.said("canceled.cwl")
    # It says so itself, and cancels nothing.
    assert "remote TES task(s) will keep running" in site.said("stopped.cwl")
    assert site.gateway.state(stopped_task) == "RUNNING"
    site.gateway.cancel(stopped_task)
    site.gateway.wait(stopped_task, "CANCELED")
